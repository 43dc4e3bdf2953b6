"""Diversity: how different the items of one list are, and the lists of different users.

Functions of lists with ``item`` (U, K), -1 is padding, and of item features; they return (U,) float64. Short
lists are judged by what they hold; an empty list is NaN. Relevance plays no part except in :func:`alpha_ndcg`,
and ties were decided by :func:`metrics.rank`'s draw. All raise ValueError where ``k`` exceeds K.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from metrics._info import Derived, MetricInfo, same
from metrics._weights import at_items, inverse_length, log_discount, unless_empty
from metrics.per_item import COSINE_WEIGHTS, NUM_LISTS

if TYPE_CHECKING:
    from torch import Tensor

    from metrics._lists import RankedLists


def ild_cosine(lists: RankedLists, k: int, embeddings: Tensor) -> Tensor:
    """Intra-list diversity: mean cosine distance of the items' embeddings over unordered pairs.

    2 / (m (m - 1)) sum_{i<j} (1 - cos(e_i, e_j)) over the m listed items; Smyth & McClave 2001, Ziegler et
    al. 2005. Computed without the pairs: with unit vectors e the cosines sum to |sum e|^2 - sum |e|^2, twice.
    A list of one item gives 0; an embedding of zeros has cosine 0 with all.

    Args:
        lists: item (U, K), -1 is padding.
        embeddings: (I, D), of one fixed source for all models compared; any scale.
    Returns:
        (U,) float64 in [0, 2], higher is more diverse; NaN for an empty list.
    Raises:
        ValueError: ``k`` exceeds K.
    """
    import torch

    top = lists.top(k)
    vectors = at_items(top, embeddings)
    scale = inverse_length(vectors)
    # |sum e|^2 less the items' own |e|^2, which are 1 but for embeddings of zeros.
    doubled = torch.einsum("uk,ukd->ud", scale, vectors).square().sum(1) - (scale > 0).sum(1)
    size = top.listed.sum(1)
    mean = 1 - doubled / (size * (size - 1)).clamp(min=1)
    # Equal vectors may come out at -1e-16.
    return unless_empty(top, mean.clamp(min=0).masked_fill(size == 1, 0))


def ild_jaccard(lists: RankedLists, k: int, categories: Tensor) -> Tensor:
    """Intra-list diversity: mean Jaccard distance of the items' category sets over unordered pairs.

    2 / (m (m - 1)) sum_{i<j} (1 - |G_i & G_j| / |G_i | G_j|) over the m listed items; Smyth & McClave 2001.
    A list of one item gives 0, an empty list NaN; short lists are averaged over the pairs they have.
    Two items without any category have distance 0. Relevance plays no part, and ties were decided by
    :func:`metrics.rank`'s draw.

    Args:
        lists: item (U, K), -1 is padding.
        categories: (I, C) bool, the categories of each item.
    Returns:
        (U,) float64 in [0, 1], higher is more diverse.
    Raises:
        ValueError: ``k`` exceeds K.
    """
    import torch

    top = lists.top(k)
    common, size = _overlap(top, categories)
    union = size[:, :, None] + size[:, None, :] - common
    return _mean_over_pairs(top, torch.where(union > 0, 1 - common / union, 0))


def ild_hamming(lists: RankedLists, k: int, categories: Tensor) -> Tensor:
    """Intra-list diversity: mean Hamming distance of the items' category bits over unordered pairs.

    2 / (m (m - 1)) sum_{i<j} |G_i ^ G_j|, the number of categories that only one of the two has; Smyth &
    McClave 2001. Conventions and shapes as :func:`ild_jaccard`.

    Returns:
        (U,) float64 in [0, C], higher is more diverse.
    """
    top = lists.top(k)
    common, size = _overlap(top, categories)
    return _mean_over_pairs(top, size[:, :, None] + size[:, None, :] - 2 * common)


def category_shares(lists: RankedLists, k: int, categories: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return (U, C) float64: the list's distribution over categories, q(g) = mean_i 1[g in G_i] / |G_i|.

    Steck 2018. Items without a category are passed over; NaN where no listed item has one.

    Args:
        categories: (I, C) bool, or shares of any scale.
        weight: (k,) of each rank; None weighs all ranks the same.
    """
    top = lists.top(k)
    share = at_items(top, per_item_shares(categories))
    if weight is not None:
        share = share * weight[:, None]
    total = share.sum(1)
    return total / total.sum(1, keepdim=True)


def category_entropy(lists: RankedLists, k: int, categories: Tensor, normalised: bool = False) -> Tensor:
    """Shannon entropy of the list's distribution over categories, in bits.

    -sum_g q(g) log2 q(g) with q of :func:`category_shares`; Shannon 1948. With one label an item (a one-hot
    ``categories``) q is the share of the places.

    Args:
        lists: item (U, K), -1 is padding.
        categories: (I, C) bool.
        normalised: divide by log2 C, so that an even list has 1.
    Returns:
        (U,) float64 in [0, log2 C], higher is more diverse; NaN where no listed item has a category.
    """
    import torch

    q = category_shares(lists, k, categories)
    entropy = -torch.xlogy(q, q).sum(1) / math.log(2)
    return entropy / math.log2(categories.shape[1]) if normalised else entropy


def category_coverage(
    lists: RankedLists, k: int, categories: Tensor, over: Literal["categories", "k"] = "categories"
) -> Tensor:
    """Share of the categories that at least one listed item has, |union of G_i| / C.

    ``over="k"`` divides the number of distinct categories by k, for short lists too, which is what RePlay's
    CategoricalDiversity does with one label an item.

    Args:
        lists: item (U, K), -1 is padding.
        categories: (I, C) bool.
    Returns:
        (U,) float64, at least 0, higher is more diverse; NaN for an empty list.
    """
    top = lists.top(k)
    distinct = (at_items(top, categories) > 0).any(1).sum(1).double()
    return unless_empty(top, distinct / (categories.shape[1] if over == "categories" else k))


def category_autocorrelation(lists: RankedLists, k: int, categories: Tensor, lag: int = 1) -> Tensor:
    """Similarity of the categories of items ``lag`` ranks apart, beyond the list's own mix.

    sum_r (v_r - m) . (v_{r+lag} - m) / sum_r |v_r - m|^2, the sample autocorrelation (Box & Jenkins 1970) of
    the shares v_r(g) = 1[g in G] / |G| of the item at rank r, with m their mean over the list. Runs of one
    category give values up to 1, alternation negative ones.

    Args:
        lists: item (U, K), -1 is padding; places that hold no item are passed over.
        categories: (I, C) bool.
        lag: at least 1.
    Returns:
        (U,) float64 in [-1, 1], lower is better mixed; NaN for lists of at most ``lag`` items or of one mix.
    Raises:
        ValueError: ``k`` exceeds K, ``lag`` is below 1.
    """
    import torch

    if lag < 1:
        raise ValueError(f"lag is {lag}; it must be at least 1.")
    top = lists.top(k)
    size = top.listed.sum(1)
    # Items to the front, in their order, so that a place that holds none does not stand between two.
    order = (~top.listed).long().sort(dim=1, stable=True).indices
    share = at_items(top, per_item_shares(categories)).gather(1, order[:, :, None].expand(-1, -1, categories.shape[1]))
    inside = (torch.arange(k, device=size.device) < size[:, None])[:, :, None]
    centred = torch.where(inside, share - share.sum(1, keepdim=True) / size[:, None, None], 0)
    power = centred.square().sum((1, 2))
    # Below rounding the list has one mix only.
    power = power.masked_fill((power < 1e-20) | (size <= lag), math.nan)
    return (centred[:, :-lag] * centred[:, lag:]).sum((1, 2)) / power


def alpha_ndcg(
    lists: RankedLists, k: int, categories: Tensor, alpha: float = 0.5, without_relevant: float = math.nan
) -> Tensor:
    """Redundancy-aware nDCG: a category that earlier hits had gains less each time.

    sum_r gain_r / log2(r+1) with gain_r = sum_{g in G of a hit at r} (1 - alpha)^(earlier hits with g), over
    the same sum for the ideal list; Clarke et al. 2008. The subtopics are the categories of the user's
    relevant items. The ideal is built greedily from the relevant items (the exact one is NP-hard), ties by
    lowest id. A short list's missing places are misses, an empty list scores 0.

    Args:
        lists: hit (U, K), relevant.
        categories: (I, C) bool.
        alpha: how much a repetition loses; 0 counts all.
        without_relevant: value of users without relevant items.
    Returns:
        (U,) float64, at least 0, higher is better, NaN without relevant items and where none of them has a
        category. Above 1 where the greedy ideal is not the best.
    Raises:
        ValueError: ``k`` exceeds K, or the lists do not say what is relevant.
    """
    top = lists.top(k)
    if top.relevant is None:
        raise ValueError("the lists do not say what is relevant; make them with rank() or match().")
    discount = log_discount(k, top.hit.device)
    table = categories.double()
    subtopics = table[top.item.clamp(min=0)] * top.hit[:, :, None]
    # What each subtopic still gains: a factor 1 - alpha for each earlier hit with it.
    left = _factor(subtopics, alpha).cumprod(1).roll(1, dims=1)
    left[:, 0] = 1
    gained = (left * subtopics).sum(2) @ discount
    ideal = _greedy_ideal(top.relevant, len(top.user), k, table, alpha, discount)
    return (gained / ideal).masked_fill(top.num_relevant == 0, without_relevant)


def _greedy_ideal(
    relevant: tuple[Tensor, Tensor], num_users: int, k: int, table: Tensor, alpha: float, discount: Tensor
) -> Tensor:
    """Return (U,) float64: alpha-DCG of the greedily ordered relevant items, one step per rank for all users."""
    import torch

    row, item = relevant
    subtopics = table[item]  # (R, C); pairs ascend, so a user's lowest id is their first
    left = subtopics.new_ones(num_users, table.shape[1])
    factor = _factor(subtopics, alpha)
    taken = torch.zeros(len(row), dtype=torch.bool, device=row.device)
    position = torch.arange(len(row), device=row.device)
    total = subtopics.new_zeros(num_users)
    for rank in range(min(k, int(torch.bincount(row).amax()) if len(row) else 0)):
        gain = (left[row] * subtopics).sum(1).masked_fill(taken, -1)
        best = torch.full_like(total, -1).scatter_reduce(0, row, gain, "amax")
        # The same powers multiplied or summed in another order may differ in the last bit: that is a tie.
        ties = (gain >= best[row] - 1e-12) & ~taken
        first = row.new_full((num_users,), len(row)).scatter_reduce(0, row[ties], position[ties], "amin")
        chosen = first[first < len(row)]
        total.index_add_(0, row[chosen], gain[chosen] * discount[rank])
        left[row[chosen]] *= factor[chosen]  # one item a user, so no row stands twice
        taken[chosen] = True
    return total


def _factor(subtopics: Tensor, alpha: float) -> Tensor:
    import torch

    return torch.where(subtopics > 0, 1 - alpha, 1.0).double()


def inter_list_diversity(cosine_weights: Tensor, num_lists: Tensor) -> Tensor:
    """Difference between the lists of different users: 1 - mean cosine of two users' 0/1 list vectors.

    1 - mean_{u<v} |L_u & L_v| / sqrt(|L_u| |L_v|), which is |L_u & L_v| / k for full lists (Zhou et al. 2010's
    personalisation). Without the pairs: with y_i = sum over the U lists that hold i of 1 / sqrt(|L_u|) the
    cosines of all ordered pairs sum to sum_i y_i^2 - U. Empty lists are left out.

    Args:
        cosine_weights: (I,) float64, y, summed over batches and processes; :func:`metrics.per_item.cosine_weights`.
        num_lists: () int64, U, lists that are not empty.
    Returns:
        () float64 in [0, 1], higher is more diverse; NaN for fewer than two lists.
    """
    pairs = num_lists * (num_lists - 1.0)
    return 1 - (cosine_weights.square().sum() - num_lists) / pairs.masked_fill(pairs <= 0, math.nan)


def per_item_shares(categories: Tensor) -> Tensor:
    """Return (I, C) float64: 1 / |G_i| for each category of the item; zeros for an item without any."""
    shares = categories.double()
    return shares / shares.sum(1, keepdim=True).clamp(min=1e-300)


def one_label(main_category: Tensor) -> Tensor:
    """Return (I, C) bool: one column for each label of ``main_category`` (I,), in which -1 is no label."""
    import torch

    return main_category[:, None] == torch.arange(int(main_category.max()) + 1, device=main_category.device)


MAIN_CATEGORIES = Derived(one_label, same("main_category"))


def _overlap(top: RankedLists, categories: Tensor) -> tuple[Tensor, Tensor]:
    """Return the numbers of common categories (U, k, k) and of each item's categories (U, k)."""
    sets = at_items(top, categories)  # (U, k, C)
    return sets @ sets.transpose(1, 2), sets.sum(2)


def _mean_over_pairs(top: RankedLists, distance: Tensor) -> Tensor:
    """Return the mean (U,) of ``distance`` (U, k, k) over pairs of listed items; 0 for one item, NaN for none."""
    import torch

    listed = top.listed
    # Only the upper triangle: each pair once, no item with itself.
    pair = (listed[:, :, None] & listed[:, None, :]).triu(diagonal=1)
    return unless_empty(top, torch.where(pair, distance, 0).sum((1, 2)) / pair.sum((1, 2)).clamp(min=1))


METRICS = (
    MetricInfo("alpha_ndcg", alpha_ndcg, "+", "relevant", inputs=same("categories")),
    MetricInfo("ild_cosine", ild_cosine, "+", "listed", inputs=same("embeddings")),
    MetricInfo("ild_jaccard", ild_jaccard, "+", "listed", inputs=same("categories")),
    MetricInfo("ild_hamming", ild_hamming, "+", "listed", inputs=same("categories")),
    MetricInfo("category_entropy", category_entropy, "+", "listed", inputs=same("categories")),
    MetricInfo("category_entropy_single", category_entropy, "+", "listed", inputs={"categories": MAIN_CATEGORIES}),
    MetricInfo("category_coverage", category_coverage, "+", "listed", inputs=same("categories")),
    MetricInfo(
        "category_per_slot_single",
        category_coverage,
        "+",
        "listed",
        inputs={"categories": MAIN_CATEGORIES},
        options={"over": "k"},
    ),
    MetricInfo("category_autocorrelation", category_autocorrelation, "-", "listed", inputs=same("categories")),
    MetricInfo(
        "inter_list_diversity",
        inter_list_diversity,
        "+",
        "items",
        "sums",
        {"cosine_weights": COSINE_WEIGHTS, "num_lists": NUM_LISTS},
    ),
)
