"""Compute metrics of scores over the whole catalogue in one pass over blocks of users."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from metrics._exact import ExactMetric
from metrics._info import MetricInfo, Summed, sources
from metrics.catalog import METRICS
from metrics.scores import ScoreBlock
from recpeft.errors import RecpeftError


class ScoreMetrics(ExactMetric):
    """Per-user AUC and fairness of scores between groups of users, from blocks of score rows.

    States are sums that add up over batches and processes; no scores are kept.

    Args:
        num_items: size of the catalogue.
        groups: attribute to (group index of each user (num_users,) int64, -1 for unknown; group names). Some
            metrics are defined only for attributes with two groups.
        names: names of metrics of kind ``scores`` from :data:`metrics.catalog.METRICS`.
        stamp: suffix of each metric's name.
        logits: scores are logits; metrics of probabilities use their sigmoid.
    Raises:
        RecpeftError: a name is unknown, or needs groups and there are none.
    """

    def __init__(
        self,
        num_items: int,
        groups: Mapping[str, tuple[Tensor, list[str]]],
        names: Sequence[str] = ("user_auc", "gauc"),
        stamp: str = "",
        logits: bool = False,
    ) -> None:
        super().__init__()
        known = [name for name, info in METRICS.items() if info.kind == "scores"]
        for name in names:
            if name not in known:
                raise RecpeftError(f"unknown metric {name!r} of scores; choose from {', '.join(known)}.")
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
        # Each sum, over all users or by the groups of an attribute.
        found = dict.fromkeys(
            (source, attribute if source.by_group else "")
            for info, attribute in self._measured()
            for source in sources(info)
            if isinstance(source, Summed)
        )
        self._states = {
            (source, attribute): f"sum_{number}_of_{source.function.__name__}_{attribute}"
            for number, (source, attribute) in enumerate(found)
        }
        nobody, scores = torch.empty(0, dtype=torch.int64), torch.empty(0, num_items)
        nothing = ScoreBlock(scores, None, (nobody, nobody), scores, torch.empty(0))
        for (source, attribute), state in self._states.items():
            self.add_state(state, self._sum(source, attribute, nothing, nobody), dist_reduce_fx="sum")

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
            seen: (U, I) bool, items excluded from the AUC; None for none.
            relevant: row of ``scores`` and item id of each held-out pair, distinct.
            labels: (R,) the pairs' true labels on the scores' scale, for the unfairness metrics.
        Raises:
            ValueError: scores are NaN or not probabilities, or labels are missing.
        """
        chances = scores.sigmoid() if self.logits else scores
        block = ScoreBlock(scores, seen, relevant, chances, labels)
        for (source, attribute), state in self._states.items():
            setattr(self, state, getattr(self, state) + self._sum(source, attribute, block, users))

    def compute(self) -> dict[str, float]:
        """Return all values over all processes, by keys such as ``user_auc`` and ``value_unfairness_gender``; NaN if
        there is nothing to compare."""
        result = {}
        for info, attribute in self._measured():
            inputs = {}
            for argument, source in info.inputs.items():
                assert isinstance(source, Summed)
                inputs[argument] = getattr(self, self._states[source, attribute if source.by_group else ""])
            name = f"{info.name}_{attribute}" if attribute else info.name
            result[f"{name}{self.stamp}"] = info.function(**inputs, **info.options).item()
        return result

    def _measured(self) -> Iterator[tuple[MetricInfo, str]]:
        """Yield the metrics, each with every attribute whose groups it compares, or with an empty attribute."""
        for info in (METRICS[name] for name in self.names):
            if "groups" not in info.needs:
                yield info, ""
                continue
            for attribute, labels in self.labels.items():
                if len(labels) == 2 or not info.two_groups:
                    yield info, attribute

    def _sum(self, source: Summed, attribute: str, block: ScoreBlock, users: Tensor) -> Tensor:
        """Return the contribution of one block to a sum."""
        inputs = {}
        if source.by_group:
            index = getattr(self, f"index_{attribute}")[users]
            inputs["groups"] = index[:, None] == torch.arange(len(self.labels[attribute]), device=index.device)
        added: Tensor = source.function(block, **inputs)
        return added
