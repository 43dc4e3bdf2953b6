"""The LightningDataModule that serves user/item text pairs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from lightning.pytorch import LightningDataModule

from datamodules._batching import ItemBatch, PairBatch, UserBatch, bucket
from datamodules._dataset import RecDataset
from datamodules._prompts import PromptAssembler
from datamodules._splits import Split
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextPairDataModule(LightningDataModule):
    """Serves ``PairBatch`` for training, ``ItemBatch`` and then ``UserBatch`` for evaluation.

    A training batch is a function of the seed and the step alone, so a run that resumes at step n sees
    what it would have seen. Users come in a fresh permutation each pass. For each user a moment in the
    train history is drawn; the items before it are the history, and up to ``positives_per_user`` of those
    after it (of the next ``positive_window`` of them), drawn without replacement, are the positives: what a
    user did later never stands in the prompt.

    Args:
        dataset: items' texts and the catalogue.
        split: train, validation and test interactions, each user's rows in order of time.
        tokenizer: the backbone's.
        users_per_step: U of a training batch (of each process).
        steps_per_epoch: batches between validations; None is one pass over the training users.
        validation_users: how many users to validate on, the same draw for every seed; None is all.
        mask_seen: leave items of the user's history out of the ranking.
        max_bucket_tokens: largest number of tokens, padding included, that is encoded at once.
        prompt: arguments of ``PromptAssembler`` (history, instruction, item, …).
    Raises:
        RecpeftError: no user has two train interactions, or a prompt that cannot be rendered.
    """

    def __init__(
        self,
        dataset: RecDataset,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        *,
        users_per_step: int = 32,
        positives_per_user: int = 8,
        positive_window: int | None = None,
        steps_per_epoch: int | None = None,
        validation_users: int | None = None,
        mask_seen: bool = True,
        max_bucket_tokens: int = 8192,
        seed: int = 0,
        **prompt: Any,
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.prompt = PromptAssembler(tokenizer, dataset.items, **prompt)
        self.users_per_step = users_per_step
        self.positives_per_user = positives_per_user
        self.positive_window = positive_window
        self.mask_seen = mask_seen
        self.seed = seed
        self._max_bucket_tokens = max_bucket_tokens
        self._pad_id = tokenizer.pad_token_id
        self._padding_side = tokenizer.padding_side

        self._train = _items_by_user(split.train, dataset.num_users)
        self._validation = _items_by_user(split.validation, dataset.num_users)
        self._test = _items_by_user(split.test, dataset.num_users)
        self._trainable = np.flatnonzero([len(items) >= 2 for items in self._train])
        if not len(self._trainable):
            raise RecpeftError(
                f"no user of {dataset.name} has two train interactions, one for the history and one to learn; "
                "lower data.filters or use another data.split."
            )
        self.steps_per_epoch = steps_per_epoch or max(1, len(self._trainable) // users_per_step)
        with_validation = np.flatnonzero([len(items) > 0 for items in self._validation])
        if validation_users is not None and validation_users < len(with_validation):
            drawn = np.random.default_rng([0, 1]).choice(with_validation, validation_users, replace=False)
            with_validation = np.sort(drawn)
        self.validation_users = with_validation
        self.test_users = np.flatnonzero([len(items) > 0 for items in self._test])
        shares = self._draw_shares()
        self._log_q = torch.from_numpy(np.log(np.maximum(shares, 1e-12))).float()

    def _draw_shares(self) -> np.ndarray:
        """(I,) share of all drawn positives that falls on each item, exactly, under ``train_batch``'s draws."""
        expected = np.zeros(self.dataset.num_items)
        for user in self._trainable:
            items = self._train[user]
            moments = np.arange(1, len(items))
            later = np.minimum(len(items) - moments, self.positive_window or len(items))
            chance = np.minimum(self.positives_per_user, later) / later / len(moments)
            # The moment c reaches the items c to c + later[c] - 1: add at the first, take off behind the last.
            change = np.zeros(len(items) + 1)
            np.add.at(change, moments, chance)
            np.add.at(change, moments + later, -chance)
            np.add.at(expected, items, change.cumsum()[:-1])
        return expected / expected.sum()

    # Training ------------------------------------------------------------------------------------

    def train_dataloader(self) -> _StepLoader:
        return _StepLoader(self.train_batch, self._position, self.steps_per_epoch)

    def _position(self) -> tuple[int, int, int]:
        """First batch to serve, this process's rank and the number of processes."""
        trainer = self.trainer
        if trainer is None:
            return 0, 0, 1
        # Batches rather than steps: where gradients accumulate, an epoch's last step may take fewer of them.
        served = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        return served, trainer.global_rank, trainer.world_size

    def train_batch(self, index: int) -> PairBatch:
        """The ``index``-th training batch of this seed."""
        draw = np.random.default_rng([self.seed, 2, index])
        users = self._users_of_batch(index)
        histories, positives = [], []
        for user in users:
            items = self._train[user]
            cut = int(draw.integers(1, len(items)))
            later = items[cut:][: self.positive_window]
            size = min(self.positives_per_user, len(later))
            histories.append(items[:cut].tolist())
            positives.append(draw.choice(later, size, replace=False))
        item = np.unique(np.concatenate(positives))
        positive = np.stack([np.isin(item, p) for p in positives])
        known = np.stack([np.isin(item, self._train[user]) for user in users])
        return PairBatch(
            users=self._texts([self.prompt.user(history) for history in histories]),
            items=self._texts([self.prompt.item(i) for i in item]),
            item=torch.from_numpy(item).long(),
            positive=torch.from_numpy(positive),
            excluded=torch.from_numpy(known & ~positive),
            log_q=self._log_q[torch.from_numpy(item).long()],
        )

    def _users_of_batch(self, index: int) -> np.ndarray:
        per_pass = max(1, len(self._trainable) // self.users_per_step)
        number, place = divmod(index, per_pass)
        order = np.random.default_rng([self.seed, 3, number]).permutation(self._trainable)
        return order[place * self.users_per_step : (place + 1) * self.users_per_step]

    # Evaluation ----------------------------------------------------------------------------------

    def val_dataloader(self) -> list[_Batches]:
        """Catalogue batches first, then users with their train history and validation items."""
        return [self._catalogue(), self._ranked(self.validation_users, [self._train], self._validation)]

    def test_dataloader(self) -> list[_Batches]:
        """Catalogue batches first, then users with train and validation as history, and test items."""
        return [self._catalogue(), self._ranked(self.test_users, [self._train, self._validation], self._test)]

    def _catalogue(self, size: int = 512) -> _Batches:
        items = torch.arange(self.dataset.num_items)
        return _Batches(
            [ItemBatch(part, self._texts([self.prompt.item(i) for i in part.tolist()])) for part in items.split(size)]
        )

    def _ranked(
        self, users: np.ndarray, history: list[list[np.ndarray]], held_out: list[np.ndarray], size: int = 128
    ) -> _Batches:
        batches = []
        for start in range(0, len(users), size):
            part = users[start : start + size]
            before = [np.concatenate([items[user] for items in history]) for user in part]
            nothing: list[np.ndarray] = [np.empty(0, np.int64)] * len(part)
            batches.append(
                UserBatch(
                    user=torch.from_numpy(part).long(),
                    texts=self._texts([self.prompt.user(items.tolist()) for items in before]),
                    seen=_pairs(before if self.mask_seen else nothing),
                    relevant=_pairs([held_out[user] for user in part]),
                )
            )
        return _Batches(batches)

    def _texts(self, texts: list[list[int]]) -> Any:
        return bucket(texts, self._pad_id, self._max_bucket_tokens, self._padding_side)


class _StepLoader:
    """The batches of one epoch, from where the trainer stands: mid-epoch after a resume."""

    def __init__(
        self,
        batch: Callable[[int], PairBatch],
        position: Callable[[], tuple[int, int, int]],
        steps_per_epoch: int,
    ) -> None:
        self._batch = batch
        self._position = position
        self._steps_per_epoch = steps_per_epoch

    def __len__(self) -> int:
        return self._steps_per_epoch

    def __iter__(self) -> Iterator[PairBatch]:
        first, rank, world_size = self._position()
        end = (first // self._steps_per_epoch + 1) * self._steps_per_epoch
        for index in range(first, end):
            yield self._batch(index * world_size + rank)


class _Batches:
    """Batches made beforehand. Lightning takes a plain list for a list of loaders."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)


def _items_by_user(interactions: pl.DataFrame, num_users: int) -> list[np.ndarray]:
    """Each user's items in the frame's order; an empty array for users without any."""
    user = interactions["user"].to_numpy()
    item = interactions["item"].to_numpy().astype(np.int64)
    order = np.argsort(user, kind="stable")
    bounds = np.searchsorted(user[order], np.arange(num_users + 1))
    return [item[order[a:b]] for a, b in itertools.pairwise(bounds)]


def _pairs(items: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = np.repeat(np.arange(len(items)), [len(part) for part in items])
    columns = np.concatenate(items) if items else np.empty(0, np.int64)
    return torch.from_numpy(rows).long(), torch.from_numpy(columns).long()
