"""Base of all formulations: one scoring interface, with ranking and optimisation in one place."""

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
"""Function from users' scored candidates, (U, C), to the loss, ()."""


class RecModule(LightningModule):
    """A backbone, a head and a loss. A formulation defines how a score is computed; the rest is here.

    A formulation implements ``loss(batch) -> ()``, ``encode_catalogue(batch)`` and
    ``score(users, candidates) -> (U, C)`` float32, higher is better; and optionally ``score_items(users, items)``, with
    which the record reports whether the reloaded model gives the same scores.

    Args:
        backbone: adapted or not; parameters that require gradients are trained.
        head: module trained beside the backbone and saved with it.
        num_items: size of the catalogue.
        adapter: the adapter in ``backbone``, for its hooks; None if there is none.
        weight_decay: weight decay of the backbone's trained matrices; vectors (biases, norms, magnitudes) and the head
            have none.
        optimizer: an ``_optimizers.OptimizerName``; adapter and head share it.
        k: length of the lists that are measured.
        depth: number of a user's best items to list, if more than ``k``.
        total_steps, warmup_steps, schedule: learning-rate schedule; ``constant`` ignores total_steps.
    """

    # A checkpoint holds the trained parameters, without the backbone's own weights.
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
        """Number of text tokens the backbone has processed, without padding; a formulation counts them."""

    # Implemented by a formulation ---------------------------------------------------------------------

    def loss(self, batch: PairBatch) -> Tensor:
        """Return the loss () of a training batch."""
        raise NotImplementedError

    def encode_catalogue(self, batch: ItemBatch) -> None:
        """Encode a part of the catalogue; called for every part before users are scored."""
        raise NotImplementedError

    def encodings(self) -> Tensor | None:
        """Return the encodings (I, …) of the whole catalogue if they are a tensor; else None."""
        return None

    def take_encodings(self, encodings: Tensor) -> None:
        """Use the result of ``encodings`` instead of encoding the catalogue's texts."""
        raise NotImplementedError

    @property
    def has_bank(self) -> bool:
        """Return whether it uses item encodings that were computed before training (``take_bank``)."""
        return False

    @property
    def bank_pooling(self) -> str:
        """Name of the pooling that makes a bank's encodings."""
        raise NotImplementedError

    @property
    def bank_age(self) -> float:
        """Mean over training steps of the number of steps since the bank's items were encoded."""
        raise NotImplementedError

    def take_bank(self, encodings: Tensor, fixed: bool) -> None:
        """Use the encodings (I, H) of all items' texts; ``fixed`` if the backbone is not trained."""
        raise NotImplementedError

    def score(self, users: UserBatch, candidates: Tensor | None = None) -> Tensor:
        """Return scores (T, C) float32, higher is better; a user has one text unless ``users.owner`` is given.

        Args:
            candidates: (C,) item ids, the same for every text of ``users``, or (T, C), one row per text; -1 is
                padding, whose score is meaningless. None is the whole catalogue.
        """
        raise NotImplementedError

    def score_items(self, users: UserBatch, items: ItemBatch) -> Tensor:
        """Return the scores (T, I) float32 of the items of one batch, independent of the encoded catalogue.

        They depend only on the two batches, so that a model can be compared with its reloaded copy.
        """
        raise NotImplementedError

    def prove(self, users: TextBatch, items: TextBatch) -> None:
        """Raise ``RecpeftError`` if this backbone does not support the way the formulation reads it.

        Args:
            users, items: some texts; this is called before training.
        """

    def diagnose(self, users: UserBatch) -> dict[str, Any]:
        """Return the formulation's own diagnostics of some users' scores, for the record; the catalogue is encoded."""
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
        # Lightning does not change modes, and from_pretrained returns a model in eval mode.
        self.train()

    def configure_model(self) -> None:
        # Lightning calls this before each fit, validation and test; there is a mesh if the strategy shards.
        if self._device_mesh is not None and not is_sharded(self.backbone):
            shard(self.backbone, self.head, self._device_mesh["data_parallel"])

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        penalty = self.adapter.penalty(self.backbone) if self.adapter is not None else None
        if penalty is not None:
            loss = loss + penalty
        self.log("train/loss", loss, batch_size=batch.users.size, sync_dist=True)  # mean over all processes
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        # Lightning divides the loss by the batches of a full group, and an epoch's last group may be shorter.
        whole, batch = self.trainer.accumulate_grad_batches, self.trainer.fit_loop.batch_idx
        there = min(whole, int(self.trainer.num_training_batches) - batch // whole * whole)
        super().backward(loss if there == whole else loss * (whole / there), *args, **kwargs)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.adapter is not None:
            # Gradients still exist here (AdaLoRA reads them), and no checkpoint of this step is written yet.
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
        """Split a group into matrices with weight decay and vectors without, unless the adapter has set a decay."""
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

    def validation_step(  # type: ignore[override]  # Lightning passes lists on unchanged
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
        stored = set(checkpoint.get("state_dict", trained))  # a sharding strategy has restored them itself
        if stored != trained:
            # strict_loading is off because of the backbone; the trained parameters must still be complete.
            raise RuntimeError(
                f"the checkpoint and the model disagree on {len(stored ^ trained)} trained parameters, "
                f"such as {sorted(stored ^ trained)[0]}"
            )
        if self.adapter is not None:
            self.adapter.load_state_dict(self.backbone, checkpoint["adapter_state"])
