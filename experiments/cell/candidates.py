"""Candidate sets of each user: drawn once per study, written beside its runs, and hashed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from datamodules._dataset import frame_hash
from datamodules._sampled import sampled
from experiments.cell.allowed import AllowedItems, liked_matrix
from experiments.cell.data import Prepared
from experiments.cell.ranker import ranker_of_study, users_at_once
from experiments.cell.saved_run import check_data, finished
from experiments.cell.scorers import TextScorer
from experiments.config.evaluation import EvaluationConfig
from experiments.config.run import TextRun
from metrics._listing import Relevant, best_lists
from rankers._base import RankerConfig
from recpeft.config import digest
from recpeft.errors import RecpeftError
from recpeft.files import atomic_path, locked


@dataclass(frozen=True)
class Candidates:
    """Frozen candidate sets: frames of user and item, sorted by user and item."""

    validation: pl.DataFrame
    test: pl.DataFrame

    @property
    def frames(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return validation's and test's frame."""
        return self.validation, self.test

    @property
    def hash(self) -> str:
        """Return a hash of both frames, 16 hex digits."""
        return frame_hash(self.validation, self.test)


def frozen_candidates(
    prepared: Prepared, evaluation: EvaluationConfig, study: Path | None, keep: bool = True
) -> Candidates | None:
    """Return the candidates of ``evaluation``; None if lists rank the whole catalogue, or only the held-out items.

    Args:
        study: folder in which they are kept: the first run draws them, all others read them. None keeps none.
        keep: whether newly drawn candidates are written there.
    Raises:
        RecpeftError: a user has fewer candidates than asked for, or the file was altered.
    """
    config = evaluation.candidates
    if config.kind in ("full", "rated"):  # the held-out items are in the split
        return None
    if study is None:
        return _draw(prepared, evaluation, None, keep)
    data = [prepared.record["hash"], prepared.record["split"]["hash"]]
    # A first stage depends on what is masked, and on the metric that selects its hyper-parameters.
    first_stage = config.kind == "first_stage"
    choice = [evaluation.mask_seen, evaluation.monitor] if first_stage else [{"version": config.version}]
    path = study / f"candidates-{digest([data, config.asked_for(), choice])}.parquet"
    return _kept(path, lambda: _draw(prepared, evaluation, study, keep), prepared, keep)


def with_proposals(
    config: TextRun, prepared: Prepared, frozen: Candidates | None, study: Path | None, keep: bool = True
) -> Candidates | None:
    """Return the items that the formulation ranks: ``frozen``, or its first stage's proposals.

    The first stage chooses its proposals from ``frozen``, or from the whole catalogue where that is None.

    Args:
        frozen: result of ``frozen_candidates``.
        study, keep: see ``frozen_candidates``.
    Raises:
        RecpeftError: the first stage is no finished run of these data, or the file was altered.
    """
    formulation: Any = config.formulation
    if formulation.proposes is None:
        return frozen

    def draw() -> Candidates:
        score = _scorer(formulation.first, prepared, config.evaluation, study, keep)
        return Candidates(
            *(
                _first_stage(score, prepared, config.evaluation.mask_seen, formulation.proposes, 0, at_test, within)
                for at_test, within in enumerate(frozen.frames if frozen else (None, None))
            )
        )

    if study is None:
        return draw()
    first = formulation.first.asked_for()
    if not isinstance(formulation.first, RankerConfig):
        record = finished(formulation.first.run)[1]
        first = [record.run_id, record.test]  # a retrained run has other test values
    data = [prepared.record["hash"], prepared.record["split"]["hash"], frozen.hash if frozen else None]
    choice = [config.evaluation.mask_seen, config.evaluation.monitor, formulation.proposes]
    return _kept(study / f"proposals-{digest([data, first, choice])}.parquet", draw, prepared, keep)


def check_first_stage(config: TextRun, prepared: Prepared) -> None:
    """Raise ``RecpeftError`` if a two-stage formulation's first stage is a run that cannot propose items."""
    first = getattr(config.formulation, "first", None)
    if first is None or isinstance(first, RankerConfig):
        return
    _, record, other = finished(first.run)
    check_data(first.run, record, prepared)
    if other.formulation.list_size is not None or other.formulation.proposes is not None:
        raise RecpeftError(
            f"formulation.first.run {first.run} is of formulation {other.formulation.name}, which does not score the "
            "whole catalogue; name a run of two_tower or the like."
        )


def _kept(path: Path, draw: Callable[[], Candidates], prepared: Prepared, keep: bool) -> Candidates:
    """Return the candidates stored at ``path``; the first process that asks draws them."""
    if not keep and not path.exists():
        return draw()
    if not path.exists():
        with locked(path):
            if not path.exists():
                _write(path, draw(), prepared)
    return _read(path)


def _draw(prepared: Prepared, evaluation: EvaluationConfig, study: Path | None, keep: bool) -> Candidates:
    config = evaluation.candidates
    if config.ranker is not None:
        score = _scorer(config.ranker, prepared, evaluation, study, keep)
        return Candidates(
            *(
                _first_stage(score, prepared, evaluation.mask_seen, config.size, config.seed, at_test)
                for at_test in (False, True)
            )
        )
    assert config.kind in ("uniform", "popularity")
    frames = [
        sampled(
            prepared.dataset,
            prepared.split,
            at_test=at_test,
            size=config.size,
            seed=config.seed,
            weighting=config.kind,
        )
        for at_test in (False, True)
    ]
    return Candidates(*frames)


FirstStageScores = Callable[[Tensor, bool], Tensor]
"""Function of users (B,) and whether the scores are for test -> (B, I) scores."""


def _scorer(
    first: Any, prepared: Prepared, evaluation: EvaluationConfig, study: Path | None, keep: bool
) -> FirstStageScores:
    """Return the scoring function of a first stage.

    Args:
        first: a ranker's config, or a config that names a finished run.
        study, keep: see ``ranker_of_study``.
    """
    if isinstance(first, RankerConfig):
        ranker = ranker_of_study(first, prepared, evaluation, study, keep=keep)
        return lambda users, at_test: ranker.score(users.numpy(), liked_matrix(prepared, at_test)[users.numpy()])
    text = TextScorer(first.run, prepared, to_the_bit=True)
    return lambda users, at_test: torch.cat(
        [text.of_batch(batch) for batch in text.data.user_batches(users.numpy(), at_test)]
    )


def _first_stage(
    score: FirstStageScores,
    prepared: Prepared,
    mask_seen: bool,
    size: int,
    seed: int,
    at_test: int,
    within: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Return each user's ``size`` best items; a seeded draw breaks ties.

    Args:
        within: (user, item) pairs that may be ranked; None is the whole catalogue.
    """
    split = prepared.split
    held_out = split.liked(split.test if at_test else split.validation)
    users = torch.tensor(held_out["user"].unique().sort().to_list())
    everything, allowed = (AllowedItems(prepared, mask_seen, bool(at_test), rows) for rows in (None, within))
    frames = []
    for part in users.split(users_at_once(prepared.dataset.num_items)):
        available = int((~everything.of(part).masked).sum(1).min())
        if size > available:
            raise RecpeftError(
                f"a first stage is to give {size} items, but a user has only {available} items to be ranked that "
                "are not in the history; lower evaluation.candidates.size or formulation.size."
            )
        lists = best_lists(score(part, bool(at_test)), part, allowed.of(part), Relevant.nothing(), size, seed)
        rows = part[:, None].expand_as(lists.item)[lists.item >= 0]
        frames.append(pl.DataFrame({"user": rows.numpy(), "item": lists.item[lists.item >= 0].numpy()}))
    return pl.concat(frames).cast(pl.Int32).sort("user", "item")


def _write(path: Path, drawn: Candidates, prepared: Prepared) -> None:
    """Write the candidates with the data's own ids beside the dense ones, so that another system can rank them."""
    users = prepared.dataset.users.select("user", pl.col("raw_id").alias("user_id"))
    items = prepared.dataset.items.select("item", pl.col("raw_id").alias("item_id"))
    named = (("validation", drawn.validation), ("test", drawn.test))
    table = pl.concat(frame.with_columns(part=pl.lit(part)) for part, frame in named)
    table = table.join(users, on="user", maintain_order="left").join(items, on="item", maintain_order="left")
    with atomic_path(path) as temporary:
        table.with_columns(hash=pl.lit(drawn.hash)).write_parquet(temporary)


def _read(path: Path) -> Candidates:
    try:
        table = pl.read_parquet(path)
        validation, test = (
            table.filter(pl.col("part") == part).select("user", "item") for part in ("validation", "test")
        )
        found = Candidates(validation, test)
        whole = found.hash == table["hash"][0]
    except (pl.exceptions.PolarsError, IndexError):
        whole = False
    if not whole:
        raise RecpeftError(f"{path} is not whole or was altered; remove it, and it is drawn anew.")
    return found
