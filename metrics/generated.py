"""Generated lists, before they are matched: whether the slots hold items, enough of them, and no repetitions.

Functions of raw ids (U, K) as a language model gave them, best first: -1 where nothing was generated, an id of the
catalogue, or any other id (below -1 or num_items and above) for text that names no item; give different texts
different ids, as repetitions are told by id. Relevance plays no part and nothing is tied. Slots beyond ``k`` are
not looked at. All raise ValueError where ``k`` exceeds K.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from metrics._info import MetricInfo

if TYPE_CHECKING:
    from torch import Tensor


def valid_ratio(item: Tensor, k: int, num_items: int) -> Tensor:
    """Share of the generated slots that hold an item of the catalogue, one value per list.

    Over all lists it is a share of slots, not a mean over lists: sum of :func:`valid_slots` over sum of
    :func:`generated_slots`, which is :func:`valid_share`.

    Returns:
        (U,) float64 in [0, 1], higher is better; NaN where nothing was generated.
    """
    return valid_slots(item, k, num_items).double() / generated_slots(item, k)


def valid_share(valid: Tensor, generated: Tensor) -> Tensor:
    """Share of all generated slots that hold an item of the catalogue, so that every slot counts the same.

    Args:
        valid: :func:`valid_slots`, (U,) or summed over batches and processes.
        generated: :func:`generated_slots`, likewise.
    Returns:
        () float64 in [0, 1], higher is better; NaN where nothing was generated.
    """
    return valid.sum().double() / generated.sum()


def sufficient(item: Tensor, k: int) -> Tensor:
    """Share of the ``k`` slots that were generated, whatever they hold: (U,) float64 in [0, 1], higher is better."""
    return generated_slots(item, k).double() / k


def unrepeated(item: Tensor, k: int) -> Tensor:
    """Number of distinct ids over the number of generated slots.

    Returns:
        (U,) float64 in (0, 1], higher is better; NaN where nothing was generated.
    """
    return generated_slots(item.masked_fill(repeated(item), -1), k).double() / generated_slots(item, k)


def generated_slots(item: Tensor, k: int) -> Tensor:
    """Return (U,) int64: number of slots in which something was generated."""
    return (_top(item, k) != -1).sum(1)


def valid_slots(item: Tensor, k: int, num_items: int) -> Tensor:
    """Return (U,) int64: number of slots that hold an item of the catalogue."""
    return _in_catalogue(_top(item, k), num_items).sum(1)


def repeated(item: Tensor) -> Tensor:
    """Return (U, K) bool: True if the id occurs earlier in the list too."""
    import torch

    ordered, order = item.sort(dim=1, stable=True)
    again = torch.zeros_like(item, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(again).scatter(1, order, again) & (item != -1)


def as_misses(item: Tensor, num_items: int, keep: Literal["place", "order"] = "place") -> Tensor:
    """Return lists for :func:`metrics.match`, with -1 for repetitions and for ids that are not items.

    Args:
        item: (U, K) int64 raw ids.
        num_items: size of the catalogue.
        keep: ``place`` leaves the slot empty, so that it counts as a miss at its rank; ``order`` moves later
            items up.
    Returns:
        (U, K) int64.
    """
    kept = _in_catalogue(item, num_items) & ~repeated(item)
    cleaned = item.masked_fill(~kept, -1)
    return cleaned if keep == "place" else cleaned.gather(1, (~kept).long().sort(dim=1, stable=True).indices)


def _in_catalogue(item: Tensor, num_items: int) -> Tensor:
    return (item >= 0) & (item < num_items)


def _top(item: Tensor, k: int) -> Tensor:
    if not 1 <= k <= item.shape[1]:
        raise ValueError(f"k is {k} but the lists hold {item.shape[1]} slots.")
    return item[:, :k]


METRICS = tuple(
    MetricInfo(name, function, "+", "all", "generated")
    for name, function in (("valid_ratio", valid_share), ("sufficient", sufficient), ("unrepeated", unrepeated))
)
