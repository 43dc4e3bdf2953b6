"""The base of every source's config: location of the files, filters and split."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializeAsAny, field_validator

from datamodules._filters import Filter
from datamodules.splits._base import SplitConfig
from recpeft.config import Config
from recpeft.validation import build_plugin


class SourceConfig(Config):
    """Base of each source's ``Config``, with the fields for the steps after ``load``; plug-ins add their own fields."""

    source: str
    """File name of the source in ``datamodules/``, or a dotted module name."""
    path: Path | None = None
    """Folder of the files; None takes the cache that ``recpeft data fetch`` fills."""
    duplicates: Literal["error", "first", "last", "keep"] = "error"
    """Rule for repeated user-item pairs: refuse the file, keep the first or last by time, or keep all (music)."""
    unknown_ids: Literal["error", "drop"] = "error"
    """Rule for interactions whose user or item is not in its own file: refuse the file, or drop and count them."""
    empty_text: Literal["error", "drop"] = "error"
    """Rule for items without a title: refuse the file, or drop and count them; their interactions are unknown ids."""
    filters: tuple[Filter, ...] = ()
    """Filters, applied in the order written, before the split: ``[{min_rating: 4}, {k_core: 5}]``."""
    liked_from: float | None = None
    """Lowest rating that counts as liked. Interactions rated lower stay in histories, may be learnt as negatives
    (training.negatives.disliked, training.examples) and are never relevant; a missing rating counts as liked. Null
    treats every interaction that passes the filters as liked."""
    split: SerializeAsAny[SplitConfig] = Field("per_user_temporal", validate_default=True)
    """Split of the interactions: a name of ``datamodules/splits/``, or ``{kind: name, …}`` with its options."""

    @field_validator("split", mode="before")
    @classmethod
    def _split_is_a_plugin(cls, value: Any) -> Any:
        return build_plugin(
            "datamodules.splits", "kind", {"kind": value} if isinstance(value, str) else value, "data.split"
        )
