"""Fairness to items: which share of the attention groups of items get, and which they deserve.

Functions of vectors over the catalogue (:mod:`metrics.per_item`), added up over batches and processes first, and of
the groups' ``membership`` (I, G) bool; an item may be in no group, or in several (genres). They return a () float64.
Exposure is 1 / log2(rank + 1) summed over lists; short and empty lists add what they hold. Users without
relevant items take part with their lists, and add nothing to relevance. Groups for which a value is undefined
(no items, nothing relevant, no candidates) are left out; NaN where fewer than two are left.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from metrics._info import MetricInfo
from metrics.per_item import CANDIDATES, COUNTS, EXPOSURE, HITS, RELEVANT

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from torch import Tensor

    from metrics._info import Direction, Source


def of_groups(per_item: Tensor, membership: Tensor) -> Tensor:
    """Return (G,) float64: a vector over the catalogue (I,) summed over the items of each group."""
    return per_item.double() @ membership.double()


def share(per_item: Tensor, membership: Tensor) -> Tensor:
    """Share of each group in the sum over all groups: of the exposure, of train interactions, of the catalogue.

    Returns:
        (G,) float64, summing to 1; nearer to the target share is fairer. NaN where there is nothing to share.
    """
    sums = of_groups(per_item, membership)
    return sums / sums.sum()


def exposure_ratio(exposure: Tensor, membership: Tensor) -> Tensor:
    """Lowest over highest mean exposure per catalogue item of the groups; in [0, 1], higher is fairer.

    min_g / max_g of (sum_{i in g} exposure_i) / |I_g|: demographic parity of Singh & Joachims 2018.
    """
    return _ratio(of_groups(exposure, membership) / membership.sum(0))


def disparate_treatment_ratio(exposure: Tensor, relevant: Tensor, membership: Tensor) -> Tensor:
    """Lowest over highest exposure per relevant pair of the groups; at least 0, higher is fairer.

    min_g / max_g of (sum_{i in g} exposure_i) / (number of held-out pairs in g): exposure in proportion to
    merit, Singh & Joachims 2018.

    Args:
        exposure: (I,) float64.
        relevant: (I,) int64, number of users to whom each item is relevant.
        membership: (I, G) bool.
    """
    return _ratio(of_groups(exposure, membership) / of_groups(relevant, membership))


def exposure_kl(exposure: Tensor, target: Tensor | None, membership: Tensor) -> Tensor:
    """KL(target || exposure share) in nats over the groups; at least 0, lower is fairer.

    sum_g t(g) ln(t(g) / s(g)), Kullback & Leibler 1951. Infinite where a group with a target gets no exposure,
    NaN of one group.

    Args:
        exposure: (I,) float64.
        target: (I,), what the share should be of: ``train_counts`` for that of train; None is the catalogue's.
        membership: (I, G) bool.
    """
    import torch

    due = torch.ones(len(membership), device=membership.device) if target is None else target
    aim, found = share(due, membership), share(exposure, membership)
    divergence = (torch.xlogy(aim, aim) - torch.xlogy(aim, found)).sum().clamp(min=0)
    return divergence if len(aim) > 1 else divergence.new_tensor(math.nan)


def inequity_of_attention(exposure: Tensor, relevant: Tensor) -> Tensor:
    """Distance of items' shares of the attention from their shares of the relevance; in [0, 2], lower is fairer.

    sum_i |exposure_i / sum exposure - relevant_i / sum relevant|, amortised over all users; Biega et al. 2018.
    NaN where nothing is listed or nothing relevant.
    """
    return (exposure / exposure.sum() - relevant.double() / relevant.sum()).abs().sum()


def ranking_statistical_parity(counts: Tensor, candidates: Tensor, membership: Tensor) -> Tensor:
    """RSP: relative spread of the groups' probability to be recommended; at least 0, lower is fairer.

    std_g / mean_g (population) of P(g) = (listed items of g) / sum_u |items of g that u's list could hold|; Zhu et al.
    2020. Where lists leave out what users have seen, these are Elliot's candidates.

    Args:
        counts: (I,) int64, number of lists that hold each item.
        candidates: (I,) int64, number of users in whose list it could stand; :func:`metrics.per_item.candidates`.
        membership: (I, G) bool.
    """
    return _relative_spread(of_groups(counts, membership) / of_groups(candidates, membership))


def ranking_equal_opportunity(hits: Tensor, relevant: Tensor, membership: Tensor) -> Tensor:
    """REO: relative spread of the groups' true positive rates; at least 0, lower is fairer.

    std_g / mean_g (population) of P(g) = (hits of g) / (relevant pairs of g); Zhu et al. 2020.

    Args:
        hits: (I,) int64, number of lists in which each item is a hit.
        relevant: (I,) int64, number of users to whom it is relevant.
        membership: (I, G) bool.
    """
    return _relative_spread(of_groups(hits, membership) / of_groups(relevant, membership))


def item_equal_opportunity_gap(hits: Tensor, relevant: Tensor, membership: Tensor) -> Tensor:
    """Highest minus lowest true positive rate of the groups; in [0, 1], lower is fairer.

    max_g - min_g of (hits of g) / (relevant pairs of g); Hardt et al. 2016. Arguments as
    :func:`ranking_equal_opportunity`.
    """
    rates = _defined(of_groups(hits, membership) / of_groups(relevant, membership))
    return rates.amax() - rates.amin()


def _defined(rates: Tensor) -> Tensor:
    """Return the rates that are not NaN; a single NaN if fewer than two are left."""
    rates = rates[rates.isfinite()]
    return rates if len(rates) > 1 else rates.new_full((1,), math.nan)


def _ratio(rates: Tensor) -> Tensor:
    rates = _defined(rates)
    return rates.amin() / rates.amax()


def _relative_spread(rates: Tensor) -> Tensor:
    rates = _defined(rates)
    return rates.std(correction=0) / rates.mean()


def _of_groups(
    name: str, function: Callable[..., Tensor], direction: Direction, inputs: dict[str, Source], **more: Any
) -> MetricInfo:
    inputs = inputs | {"membership": "item_groups"}
    return MetricInfo(name, function, direction, "groups", "item_groups", inputs, **more)


METRICS = (
    _of_groups("exposure_share", share, "0", {"per_item": EXPOSURE}, per_group=True),
    _of_groups("exposure_ratio", exposure_ratio, "+", {"exposure": EXPOSURE}),
    _of_groups("exposure_kl_catalogue", exposure_kl, "-", {"exposure": EXPOSURE}, options={"target": None}),
    _of_groups("exposure_kl_train", exposure_kl, "-", {"exposure": EXPOSURE, "target": "train_counts"}),
    _of_groups("exposure_dtr", disparate_treatment_ratio, "+", {"exposure": EXPOSURE, "relevant": RELEVANT}),
    _of_groups(
        "rsp",
        ranking_statistical_parity,
        "-",
        {"counts": COUNTS, "candidates": CANDIDATES},
        also_needs=("history",),
    ),
    _of_groups("reo", ranking_equal_opportunity, "-", {"hits": HITS, "relevant": RELEVANT}),
    _of_groups("item_eo_gap", item_equal_opportunity_gap, "-", {"hits": HITS, "relevant": RELEVANT}),
    MetricInfo("iaa", inequity_of_attention, "-", "items", "sums", {"exposure": EXPOSURE, "relevant": RELEVANT}),
)
