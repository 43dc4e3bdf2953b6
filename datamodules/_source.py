"""The base of every source's config: where its files are, what is filtered out, how it is split."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializeAsAny, field_validator

from datamodules._filters import Filter
from datamodules.splits._base import SplitConfig
from recpeft.config import Config
from recpeft.validation import build_plugin


class SourceConfig(Config):
    """A source's plug-in adds its own fields; the steps after ``load`` read these."""

    source: str
    """File name of the source in ``datamodules/``, or a dotted module name."""
    path: Path | None = None
    """Folder of the files; None takes the cache that ``recpeft data fetch`` fills."""
    duplicates: Literal["error", "first", "last", "keep"] = "error"
    """Where a user met an item more than once: refuse the file, keep the first or last by time, or all (music)."""
    unknown_ids: Literal["error", "drop"] = "error"
    """Interactions whose user or item is in no row of its own file: refuse the file, or drop and count them."""
    empty_text: Literal["error", "drop"] = "error"
    """Items without a title: refuse the file, or drop and count them; their interactions are unknown ids then."""
    filters: tuple[Filter, ...] = ()
    """Applied in the order written, before the split: ``[{min_rating: 4}, {k_core: 5}]``."""
    liked_from: float | None = None
    """The lowest rating that counts as liked. What is rated lower stays in histories, may be learnt as a negative
    (training.negatives.disliked, training.examples) and is never relevant; no rating is no dislike. Null takes every
    interaction that the filters leave as liked."""
    split: SerializeAsAny[SplitConfig] = Field("per_user_temporal", validate_default=True)
    """How interactions are divided: a name of ``datamodules/splits/``, or ``{kind: name, …}`` with its options."""

    @field_validator("split", mode="before")
    @classmethod
    def _split_is_a_plugin(cls, value: Any) -> Any:
        return build_plugin(
            "datamodules.splits", "kind", {"kind": value} if isinstance(value, str) else value, "data.split"
        )
