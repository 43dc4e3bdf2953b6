"""The base of all formulations: one scorer contract, ranked and optimised in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from adapters import Adapter
from datamodules._batching import ItemBatch, PairBatch, TextBatch, UserBatch
from lightning_modules._optimizers import make_optimizer
from lightning_modules._sharding import is_sharded, shard
from lightning_modules.losses._base import ScoredPairs
from metrics._judged import JudgedPairs, among
from metrics._listing import Allowed, Relevant, best_lists
from metrics._suite import Ranked

LossFunction = Callable[[ScoredPairs], Tensor]
"""Scores of users' candidates and what is known of each pair, (U, C) -> ()."""


class RecModule(LightningModule):
    """A backbone, a head and a loss. A formulation says how a score is computed; the rest is here.

    A formulation implements ``loss(batch) -> ()``, ``encode_catalogue(batch)`` and
    ``score(users, candidates) -> (U, C)`` float32, higher is better; and ``score_items(users, items)``, without which a
    record does not say whether a model scores the same when it is loaded again.

    Args:
        backbone: adapted or not; parameters that require gradients are trained.
        head: what is trained beside the backbone; saved with it.
        num_items: size of the catalogue.
        adapter: the one that ``backbone`` was given, for its hooks; None where there is none.
        weight_decay: of the backbone's trained matrices; vectors (biases, norms, magnitudes) and the head have none.
        optimizer: a key of ``_optimizers.OPTIMIZERS``; adapter and head share it.
        k: length of the lists that are measured.
        depth: how many of a user's best items are listed, where that is more.
        total_steps, warmup_steps, schedule: learning-rate schedule; ``constant`` ignores total_steps.
    """

    # A checkpoint holds what is trained and leaves out the backbone's own weights.
    strict_loading = False

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        *,
        num_items: int,
        adapter: Adapter | None = None,
        learning_rate: float = 1e-3,
        head_learning_rate: float | None = None,
        weight_decay: float = 0.0,
        optimizer: str = "adamw",
        schedule: str = "constant",
        warmup_steps: int = 0,
        total_steps: int | None = None,
        k: int = 20,
        depth: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.num_items = num_items
        self.learning_rate = learning_rate
        self.head_learning_rate = head_learning_rate if head_learning_rate is not None else learning_rate
        self.weight_decay = weight_decay
        self.optimizer = optimizer
        self.schedule = schedule
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.k = k
        self.depth = depth
        self.adapter = adapter
        self.tokens_read = 0
        """Tokens of texts that went through the backbone so far, padding left out; a formulation counts them."""

    # What a formulation adds ---------------------------------------------------------------------

    def loss(self, batch: PairBatch) -> Tensor:
        """The loss of a training batch, ()."""
        raise NotImplementedError

    def encode_catalogue(self, batch: ItemBatch) -> None:
        """Take a part of the catalogue; called for every part before users are scored."""
        raise NotImplementedError

    def encodings(self) -> Tensor | None:
        """(I, …) what was made of the whole catalogue, where that is a tensor; else None."""
        return None

    def take_encodings(self, encodings: Tensor) -> None:
        """Take what ``encodings`` gave in place of the catalogue's texts."""
        raise NotImplementedError

    @property
    def has_bank(self) -> bool:
        """Whether it takes item encodings that were computed before training (``take_bank``)."""
        return False

    @property
    def bank_age(self) -> float:
        """The mean number of steps since an item of the bank was encoded."""
        raise NotImplementedError

    def take_bank(self, encodings: Tensor, fixed: bool) -> None:
        """Take the encodings (I, H) of all items' texts; ``fixed`` where the backbone is not trained."""
        raise NotImplementedError

    def score(self, users: UserBatch, candidates: Tensor | None = None) -> Tensor:
        """(T, C) float32, higher is better; a user has one text unless ``users.owner`` says otherwise.

        Args:
            candidates: (C,) item ids, the same for every text of ``users``, or (T, C), one row a text; -1 is
                padding, whose score says nothing. None is the whole catalogue.
        """
        raise NotImplementedError

    def score_items(self, users: UserBatch, items: ItemBatch) -> Tensor:
        """(T, I) float32 scores of the items of one batch alone, whatever of the catalogue has been encoded.

        It depends on nothing but the two batches, so that a model and its reloaded copy can be held against each other.
        """
        raise NotImplementedError

    def prove(self, users: TextBatch, items: TextBatch) -> None:
        """Raise ``RecpeftError`` where this backbone cannot be read as the formulation reads it.

        Args:
            users, items: some texts; called before training.
        """

    def diagnose(self, users: UserBatch) -> dict[str, Any]:
        """What a formulation measures of its own scores of some users, for the record; the catalogue is encoded."""
        return {}

    # Training ------------------------------------------------------------------------------------

    @property
    def backbone_is_trained(self) -> bool:
        return any(parameter.requires_grad for parameter in self.backbone.parameters())

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if not self.backbone_is_trained:
            self.backbone.eval()  # a fixed backbone's embeddings do not depend on dropout
        return self

    def on_fit_start(self) -> None:
        # Lightning leaves modes as it finds them, and from_pretrained returns a model in eval mode.
        self.train()

    def configure_model(self) -> None:
        # Lightning asks before each fit, validation and test; there is a mesh where the strategy is to shard.
        if self._device_mesh is not None and not is_sharded(self.backbone):
            shard(self.backbone, self.head, self._device_mesh["data_parallel"])

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        penalty = self.adapter.penalty(self.backbone) if self.adapter is not None else None
        if penalty is not None:
            loss = loss + penalty
        self.log("train/loss", loss, batch_size=batch.users.size, sync_dist=True)  # all processes' mean
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        # Lightning divides the loss by the batches of a whole group, and an epoch's last group may be short.
        whole, batch = self.trainer.accumulate_grad_batches, self.trainer.fit_loop.batch_idx
        there = min(whole, int(self.trainer.num_training_batches) - batch // whole * whole)
        super().backward(loss if there == whole else loss * (whole / there), *args, **kwargs)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.adapter is not None:
            # Here gradients still stand (AdaLoRA reads them), and no checkpoint of this step is written yet.
            self.adapter.after_step(self.backbone, self.trainer.global_step + 1)

    def configure_optimizers(self) -> Any:
        from transformers import get_scheduler

        if self.adapter is not None:
            groups = self.adapter.param_groups(self.backbone, self.learning_rate)
        else:
            trained = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
            groups = [{"params": trained, "lr": self.learning_rate}] if trained else []
        head = [parameter for parameter in self.head.parameters() if parameter.requires_grad]
        groups = [
            *(part for group in groups for part in self._by_decay(group)),
            {"params": head, "lr": self.head_learning_rate, "weight_decay": 0.0},
        ]
        optimizer = make_optimizer(self.optimizer, groups)
        if self.schedule == "constant" and not self.warmup_steps:
            return optimizer
        kind = "constant_with_warmup" if self.schedule == "constant" else self.schedule
        total_steps = self.total_steps or int(self.trainer.estimated_stepping_batches)
        scheduler = get_scheduler(kind, optimizer, self.warmup_steps, total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _by_decay(self, group: dict[str, Any]) -> list[dict[str, Any]]:
        """A group's matrices with weight decay, and its vectors without, unless the adapter has given it a decay."""
        if "weight_decay" in group or not self.weight_decay:
            return [{"weight_decay": 0.0, **group}]
        held_as_matrices = self.adapter.vectors if self.adapter is not None else frozenset()
        vectors = {
            id(parameter)
            for name, parameter in self.backbone.named_parameters()
            if parameter.ndim < 2 or not held_as_matrices.isdisjoint(name.split("."))
        }
        kinds = (
            ([p for p in group["params"] if id(p) not in vectors], self.weight_decay),
            ([p for p in group["params"] if id(p) in vectors], 0.0),
        )
        return [{**group, "params": params, "weight_decay": decay} for params, decay in kinds if params]

    # Evaluation ----------------------------------------------------------------------------------

    def validation_step(  # type: ignore[override]  # Lightning hands lists on as they are
        self, batch: ItemBatch | UserBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> Ranked | None:
        return self._rank(batch)

    def test_step(  # type: ignore[override]
        self, batch: ItemBatch | UserBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> Ranked | None:
        return self._rank(batch)

    def _rank(self, batch: ItemBatch | UserBatch) -> Ranked | None:
        if isinstance(batch, ItemBatch):
            self.encode_catalogue(batch)
            return None
        judged = None
        if batch.candidates is None:
            scores = self.score(batch)
        else:
            found = self.score(batch, batch.candidates)  # (T, C)
            owner = torch.arange(len(found), device=found.device) if batch.owner is None else batch.owner
            scores = among(found, batch.candidates, owner, len(batch.user), self.num_items)
            if batch.liked is not None:
                text, column = (batch.candidates >= 0).nonzero(as_tuple=True)
                pair = (text, column)
                rating = None if batch.rating is None else batch.rating[pair]
                item, user = batch.candidates[pair], batch.user[owner[text]]
                judged = JudgedPairs(user, item, found[pair], batch.liked[pair], rating, owner[text])
        allowed = Allowed.of((len(batch.user), self.num_items), batch.seen, batch.unavailable)
        relevant = Relevant(batch.relevant, batch.grade)
        lists = best_lists(scores, batch.user, allowed, relevant, max(self.k, self.depth), tied_within=self.k)
        return None if batch.repeated else Ranked(lists, scores, judged)

    # Checkpoints ---------------------------------------------------------------------------------

    def trained_names(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = self.trained_names()
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in trained}
        if self.adapter is not None:
            checkpoint["adapter_state"] = self.adapter.state_dict(self.backbone)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = self.trained_names()
        stored = set(checkpoint.get("state_dict", trained))  # where it shards, the strategy has put them back itself
        if stored != trained:
            # strict_loading is off for the backbone's sake; what is trained must still be there whole.
            raise RuntimeError(
                f"the checkpoint and the model disagree on {len(stored ^ trained)} trained parameters, "
                f"such as {sorted(stored ^ trained)[0]}"
            )
        if self.adapter is not None:
            self.adapter.load_state_dict(self.backbone, checkpoint["adapter_state"])
