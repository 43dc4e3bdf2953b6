"""The contract of reordering methods: the base of their configs, and their inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt

from datamodules._groups import GroupConfig
from recpeft.config import Config

if TYPE_CHECKING:
    from torch import Tensor


class DiversifyConfig(Config):
    """Base of every method's ``Config``."""

    method: str
    """Reordering method: the name of a file in rankers/diversify/, or a dotted module name."""
    strength: float = Field(ge=0.0, le=1.0)
    """Weight of the method against relevance: 0 keeps the order, 1 ignores relevance."""
    depth: PositiveInt = 100
    """Number of each user's best items that are reordered; later items keep their places. 100 is several
    times the length at which lists are usually cut."""

    @property
    def grouping(self) -> GroupConfig | None:
        """Return the item groups that the method needs in ``Given.item_groups``; None if it needs none."""
        return None


@dataclass(frozen=True, eq=False)
class Given:
    """Data of the catalogue and of train that a method may use, the same for all lists.

    Raises:
        ValueError: sizes do not agree, or embeddings are NaN or infinite.
    """

    categories: Tensor
    """(I, C) bool."""
    embeddings: Tensor
    """(I, D) float, of any scale."""
    profile: Tensor
    """(num_users, C) float64: each user's distribution over the categories in train, as
    ``metrics.calibration.category_profile`` returns it; zeros or NaN for a user without one."""
    train_counts: Tensor
    """(I,) int64: number of train users of each item."""
    item_groups: Tensor | None = None
    """(I, G) bool of the config's ``grouping``; an item may be in no group, or in several. None without a grouping."""
    group_names: Sequence[str] | None = None
    """Names of the G groups."""

    def __post_init__(self) -> None:
        sizes = {"categories": len(self.categories), "embeddings": len(self.embeddings)}
        sizes["train_counts"] = len(self.train_counts)
        if self.item_groups is not None:
            sizes["item_groups"] = len(self.item_groups)
        if len(set(sizes.values())) > 1:
            found = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise ValueError(f"what is given of items differs in their number: {found}; give each for all items.")
        if self.profile.shape[1] != self.categories.shape[1]:
            raise ValueError(
                f"profile has {self.profile.shape[1]} categories but the items have {self.categories.shape[1]}; "
                "make it of the same categories."
            )
        # A NaN would silently win every comparison.
        if not self.embeddings.isfinite().all():
            raise ValueError("embeddings are NaN or infinite for some items; their source has failed.")
