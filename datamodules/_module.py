"""The LightningDataModule that serves user/item text pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from datamodules._assembler import PromptAssembler
from datamodules._batching import (
    ItemBatch,
    ItemSequences,
    PairBatch,
    PositionTargets,
    TextBatch,
    UserBatch,
    bucket,
    one_bucket,
)
from datamodules._dataset import RecDataset
from datamodules._examples import Examples, InteractionExamples, UserExamples
from datamodules._examples import Kind as ExampleKind
from datamodules._histories import Histories
from datamodules._negatives import Negatives, NegativesConfig
from datamodules._prompts import Form
from datamodules._ragged import Ragged
from datamodules._rated import Rated
from datamodules._sampled import unavailable
from datamodules._sequences import PositionExamples, SequenceMaker
from datamodules._splits import Split
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextPairDataModule(LightningDataModule):
    """Serves ``PairBatch`` for training, ``ItemBatch`` and then ``UserBatch`` for evaluation.

    A training batch depends only on the seed and the step (and on the hard negatives last set), so a run that
    resumes at step n gets the same batches as an uninterrupted one. Each pass has users in a new permutation. For each
    user a moment in the train history is drawn; the items before it are the history, and up to
    ``positives_per_user`` of those after it (of the next ``positive_window`` of them), drawn without replacement,
    are the positives: the prompt never has a user's later items. With ``examples="interactions"`` a batch has
    interactions instead, each with all earlier ones as its history: a positive if liked, else a negative.
    If the split says what is liked, positives and evaluation targets are likes only.

    Of W processes under one trainer, process r takes the batches r, r + W, … of training and of the evaluated users;
    every process takes all catalogue batches.

    Args:
        dataset: items' texts and the catalogue.
        split: train, validation and test interactions, each user's rows in order of time.
        tokenizer: the backbone's tokenizer.
        examples: kind of training examples.
        users_per_step: U of a training batch: number of users, or of interactions.
        steps_per_epoch: number of batches between validations, over all processes; None is one pass over the training
            examples.
        validation_users, test_users: number of users to validate and test on, the same draw for every seed; None is
            all.
        mask_seen: leave items of the user's history out of the ranking.
        max_bucket_tokens: maximum number of tokens, padding included, that are encoded at once; None puts the texts of
            a batch into one bucket.
        negatives: negatives to draw besides the users' positives; the default is other users' positives only.
        balance: (num_users,) group of each user, -1 for none; each group then has equally many users in a batch.
        candidates: (user, item) frames of the pairs to rank in validation and test; None is the catalogue.
        rated: rank and judge only the held-out interactions, liked or not; ``candidates`` is then None.
        rolling: if ``rated``, rank each interaction after its own history, not after what is known when the part
            begins.
        cache: folder of the token cache; None keeps token ids only in memory.
        user_groups: (num_users,) group of each user, -1 for none, by name, for training batches.
        item_features: columns of the item table, with a number or a list of numbers per item, for all batches.
        form: how the formulation reads users and items; see ``PromptAssembler``.
        sequence_length: maximum number of interactions in a user's sequence, if ``form`` is ``items``.
        rated_sequences: include disliked items in sequences.
        texts_per_step: number of a batch's items that are encoded with a gradient, if ``form`` is ``items``; None is
            all, 0 none.
        prompt: fields of ``PromptConfig`` (history, instruction, item, …).
    Raises:
        RecpeftError: no user has two train interactions, or a prompt cannot be rendered.
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
        test_users: int | None = None,
        mask_seen: bool = True,
        max_bucket_tokens: int | None = 8192,
        negatives: NegativesConfig | None = None,
        balance: np.ndarray | None = None,
        candidates: tuple[pl.DataFrame, pl.DataFrame] | None = None,
        examples: ExampleKind = "users",
        rated: bool = False,
        rolling: bool = False,
        cache: Path | None = None,
        user_groups: Mapping[str, np.ndarray] | None = None,
        item_features: Sequence[str] = (),
        form: Form = "single",
        sequence_length: int = 100,
        rated_sequences: bool = False,
        texts_per_step: int | None = None,
        seed: int = 0,
        **prompt: Any,
    ) -> None:
        super().__init__()
        self.dataset = dataset
        rows = dataset.interactions
        self.prompt = PromptAssembler(
            tokenizer,
            dataset.items,
            users=dataset.users,
            interactions=rows if dataset.clock else rows.with_columns(timestamp=pl.lit(None, pl.Int64)),
            optional=dataset.optional,
            cache=cache,
            form=form,
            **prompt,
        )
        self.users_per_step = users_per_step
        self.mask_seen = mask_seen
        self.seed = seed
        self._max_bucket_tokens = max_bucket_tokens
        self._pad_id = tokenizer.pad_token_id
        # An item's text follows its user's, so padding goes to the right, where it does not come between them.
        self.padding_side = "right" if self.prompt.read_together else tokenizer.padding_side
        liked_from = None if rated_sequences else split.liked_from
        self._sequence_maker = SequenceMaker(sequence_length, liked_from) if form == "items" else None
        self._texts_per_step = texts_per_step

        self._known = Histories.of(split.known(at_test=False), dataset.num_users)
        self.known_at_test = Histories.of(split.known(at_test=True), dataset.num_users)
        self._liked = Histories.of(split.liked(split.validation), dataset.num_users)
        self._liked_at_test = Histories.of(split.liked(split.test), dataset.num_users)
        self._rated = [Rated(split, dataset.num_users, at_test=part) for part in (False, True)] if rated else None
        self._rolling = rolling
        negatives = negatives or NegativesConfig()
        self.examples: Examples | PositionExamples
        if examples == "positions":
            if self._sequence_maker is None:
                raise RecpeftError("examples: positions is for formulations that read sequences of items.")
            self.examples = PositionExamples(
                self._known,
                split,
                self._sequence_maker,
                next_items=positive_window or 1,
                users_per_step=users_per_step,
                seed=seed,
                balance=balance,
            )
        else:
            self.examples = (
                InteractionExamples(self._known, split, per_step=users_per_step, seed=seed, balance=balance)
                if examples == "interactions"
                else UserExamples(
                    self._known,
                    split,
                    users_per_step=users_per_step,
                    positives_per_user=positives_per_user,
                    positive_window=positive_window,
                    disliked_per_user=negatives.disliked,
                    seed=seed,
                    balance=balance,
                )
            )
        self.steps_per_epoch = steps_per_epoch or self.examples.per_pass
        of_parts = [split.validation, split.test] if rated else [split.liked(split.validation), split.liked(split.test)]
        self.validation_users = evaluated_users(of_parts[0], validation_users, at_test=False)
        self.test_users = evaluated_users(of_parts[1], test_users, at_test=True)
        self._candidates = tuple(
            None if frame is None else Histories.of(_untimed(frame), dataset.num_users)
            for frame in candidates or (None, None)
        )
        train_counts = np.bincount(split.train["item"].to_numpy(), minlength=dataset.num_items)
        self._negatives = Negatives(train_counts, negatives)
        self._hard: dict[int, np.ndarray] = {}
        self._user_groups = {name: torch.from_numpy(of).long() for name, of in (user_groups or {}).items()}
        self._item_features = {name: _vectors(dataset.items, name) for name in item_features}
        self._log_q = torch.from_numpy(self._negatives.log_q(*self.examples.expected(dataset.num_items))).float()

    # Training ------------------------------------------------------------------------------------

    def train_dataloader(self) -> _StepLoader:
        return _StepLoader(self.train_batch, self._position, self.steps_per_epoch)

    def _position(self) -> tuple[int, int, int]:
        """Return the first batch to serve (of this process), this process's number and the number of processes."""
        trainer = self.trainer
        if trainer is None:
            return 0, 0, 1
        # Batches, not steps: with gradient accumulation, an epoch's last step may take fewer batches.
        served = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        return served, trainer.global_rank, trainer.world_size

    @property
    def texts_are_sampled(self) -> bool:
        """True if only some of a training batch's items are encoded with a gradient."""
        return bool(self._texts_per_step)

    def train_batch(self, index: int, all_texts: bool = False) -> PairBatch:
        """Return the ``index``-th training batch of this seed.

        Args:
            all_texts: if only items are read, encode all of them with a gradient, whatever ``texts_per_step`` is.
        """
        count = None if all_texts else self._texts_per_step
        draw = np.random.default_rng([self.seed, 2, index])
        if isinstance(self.examples, PositionExamples):
            return self._positions_batch(self.examples, index, draw, count)
        drawn = self.examples.draw(index, draw)
        users = drawn.user
        sampled = np.union1d(self._negatives.draw(draw), self._hard_negatives(users, draw))
        item = np.union1d(np.concatenate([*drawn.positives, *drawn.negatives]), sampled)
        positive, negative = (
            np.stack([np.isin(item, own) for own in part]) for part in (drawn.positives, drawn.negatives)
        )
        excluded = np.stack([np.isin(item, self._known.items(user)) for user in users])
        outside = unavailable(self.dataset, users)
        if outside is not None:
            excluded |= outside[:, item]  # evaluation never ranks them against the user's own domain
        if not self._negatives.config.in_batch:
            excluded |= ~np.isin(item, sampled)  # items that are only other users' positives or negatives
        users_texts, sequences = self._users(self._known, users, drawn.moment)
        text_item = item if sequences is None else self._text_items(sequences, item, draw, count)
        return PairBatch(
            users=users_texts,
            items=self._texts(self.prompt.items(text_item)),
            item=torch.from_numpy(item).long(),
            positive=torch.from_numpy(positive),
            excluded=torch.from_numpy(excluded & ~positive & ~negative),
            log_q=self._log_q[torch.from_numpy(item).long()],
            rating=_ratings(self._known, users, item),
            user=torch.from_numpy(users).long(),
            groups={name: of[torch.from_numpy(users).long()] for name, of in self._user_groups.items()},
            item_features=self._features(item),
            sequences=sequences,
            text_item=None if sequences is None else torch.from_numpy(text_item).long(),
        )

    def _positions_batch(
        self, examples: PositionExamples, index: int, draw: np.random.Generator, texts: int | None
    ) -> PairBatch:
        """Return the ``index``-th batch of windows with targets at every position."""
        drawn = examples.draw(index, draw)
        targets = drawn.positives[drawn.positives >= 0]
        sampled = self._negatives.draw(draw)
        item = np.union1d(targets, sampled)
        example, column = (drawn.positives >= 0).nonzero()
        positive = np.zeros((len(drawn.row), len(item)), bool)
        positive[example, np.searchsorted(item, drawn.positives[example, column])] = True
        # An item that the user met at another time is not a negative; the sequence itself shows earlier ones.
        excluded = np.stack([np.isin(item, self._known.items(user)) for user in drawn.user])
        outside = unavailable(self.dataset, drawn.user)
        if outside is not None:
            excluded |= outside[:, item]
        if not self._negatives.config.in_batch:
            excluded |= ~np.isin(item, sampled)  # items that are only targets of other positions
        text_item = self._text_items(drawn.sequences, item, draw, texts)
        user = torch.from_numpy(drawn.user).long()[torch.from_numpy(drawn.row)]
        return PairBatch(
            users=_no_texts(len(drawn.user)),
            items=self._texts(self.prompt.items(text_item)),
            item=torch.from_numpy(item).long(),
            positive=torch.from_numpy(positive),
            excluded=torch.from_numpy(excluded[drawn.row] & ~positive),
            log_q=self._log_q[torch.from_numpy(item).long()],
            rating=torch.full((1, 1), torch.nan).expand(positive.shape),
            user=user,
            groups={name: of[user] for name, of in self._user_groups.items()},
            item_features=self._features(item),
            sequences=drawn.sequences,
            targets=PositionTargets(torch.from_numpy(drawn.row).long(), torch.from_numpy(drawn.place).long()),
            text_item=torch.from_numpy(text_item).long(),
        )

    def _text_items(
        self, sequences: ItemSequences, item: np.ndarray, draw: np.random.Generator, count: int | None
    ) -> np.ndarray:
        """Return the batch's items that are encoded with a gradient, (n,) ascending."""
        if count == 0:
            return item[:0]
        inputs = sequences.item[sequences.item >= 0].numpy()
        every = np.union1d(inputs, item)
        if count is None or count >= len(every):
            return every
        return np.sort(draw.choice(every, count, replace=False))

    def _users(
        self, histories: Histories, users: np.ndarray, stop: np.ndarray | None = None, **options: Any
    ) -> tuple[TextBatch, ItemSequences | None]:
        """Return the texts of ``users`` (n,), or n empty texts and their sequences."""
        if self._sequence_maker is None:
            return self._texts(self.prompt.users(histories, users, stop, **options)), None
        return _no_texts(len(users)), self._sequence_maker.of(histories, users, stop)

    def _features(self, item: np.ndarray) -> dict[str, Tensor]:
        return {name: of[torch.from_numpy(item).long()] for name, of in self._item_features.items()}

    def _hard_negatives(self, users: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        count = self._negatives.config.hard
        pools = [self._hard[user] for user in users.tolist() if count and user in self._hard]
        drawn = [draw.choice(pool, min(count, len(pool)), replace=False) for pool in pools]
        return np.concatenate([np.empty(0, np.int64), *drawn])

    @property
    def hard_refresh_epochs(self) -> int | None:
        """Number of epochs between calls of ``set_hard_pools``; None without hard negatives."""
        return self._negatives.config.hard_refresh_epochs if self._negatives.config.hard else None

    def users_to_mine(self, first: int, count: int) -> Iterator[UserBatch]:
        """Yield the users of ``count`` batches from batch ``first``, to be scored for their hard negatives.

        Their known items are masked; there are no relevant items.
        """
        users = np.unique(np.concatenate([self.examples.users(index) for index in range(first, first + count)]))
        nothing = Histories.of_items([[]] * self.dataset.num_users)
        yield from self._ranked(users, self._known, nothing, None, mask_seen=True)

    def set_hard_pools(self, pools: Mapping[int, Sequence[int]]) -> None:
        """Set, for each user, the items from which hard negatives are drawn until the next call."""
        self._hard = {user: np.asarray(pool, np.int64) for user, pool in pools.items()}

    def hard_pools(self) -> dict[int, list[int]]:
        """Return the pools last set."""
        return {user: pool.tolist() for user, pool in self._hard.items()}

    @property
    def hard_pool_size(self) -> int:
        return self._negatives.config.hard_pool

    # Evaluation ----------------------------------------------------------------------------------

    def val_dataloader(self) -> list[Sequence[Any]]:
        """Return catalogue batches, then users with the history known before validation and validation items."""
        return [self.catalogue(), self._share(self._evaluated(self.validation_users, at_test=False))]

    def test_dataloader(self) -> list[Sequence[Any]]:
        """Return catalogue batches, then users with train and validation as history, and test items."""
        return [self.catalogue(), self._share(self._evaluated(self.test_users, at_test=True))]

    def user_batches(self, users: np.ndarray, at_test: bool) -> Sequence[UserBatch]:
        """Return batches of ``users`` with their known histories, for ranking the whole catalogue."""
        known, held_out = (self.known_at_test, self._liked_at_test) if at_test else (self._known, self._liked)
        return self._ranked(users, known, held_out, None)

    def people(self, histories: Histories, rows: np.ndarray, candidates: torch.Tensor | None = None) -> UserBatch:
        """Return a batch of any people to be scored, with nothing masked and no relevant items.

        Args:
            histories: row u is the history of user u; rows after the users' are of people who are not users.
            rows: (n,) rows of ``histories`` to be scored.
            candidates: (n, C) items to be scored, -1 padding; None is the whole catalogue.
        """
        number = self.dataset.num_users
        nothing = _pairs(histories, rows[:0])
        texts, sequences = self._users(histories, rows, profiles=np.where(rows < number, rows, -1))
        return UserBatch(
            # All people who are not users share one number, so that a list does not depend on the other people.
            user=torch.from_numpy(np.minimum(rows, number)).long(),
            texts=texts,
            sequences=sequences,
            seen=nothing,
            relevant=nothing,
            candidates=candidates,
        )

    def validation_batches(self, users: np.ndarray) -> Sequence[UserBatch]:
        """Return batches of some validation users, as ``val_dataloader`` serves them."""
        return self._evaluated(users, at_test=False)

    def test_batches(self, users: np.ndarray) -> Sequence[UserBatch]:
        """Return batches of some test users, as ``test_dataloader`` serves them."""
        return self._evaluated(users, at_test=True)

    def _share(self, batches: _Batches) -> _Batches:
        """Return this process's batches.

        All processes have equally many, since they stop together at a batch's end, so the last batch may be the first
        one again, marked as repeated and not counted.
        """
        _, number, processes = self._position()
        own = range(number, len(batches), processes)
        count = -(-len(batches) // processes)
        return _Batches(
            count, lambda index: batches[own[index]] if index < len(own) else replace(batches[0], repeated=True)
        )

    def _evaluated(self, users: np.ndarray, at_test: bool) -> _Batches:
        known, held_out = (self.known_at_test, self._liked_at_test) if at_test else (self._known, self._liked)
        ranked = self._ranked(users, known, held_out, self._candidates[at_test])
        if self._rated is None:
            return ranked
        rated = self._rated[at_test]
        return _Batches(len(ranked), lambda index: self._judged(ranked[index], rated))

    def _judged(self, batch: UserBatch, rated: Rated) -> UserBatch:
        """Return the batch with its users' held-out interactions as the candidates."""
        users = batch.user.numpy()
        judged = rated.of(users)
        parts = (judged.row, judged.item, judged.liked, judged.rating)
        row, item, liked, rating = (torch.from_numpy(part) for part in parts)
        if self._rolling:
            texts, sequences = self._users(rated.histories, users[judged.row], judged.stop)
            batch = replace(batch, texts=texts, sequences=sequences, owner=row)
            return replace(batch, candidates=item[:, None], liked=liked[:, None], rating=rating[:, None])
        liked, rating = pad(row, liked, len(users), False), pad(row, rating, len(users), float("nan"))
        return replace(batch, candidates=pad(row, item, len(users), -1), liked=liked, rating=rating)

    def catalogue(self, size: int = 512) -> _Batches:
        """Return all items, in batches of ``size``."""
        parts = np.split(np.arange(self.dataset.num_items), range(size, self.dataset.num_items, size))
        return _Batches(len(parts), lambda index: self._items(parts[index]))

    def items_around(self, users: UserBatch, count: int) -> ItemBatch:
        """Return the catalogue's first ``count`` items, and those in ``users``' sequences, needed to score them."""
        first = np.arange(min(count, self.dataset.num_items))
        if users.sequences is None:
            return self._items(first)
        met = users.sequences.item
        return self._items(np.union1d(first, met[met >= 0].numpy()))

    def _items(self, item: np.ndarray) -> ItemBatch:
        return ItemBatch(torch.from_numpy(item), self._texts(self.prompt.items(item)), self._features(item))

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
            texts, sequences = self._users(known, part)
            return UserBatch(
                user=torch.from_numpy(part).long(),
                texts=texts,
                sequences=sequences,
                seen=_pairs(known, part) if masked else _pairs(known, part[:0]),
                relevant=_pairs(held_out, part),
                grade=_grades(held_out, part),
                candidates=None if candidates is None else pad(*_pairs(candidates, part), len(part), -1),
                unavailable=None if outside is None else torch.from_numpy(outside),
            )

        return _Batches(len(parts), batch)

    def _texts(self, texts: Ragged) -> TextBatch:
        if self._max_bucket_tokens is None:
            return one_bucket(texts, self._pad_id, self.padding_side)
        return bucket(texts, self._pad_id, self._max_bucket_tokens, self.padding_side)


class _StepLoader:
    """Loader of one epoch's batches, from the trainer's position: mid-epoch after a resume."""

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
        return self._steps_per_epoch // self._position()[2]

    def __iter__(self) -> Iterator[PairBatch]:
        first, number, processes = self._position()
        end = (first // len(self) + 1) * len(self)
        for index in range(first, end):
            yield self._batch(index * processes + number)


class _Batches(Sequence[Any]):
    """Sequence of batches made on access; Lightning would treat a plain list as a list of loaders."""

    def __init__(self, count: int, make: Callable[[int], Any]) -> None:
        self._count = count
        self._make = make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._make(index)


def _no_texts(count: int) -> TextBatch:
    """Return a batch of ``count`` texts without tokens."""
    return TextBatch([], count, 0)


def _vectors(items: pl.DataFrame, column: str) -> Tensor:
    """Return the numbers in ``column`` of the item table for each item, (num_items, D) float32.

    Raises:
        RecpeftError: there is no such column, or items lack numbers or differ in their count.
    """
    if column not in items.columns:
        raise RecpeftError(f"the items have no column {column}; they have {', '.join(items.columns)}.")
    values = items[column]
    if values.dtype.is_nested():
        lengths = values.to_frame().select(pl.col(column).cast(pl.List(pl.Float32), strict=False).list.len())[column]
        if lengths.null_count() or lengths.n_unique() != 1:
            raise RecpeftError(f"column {column} of the items needs equally many numbers for each item; mend the data.")
        values = values.cast(pl.List(pl.Float32)).list.to_array(int(lengths[0]))
    elif not values.dtype.is_numeric():
        raise RecpeftError(f"column {column} of the items is {values.dtype}; give a number or a list of numbers.")
    found = values.to_numpy().astype(np.float32).reshape(items.height, -1)
    if np.isnan(found).any():
        raise RecpeftError(f"column {column} of the items has a missing number; fill it in.")
    return torch.from_numpy(found)


def evaluated_users(rows: pl.DataFrame, count: int | None, at_test: bool) -> np.ndarray:
    """Return the users of held-out ``rows``, (U,) ascending; a fixed draw of ``count`` if there are more."""
    users: np.ndarray = rows["user"].unique().sort().to_numpy().astype(np.int64)
    if count is None or count >= len(users):
        return users
    return np.sort(np.random.default_rng([0, 4 if at_test else 1]).choice(users, count, replace=False))


def _untimed(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(rating=pl.lit(None, pl.Float32), timestamp=pl.lit(None, pl.Int64))


def _pairs(of: Histories, users: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the index in ``users`` and the item of each of their interactions."""
    rows, place = of.rows(users)
    return torch.from_numpy(rows).long(), torch.from_numpy(of.item[place]).long()


def _grades(of: Histories, users: np.ndarray) -> torch.Tensor | None:
    """Return the rating of each pair of ``_pairs``, (R,) float32; None if any is missing or negative."""
    rating = of.rating[of.rows(users)[1]]
    return torch.from_numpy(rating) if (rating >= 0).all() else None


def _ratings(of: Histories, users: np.ndarray, items: np.ndarray) -> torch.Tensor:
    """Return each user's last rating of ``items``, which are ascending, (U, I) float32; NaN where there is none."""
    ratings = np.full((len(users), len(items)), np.nan, np.float32)
    for row, user in enumerate(users):
        own = slice(of.offsets[user], of.offsets[user + 1])
        place = np.searchsorted(items, of.item[own]).clip(max=len(items) - 1)
        there = items[place] == of.item[own]
        ratings[row, place[there]] = of.rating[own][there]
    return torch.from_numpy(ratings)


def pad(row: torch.Tensor, value: torch.Tensor, num_rows: int, padding: Any) -> torch.Tensor:
    """Arrange the values (R,) into padded rows (num_rows, C) by their ``row`` (R,), which ascends."""
    lengths = torch.bincount(row, minlength=num_rows)
    padded = value.new_full((num_rows, int(lengths.max())), padding)
    padded[torch.arange(padded.shape[1]) < lengths[:, None]] = value
    return padded
