"""The metrics of scores over the whole catalogue, in one pass over blocks of users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from metrics import scores as of_scores
from metrics._exact import ExactMetric
from metrics.catalog import METRICS
from recpeft.errors import RecpeftError

_KNOWN = tuple(name for name, info in METRICS.items() if info.kind == "scores")


class ScoreMetrics(ExactMetric):
    """AUC of users, and fairness of the scores between groups of users, from blocks of score rows.

    States are sums that add up over batches and processes; no scores are kept.

    Args:
        num_items: size of the catalogue.
        groups: attribute to (group index of each user (num_users,) int64, -1 for unknown; group names). The
            unfairness metrics are reported for attributes with two groups.
        names: of the metrics; those of :data:`metrics.catalog.METRICS` of kind ``scores``.
        stamp: put behind each metric's name.
        logits: scores are logits, whose sigmoid is taken where a metric is of probabilities.
    Raises:
        RecpeftError: a name is unknown, or needs groups where there are none.
    """

    auc_sum: Tensor
    auc_users: Tensor
    weighted_auc: Tensor
    auc_weights: Tensor

    def __init__(
        self,
        num_items: int,
        groups: Mapping[str, tuple[Tensor, list[str]]],
        names: Sequence[str] = ("user_auc", "gauc"),
        stamp: str = "",
        logits: bool = False,
    ) -> None:
        super().__init__()
        for name in names:
            if name not in _KNOWN:
                raise RecpeftError(f"unknown metric {name!r} of scores; choose from {', '.join(_KNOWN)}.")
            if "groups" in METRICS[name].needs and not groups:
                raise RecpeftError(f"the metric {name} needs groups; give them, or leave it out.")
        self.names = list(dict.fromkeys(names))
        self.num_items = num_items
        self.stamp = stamp
        self.logits = logits
        self.labels = {attribute: list(labels) for attribute, (_, labels) in groups.items()}
        for attribute, (index, labels) in groups.items():
            if ((index < -1) | (index >= len(labels))).any():
                raise ValueError(f"group indices of {attribute} must be -1 or below {len(labels)}; some are not.")
            self.register_buffer(f"index_{attribute}", index, persistent=False)
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "auc_sum": ((), torch.float64),
            "auc_users": ((), torch.int64),
            "weighted_auc": ((), torch.float64),
            "auc_weights": ((), torch.int64),
        }
        for attribute in self._grouped("differential_fairness"):
            shapes[f"score_sums_{attribute}"] = ((num_items, len(self.labels[attribute])), torch.float64)
            shapes[f"group_sizes_{attribute}"] = ((len(self.labels[attribute]),), torch.int64)
        for attribute in self._grouped("unfairness"):
            shapes[f"pair_scores_{attribute}"] = ((num_items, 2), torch.float64)
            shapes[f"pair_labels_{attribute}"] = ((num_items, 2), torch.float64)
            shapes[f"pair_counts_{attribute}"] = ((num_items, 2), torch.int64)
        for state, (shape, dtype) in shapes.items():
            self.add_state(state, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")

    def update(
        self,
        users: Tensor,
        scores: Tensor,
        seen: Tensor | None,
        relevant: tuple[Tensor, Tensor],
        labels: Tensor | None = None,
    ) -> None:
        """Add a block of users, each of them new.

        Args:
            users: (U,) int64.
            scores: (U, I), higher is better; probabilities for differential fairness, unless they are ``logits``.
            seen: (U, I) bool, items that are no candidates of the AUC; None for none.
            relevant: row of ``scores`` and item id of each held-out pair, distinct.
            labels: (R,) the pairs' true labels on the scores' scale, for the unfairness metrics.
        Raises:
            ValueError: scores are NaN or no probabilities, or labels are missing.
        """
        if {"user_auc", "gauc"} & set(self.names):
            auc = of_scores.user_auc(scores, seen, relevant)
            weight = of_scores.num_positives(scores, seen, relevant) * ~auc.isnan()
            self.auc_sum = self.auc_sum + auc.nan_to_num(0).sum()
            self.auc_users = self.auc_users + (~auc.isnan()).sum()
            self.weighted_auc = self.weighted_auc + (auc.nan_to_num(0) * weight).sum()
            self.auc_weights = self.auc_weights + weight.sum()
        scores = scores.sigmoid() if self.logits else scores
        for attribute in self._grouped("differential_fairness"):
            if ((scores < 0) | (scores > 1)).any():
                raise ValueError("differential fairness needs scores in [0, 1]; pass them through a sigmoid.")
            index = getattr(self, f"index_{attribute}")[users]
            member = (index[:, None] == torch.arange(len(self.labels[attribute]), device=index.device)).double()
            self._add(f"score_sums_{attribute}", scores.double().T @ member)
            self._add(f"group_sizes_{attribute}", member.sum(0).long())
        for attribute in self._grouped("unfairness"):
            if labels is None:
                raise ValueError("the unfairness of scores needs the labels of the held-out pairs.")
            row, item = relevant
            group = getattr(self, f"index_{attribute}")[users][row]
            found, counts = of_scores.item_group_sums(group, item, scores[row, item], self.num_items)
            self._add(f"pair_scores_{attribute}", found)
            self._add(f"pair_labels_{attribute}", of_scores.item_group_sums(group, item, labels, self.num_items)[0])
            self._add(f"pair_counts_{attribute}", counts)

    def compute(self) -> dict[str, float]:
        """All values over all ranks, by keys such as ``user_auc`` and ``value_unfairness_gender``; NaN where
        there is nothing to compare."""
        result: dict[str, Tensor] = {}
        if "user_auc" in self.names:
            result["user_auc"] = self.auc_sum / self.auc_users
        if "gauc" in self.names:
            result["gauc"] = self.weighted_auc / self.auc_weights
        for attribute in self._grouped("differential_fairness"):
            sums, sizes = getattr(self, f"score_sums_{attribute}"), getattr(self, f"group_sizes_{attribute}")
            result[f"differential_fairness_{attribute}"] = of_scores.differential_fairness(sums, sizes)
        for attribute in self._grouped("unfairness"):
            sums, labels, counts = (
                getattr(self, f"pair_{part}_{attribute}") for part in ("scores", "labels", "counts")
            )
            for name in self.names:
                if name == "nonparity_unfairness":
                    result[f"{name}_{attribute}"] = of_scores.nonparity(sums, counts)
                elif name.endswith("_unfairness"):
                    kind = METRICS[name].options["kind"]
                    result[f"{name}_{attribute}"] = of_scores.unfairness(kind, sums, labels, counts)
        return {f"{name}{self.stamp}": value.item() for name, value in result.items()}

    def _grouped(self, ending: str) -> list[str]:
        """The attributes that the chosen metrics of this ending are of."""
        if not any(name.endswith(ending) for name in self.names):
            return []
        return [name for name, labels in self.labels.items() if ending != "unfairness" or len(labels) == 2]

    def _add(self, state: str, value: Tensor) -> None:
        setattr(self, state, getattr(self, state) + value)
