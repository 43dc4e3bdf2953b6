"""The base of every source's config: where its files are, what is filtered out, how it is split."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from datamodules._filters import Filter
from recpeft.config import Config

SplitKind = Literal["per_user_temporal", "leave_one_out", "global_temporal"]


class SourceConfig(Config):
    """A source's plug-in adds its own fields; the steps after ``load`` read these."""

    source: str
    """File name of the source in ``datamodules/``, or a dotted module name."""
    path: Path | None = None
    """Folder of the files; None takes the cache that ``recpeft data fetch`` fills."""
    filters: tuple[Filter, ...] = ()
    """Applied in the order written, before the split: ``[{min_rating: 4}, {k_core: 5}]``."""
    split: SplitKind = "per_user_temporal"
    """How interactions are divided into train, validation and test; see ``datamodules/_splits.py``."""
    split_seed: int = 0
    """Seed of the hash that orders equal times."""
