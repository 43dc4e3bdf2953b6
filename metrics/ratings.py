"""Ratings: how far predictions are from what users said, pair by pair.

Functions of all held-out pairs, (P,) each, returning a () float64. Every pair counts the same, whoever's it is;
lists, short or not, play no part, and nothing is ranked except in :func:`auc`, where ties count half. NaN without
pairs. Where labels are 0 or 1, a threshold turns probabilities into decisions: choose it on validation by
:func:`best_threshold`, never on test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from metrics._info import MetricInfo, same

if TYPE_CHECKING:
    from torch import Tensor


def mae(predicted: Tensor, rating: Tensor) -> Tensor:
    """Mean absolute error; at least 0, lower is better."""
    return (predicted.double() - rating.double()).abs().mean()


def mse(predicted: Tensor, rating: Tensor) -> Tensor:
    """Mean squared error; at least 0, lower is better."""
    return (predicted.double() - rating.double()).square().mean()


def rmse(predicted: Tensor, rating: Tensor) -> Tensor:
    """Root of the mean squared error, over all pairs at once; at least 0, lower is better."""
    return mse(predicted, rating).sqrt()


def accuracy(probability: Tensor, label: Tensor, threshold: float) -> Tensor:
    """Share of right decisions, ``probability >= threshold`` against the label; in [0, 1], higher is better."""
    return ((probability >= threshold) == label.bool()).double().mean()


def precision(probability: Tensor, label: Tensor, threshold: float) -> Tensor:
    """Share of the positive decisions that are right; in [0, 1], higher is better; NaN without positive decisions."""
    return label.bool()[probability >= threshold].double().mean()


def recall(probability: Tensor, label: Tensor, threshold: float) -> Tensor:
    """Share of the positive pairs that are found; in [0, 1], higher is better; NaN without positive pairs."""
    return (probability >= threshold)[label.bool()].double().mean()


def f1(probability: Tensor, label: Tensor, threshold: float) -> Tensor:
    """Harmonic mean of precision and recall, 2 found / (decided + positive); in [0, 1], higher is better; NaN where
    nothing is positive or decided to be."""
    decided, positive = probability >= threshold, label.bool()
    return 2 * (decided & positive).sum().double() / (decided.sum() + positive.sum())


def auc(score: Tensor, liked: Tensor, weight: Tensor | None = None) -> Tensor:
    """Area under the ROC curve: the chance that a liked pair is scored above one that is not, a tie being half.

    Mann & Whitney's U over the number of pairs of the two classes (Hanley & McNeil 1982), exact, on the scores as
    they are: a sigmoid before it would tie large ones. In [0, 1], higher is better; NaN where there is but one class.

    Args:
        score: (R,).
        liked: (R,) bool, or 0 and 1.
        weight: (B, R) how often each pair counts, B times; None counts each once.
    Returns:
        () float64, or (B,).
    """
    import torch

    liked = liked.bool()
    place = score.unique(return_inverse=True)[1]
    once = torch.ones(1, len(score), dtype=torch.float64, device=score.device)
    weights = once if weight is None else weight.double()
    zeros = weights.new_zeros(len(weights), int(place.max()) + 1 if len(place) else 1)
    good, bad = (zeros.index_add(1, place[chosen], weights[:, chosen]) for chosen in (liked, ~liked))
    below = bad.cumsum(dim=1) - bad / 2
    found = (good * below).sum(dim=1) / (good.sum(dim=1) * bad.sum(dim=1))  # 0 / 0 is NaN
    return found[0] if weight is None else found


def log_loss(probability: Tensor, label: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats; at least 0, lower is better; infinite for a sure and wrong prediction."""
    import torch

    p, y = probability.double(), label.double()
    return -(torch.xlogy(y, p) + torch.xlogy(1 - y, 1 - p)).mean()


def calibration_error(probability: Tensor, label: Tensor, bins: int = 15) -> Tensor:
    """Expected calibration error: mean distance of confidence and outcome over even bins, weighted by their pairs.

    sum_b n_b / n |mean label - mean probability|; Naeini et al. 2015, of the positive class. In [0, 1], lower is
    better. By torchmetrics.
    """
    from torchmetrics.functional import classification

    return classification.binary_calibration_error(probability.double(), label.long(), n_bins=bins, norm="l1").double()


def best_threshold(probability: Tensor, label: Tensor) -> float:
    """Return the threshold with the highest F1 on these validation pairs; the highest among equals.

    Raises:
        ValueError: there is no positive pair.
    """
    import torch

    if not label.bool().any():
        raise ValueError("no pair is positive, so no threshold is better than another.")
    falling, order = probability.sort(descending=True, stable=True)
    found = label.bool()[order].cumsum(0).double()
    decided = torch.arange(1, len(falling) + 1, device=falling.device)
    value = 2 * found / (decided + label.bool().sum())
    # A threshold decides for all equal probabilities at once: look at the last of them.
    last = torch.ones_like(falling, dtype=torch.bool)
    last[:-1] = falling[1:] != falling[:-1]
    return falling[last][value[last].argmax()].item()


_ERROR = {"predicted": "predicted_ratings", "rating": "ratings"}
_DECISION = {"probability": "score", "label": "liked", "threshold": "threshold"}
_PROBABILITY = {"probability": "logits", "label": "liked"}

METRICS = (
    *(MetricInfo(f"rating_{of.__name__}", of, "-", "pairs", "ratings", _ERROR) for of in (mae, mse, rmse)),
    *(
        MetricInfo(f"rating_{of.__name__}", of, "-", "pairs", "ratings", _PROBABILITY)
        for of in (log_loss, calibration_error)
    ),
    *(
        MetricInfo(f"rating_{of.__name__}", of, "+", "pairs", "ratings", _DECISION)
        for of in (accuracy, precision, recall, f1)
    ),
    MetricInfo("rating_auc", auc, "+", "pairs", "ratings", same("score", "liked")),
)
