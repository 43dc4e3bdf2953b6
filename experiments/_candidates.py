"""What each user's list is chosen from: drawn once for a study, written beside its runs, and hashed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch

from datamodules._candidates import sampled, unavailable
from datamodules._dataset import frame_hash
from experiments._data import Prepared
from experiments._ranker_run import fit_ranker, known_matrix
from experiments.config import CandidatesConfig, EvaluationConfig
from metrics import rank
from rankers._base import Ranker
from recpeft.config import digest
from recpeft.errors import RecpeftError
from recpeft.files import atomic_path, locked


@dataclass(frozen=True)
class Candidates:
    """Frozen candidate sets: frames of user and item, by user and item."""

    validation: pl.DataFrame
    test: pl.DataFrame

    @property
    def hash(self) -> str:
        """16 hex digits."""
        return frame_hash(self.validation, self.test)


def frozen_candidates(prepared: Prepared, evaluation: EvaluationConfig, study: Path | None) -> Candidates | None:
    """The candidates of ``evaluation``; None for the whole catalogue.

    Args:
        study: the folder in which they are kept: the first run draws them, all others read them. None keeps none.
    Raises:
        RecpeftError: a user has fewer candidates than asked for, or the file was altered.
    """
    config = evaluation.candidates
    if config.kind == "full":
        return None
    if study is None:
        return _draw(prepared, evaluation, config)
    data = [prepared.record["hash"], prepared.record["split"]["hash"]]
    # A first stage depends on what is masked, and on the metric that its hyper-parameters are chosen by.
    choice = [evaluation.mask_seen, evaluation.monitor] if config.kind == "first_stage" else []
    path = study / f"candidates-{digest([data, config.model_dump(mode='json'), choice])}.parquet"
    if not path.exists():
        with locked(path):
            if not path.exists():
                drawn = _draw(prepared, evaluation, config)
                _write(path, drawn, prepared)
    return _read(path)


def _draw(prepared: Prepared, evaluation: EvaluationConfig, config: CandidatesConfig) -> Candidates:
    parts = prepared.split
    ranker = None if config.ranker is None else fit_ranker(config.ranker, prepared, evaluation)
    frames = []
    for at_test, held_out in ((False, parts.validation), (True, parts.test)):
        known = parts.known(at_test=at_test)
        if ranker is not None:
            frames.append(_first_stage(ranker, prepared, evaluation, config, held_out, at_test))
        else:
            assert config.kind in ("uniform", "popularity")
            frames.append(
                sampled(
                    prepared.dataset,
                    parts,
                    held_out,
                    known,
                    size=config.size,
                    seed=config.seed,
                    weighting=config.kind,
                )
            )
    return Candidates(*frames)


def _first_stage(
    ranker: Ranker,
    prepared: Prepared,
    evaluation: EvaluationConfig,
    config: CandidatesConfig,
    held_out: pl.DataFrame,
    at_test: bool,
) -> pl.DataFrame:
    """The ``size`` best of the ranker for each user; a seeded draw decides between equal ones."""
    history = known_matrix(prepared, at_test)
    nothing = torch.empty(0, dtype=torch.int64)
    frames = []
    for part in torch.tensor(held_out["user"].unique().sort().to_list()).split(1024):
        masked = history[part].bool() & evaluation.mask_seen
        outside = unavailable(prepared.dataset, part.numpy())
        if outside is not None:
            masked |= torch.from_numpy(outside)
        available = int((~masked).sum(1).min())
        if config.size > available:
            raise RecpeftError(
                f"evaluation.candidates.size is {config.size}, but a user has only {available} items to be ranked that "
                "are not in the history; lower it."
            )
        lists = rank(ranker.score(history[part]), part, masked, (nothing, nothing), config.size, config.seed)
        rows = part[:, None].expand_as(lists.item)
        frames.append(pl.DataFrame({"user": rows.flatten().numpy(), "item": lists.item.flatten().numpy()}))
    return pl.concat(frames).cast(pl.Int32).sort("user", "item")


def _write(path: Path, drawn: Candidates, prepared: Prepared) -> None:
    """With the ids of the data's own beside the dense ones, so that another system can rank the same."""
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
