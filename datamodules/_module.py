"""The LightningDataModule that serves user/item text pairs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from lightning.pytorch import LightningDataModule

from datamodules._assembler import PromptAssembler
from datamodules._batching import ItemBatch, PairBatch, TextBatch, UserBatch, bucket
from datamodules._candidates import unavailable
from datamodules._dataset import RecDataset
from datamodules._histories import Histories
from datamodules._negatives import Negatives, NegativesConfig
from datamodules._ragged import Ragged, offsets_of, ranges
from datamodules._splits import Split
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextPairDataModule(LightningDataModule):
    """Serves ``PairBatch`` for training, ``ItemBatch`` and then ``UserBatch`` for evaluation.

    A training batch is a function of the seed and the step alone (and of the hard negatives last set), so a run
    that resumes at step n sees what it would have seen. Users come in a fresh permutation each pass. For each
    user a moment in the train history is drawn; the items before it are the history, and up to
    ``positives_per_user`` of those after it (of the next ``positive_window`` of them), drawn without replacement,
    are the positives: what a user did later never stands in the prompt.

    Args:
        dataset: items' texts and the catalogue.
        split: train, validation and test interactions, each user's rows in order of time.
        tokenizer: the backbone's.
        users_per_step: U of a training batch (of each process).
        steps_per_epoch: batches between validations; None is one pass over the training users.
        validation_users: how many users to validate on, the same draw for every seed; None is all.
        mask_seen: leave items of the user's history out of the ranking.
        max_bucket_tokens: largest number of tokens, padding included, that is encoded at once.
        negatives: what is drawn beside the users' positives; other users' positives alone unless given.
        balance: (num_users,) group of each user, -1 for none; groups then give a batch equally many users.
        candidates: (user, item) frames for validation and test, of what is to be ranked; None is the catalogue.
        cache: folder of the token cache; None keeps token ids in memory alone.
        pairs: for formulations that read user and item as one text; see ``PromptAssembler``.
        prompt: fields of ``PromptConfig`` (history, instruction, item, …).
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
        negatives: NegativesConfig | None = None,
        balance: np.ndarray | None = None,
        candidates: tuple[pl.DataFrame, pl.DataFrame] | None = None,
        cache: Path | None = None,
        pairs: bool = False,
        seed: int = 0,
        **prompt: Any,
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.prompt = PromptAssembler(
            tokenizer,
            dataset.items,
            users=dataset.users,
            interactions=dataset.interactions,
            cache=cache,
            pairs=pairs,
            **prompt,
        )
        self.users_per_step = users_per_step
        self.positives_per_user = positives_per_user
        self.positive_window = positive_window
        self.mask_seen = mask_seen
        self.seed = seed
        self._max_bucket_tokens = max_bucket_tokens
        self._pad_id = tokenizer.pad_token_id
        # An item's text goes behind its user's: padding stands where nothing has to be counted around it.
        self._padding_side = "right" if pairs else tokenizer.padding_side

        self._known = Histories.of(split.known(at_test=False), dataset.num_users)
        self.known_at_test = Histories.of(split.known(at_test=True), dataset.num_users)
        self._validation = Histories.of(split.validation, dataset.num_users)
        self._test = Histories.of(split.test, dataset.num_users)
        self._targets = _targets(split, dataset.num_users)
        # A target needs something before it: the first of a history is none.
        self._trainable = np.flatnonzero([len(places) > 0 and places[-1] >= 1 for places in self._targets])
        if not len(self._trainable):
            raise RecpeftError(
                f"no user of {dataset.name} has two train interactions, one for the history and one to learn; "
                "lower data.filters or use another data.split."
            )
        self.steps_per_epoch = steps_per_epoch or max(1, len(self._trainable) // users_per_step)
        with_validation = np.flatnonzero(np.diff(self._validation.offsets))
        if validation_users is not None and validation_users < len(with_validation):
            drawn = np.random.default_rng([0, 1]).choice(with_validation, validation_users, replace=False)
            with_validation = np.sort(drawn)
        self.validation_users = with_validation
        self.test_users = np.flatnonzero(np.diff(self._test.offsets))
        self._candidates = tuple(
            None if frame is None else Histories.of(_untimed(frame), dataset.num_users)
            for frame in candidates or (None, None)
        )
        self._passes = _Passes(self._trainable, users_per_step, seed, balance)
        train_counts = np.bincount(split.train["item"].to_numpy(), minlength=dataset.num_items)
        self._negatives = Negatives(train_counts, negatives or NegativesConfig())
        self._hard: dict[int, np.ndarray] = {}
        shares, positives = self._draw_shares()
        self._log_q = torch.from_numpy(self._negatives.log_q(shares, positives)).float()

    def _draw_shares(self) -> tuple[np.ndarray, float]:
        """(I,) share of all drawn positives that falls on each item, exactly, under ``train_batch``'s draws, and
        how many positives a batch has."""
        expected = np.zeros(self.dataset.num_items)
        chances = self._passes.chances()
        for user in self._trainable:
            items, places = self._known.items(user), self._targets[user]
            moments = np.arange(1, places[-1] + 1)
            first = np.searchsorted(places, moments)  # of the targets at or after each moment
            later = np.minimum(len(places) - first, self.positive_window or len(places))
            chance = np.minimum(self.positives_per_user, later) / later / len(moments) * chances[user]
            # A moment reaches the targets first to first + later: add at the one, take off behind the other.
            change = np.zeros(len(places) + 1)
            np.add.at(change, first, chance)
            np.add.at(change, first + later, -chance)
            np.add.at(expected, items[places], change.cumsum()[:-1])
        per_user = expected.sum() / chances.sum()
        return expected / expected.sum(), float(per_user * len(self._passes.users(0)))

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
        users = self._passes.users(index)
        moments, positives = [], []
        for user in users:
            items, places = self._known.items(user), self._targets[user]
            moment = int(draw.integers(1, places[-1] + 1))
            later = items[places[np.searchsorted(places, moment) :]][: self.positive_window]
            moments.append(moment)
            positives.append(draw.choice(later, min(self.positives_per_user, len(later)), replace=False))
        sampled = np.union1d(self._negatives.draw(draw), self._hard_negatives(users, draw))
        item = np.union1d(np.concatenate(positives), sampled)
        positive = np.stack([np.isin(item, p) for p in positives])
        known = np.stack([np.isin(item, self._known.items(user)) for user in users])
        outside = unavailable(self.dataset, users)
        if outside is not None:
            known |= outside[:, item]  # nobody ranks them against the user's own domain
        if not self._negatives.config.in_batch:
            known |= ~np.isin(item, sampled)  # what is there for other users alone
        return PairBatch(
            users=self._texts(self.prompt.users(self._known, users, np.asarray(moments))),
            items=self._texts(self.prompt.items(item)),
            item=torch.from_numpy(item).long(),
            positive=torch.from_numpy(positive),
            excluded=torch.from_numpy(known & ~positive),
            log_q=self._log_q[torch.from_numpy(item).long()],
            rating=_ratings(self._known, users, item),
        )

    def _hard_negatives(self, users: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        count = self._negatives.config.hard
        pools = [self._hard[user] for user in users.tolist() if count and user in self._hard]
        drawn = [draw.choice(pool, min(count, len(pool)), replace=False) for pool in pools]
        return np.concatenate([np.empty(0, np.int64), *drawn])

    @property
    def hard_refresh_epochs(self) -> int | None:
        """Epochs after which ``set_hard_pools`` wants to be called; None where no hard negatives are drawn."""
        return self._negatives.config.hard_refresh_epochs if self._negatives.config.hard else None

    def users_to_mine(self, first: int, count: int) -> Iterator[UserBatch]:
        """The users of the batches ``first`` to ``first + count``, to be scored for their hard negatives.

        What is known of them is masked; there is nothing to be found.
        """
        users = np.unique(np.concatenate([self._passes.users(index) for index in range(first, first + count)]))
        nothing = Histories.of_items([[]] * self.dataset.num_users)
        yield from self._ranked(users, self._known, nothing, None, mask_seen=True)

    def set_hard_pools(self, pools: Mapping[int, Sequence[int]]) -> None:
        """User -> the items its hard negatives are drawn from, until the next call."""
        self._hard = {user: np.asarray(pool, np.int64) for user, pool in pools.items()}

    def hard_pools(self) -> dict[int, list[int]]:
        """What was set last."""
        return {user: pool.tolist() for user, pool in self._hard.items()}

    @property
    def hard_pool_size(self) -> int:
        return self._negatives.config.hard_pool

    # Evaluation ----------------------------------------------------------------------------------

    def val_dataloader(self) -> list[Sequence[Any]]:
        """Catalogue batches first, then users with what is known before validation, and validation items."""
        candidates = self._candidates[0]
        return [self.catalogue(), self._ranked(self.validation_users, self._known, self._validation, candidates)]

    def test_dataloader(self) -> list[Sequence[Any]]:
        """Catalogue batches first, then users with train and validation as history, and test items."""
        candidates = self._candidates[1]
        return [self.catalogue(), self._ranked(self.test_users, self.known_at_test, self._test, candidates)]

    def catalogue(self, size: int = 512) -> _Batches:
        """All items, in batches."""
        parts = np.split(np.arange(self.dataset.num_items), range(size, self.dataset.num_items, size))
        return _Batches(
            len(parts),
            lambda index: ItemBatch(torch.from_numpy(parts[index]), self._texts(self.prompt.items(parts[index]))),
        )

    def _ranked(
        self,
        users: np.ndarray,
        known: Histories,
        held_out: Histories,
        candidates: Histories | None,
        size: int = 128,
        mask_seen: bool | None = None,
    ) -> _Batches:
        parts = [users[start : start + size] for start in range(0, len(users), size)]
        masked = self.mask_seen if mask_seen is None else mask_seen

        def batch(index: int) -> UserBatch:
            part = parts[index]
            outside = unavailable(self.dataset, part)
            return UserBatch(
                user=torch.from_numpy(part).long(),
                texts=self._texts(self.prompt.users(known, part)),
                seen=_pairs(known, part) if masked else _pairs(known, part[:0]),
                relevant=_pairs(held_out, part),
                candidates=None if candidates is None else _padded(candidates, part),
                unavailable=None if outside is None else torch.from_numpy(outside),
            )

        return _Batches(len(parts), batch)

    def _texts(self, texts: Ragged) -> TextBatch:
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


class _Passes:
    """Which users a batch has: passes over the trainable users, each in an order of its own.

    Args:
        balance: (num_users,) group of each user; -1 is none, and never drawn. Each pass then has equally many users
            of every group: the users of a small group come several times, those of a large one not in every pass.
    Raises:
        RecpeftError: no user is in a group.
    """

    def __init__(self, users: np.ndarray, users_per_step: int, seed: int, balance: np.ndarray | None) -> None:
        self._num_users = int(users.max()) + 1
        of_user = np.zeros(len(users), np.int64) if balance is None else balance[users]
        users, of_user = users[of_user >= 0], of_user[of_user >= 0]
        if not len(users):
            raise RecpeftError("training.balance: no user with something to learn is in a group; leave it out.")
        self._users = users
        self._users_per_step = users_per_step
        self._seed = seed
        self._per_pass = max(1, len(users) // users_per_step)
        self._groups = [users[of_user == group] for group in np.unique(of_user)]

    def users(self, index: int) -> np.ndarray:
        """(U,) of the ``index``-th batch."""
        number, place = divmod(index, self._per_pass)
        return self._order(number)[place * self._users_per_step : (place + 1) * self._users_per_step]

    def chances(self) -> np.ndarray:
        """(num_users,) how often a user is drawn, next to the mean of those that are."""
        chances = np.zeros(self._num_users)
        for group in self._groups:
            chances[group] = len(self._users) / len(self._groups) / len(group)
        return chances

    def _order(self, number: int) -> np.ndarray:
        draw = np.random.default_rng([self._seed, 3, number])
        if len(self._groups) == 1:
            return draw.permutation(self._groups[0])
        share = -(-len(self._users) // len(self._groups))
        rows = []
        for group in self._groups:
            passes = [draw.permutation(group) for _ in range(-(-share // len(group)))]
            rows.append(np.concatenate(passes)[:share])
        return np.stack(rows, axis=1).ravel()  # in turn, so that every batch is balanced


class _Batches(Sequence[Any]):
    """Batches made when they are asked for. Lightning takes a plain list for a list of loaders."""

    def __init__(self, count: int, make: Callable[[int], Any]) -> None:
        self._count = count
        self._make = make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._make(index)


def _targets(split: Split, num_users: int) -> list[np.ndarray]:
    """For each user, the places in what is known before validation that are train rows."""
    rows = split.known(at_test=False)
    bounds = offsets_of(np.bincount(rows["user"].to_numpy(), minlength=num_users))
    learnt = rows["learnt"].to_numpy()
    return [np.flatnonzero(learnt[a:b]) for a, b in itertools.pairwise(bounds.tolist())]


def _untimed(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(rating=pl.lit(None, pl.Float32), timestamp=pl.lit(None, pl.Int64))


def _pairs(of: Histories, users: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Row of ``users`` and item of each of their interactions."""
    lengths = of.offsets[users + 1] - of.offsets[users]
    rows = np.repeat(np.arange(len(users)), lengths)
    return torch.from_numpy(rows).long(), torch.from_numpy(of.item[ranges(of.offsets[users], lengths)]).long()


def _ratings(of: Histories, users: np.ndarray, items: np.ndarray) -> torch.Tensor:
    """(U, I) float32 each user's rating of ``items``, which are ascending; NaN where there is none. Of several, the
    last."""
    ratings = np.full((len(users), len(items)), np.nan, np.float32)
    for row, user in enumerate(users):
        own = slice(of.offsets[user], of.offsets[user + 1])
        place = np.searchsorted(items, of.item[own]).clip(max=len(items) - 1)
        there = items[place] == of.item[own]
        ratings[row, place[there]] = of.rating[own][there]
    return torch.from_numpy(ratings)


def _padded(of: Histories, users: np.ndarray) -> torch.Tensor:
    """(U, C) items of each user, -1 padding."""
    row, item = _pairs(of, users)
    lengths = torch.bincount(row, minlength=len(users))
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    padded = torch.full(mask.shape, -1)
    padded[mask] = item
    return padded
