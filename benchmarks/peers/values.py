"""What other libraries compute on the data of tests/metrics/test_peers.py; runs in the peers' environment.

    .venv-peers/bin/python benchmarks/peers/values.py data.json values.json

Gets ``{"num_items", "ks", "lists", "relevant", "history", "genres", "labels"}``, where a list is a user's raw ids, best
first (some not in the catalogue, some repeated), ``relevant`` is a user's items with their grades, and users are
numbered by their places. Gives ``{library: {"metric@k": {user: value} or a value of the whole catalogue}}``, by
recpeft's names of metrics. A user who has no value is left out.

Where conventions differ, they are aligned here and said so. The common one: a place that holds no item of the catalogue
or an item that stands further up in the list is a miss at its place, and adds nothing to means over what is listed.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

Values = dict[str, Any]


class Data:
    """The lists in the forms that peers take."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.num_items: int = given["num_items"]
        self.ks: list[int] = given["ks"]
        self.raw: list[list[int]] = given["lists"]
        self.grades = [{int(item): grade for item, grade in graded.items()} for graded in given["relevant"]]
        self.history: list[list[int]] = given["history"]
        self.genres: list[list[int]] = given["genres"]
        self.labels: list[int] = given["labels"]
        self.users = range(len(self.raw))
        # Users without relevant items have no value in recpeft, so no peer is asked about them: most would say 0.
        self.judged = [user for user in self.users if self.grades[user]]
        self.usable = [
            [item < self.num_items and item not in listed[:place] for place, item in enumerate(listed)]
            for listed in self.raw
        ]

    def places(self, user: int) -> list[int]:
        """The list with an id of its own at each place that is unusable, for peers that tell ranks by the order.

        Ids beyond the catalogue stay as they are if they are the list's first; a repeated item would overwrite or count
        twice. An empty list becomes one of a single miss: both score 0, and peers leave out users without a list.
        """
        listed = self.raw[user]
        unique = [item if item not in listed[:place] else 10_000 + place for place, item in enumerate(listed)]
        return unique or [10_000]

    def scored(self, user: int) -> list[tuple[int, float]]:
        return [(item, 1000.0 - place) for place, item in enumerate(self.places(user))]

    def clean(self, user: int) -> bool:
        """Whether all places are usable; the list may be short, but not empty."""
        return bool(self.raw[user]) and all(self.usable[user])


def ranx(data: Data) -> Values:
    from ranx import Qrels, Run, evaluate

    # In ranx items and users are named by strings, and a user's items are ordered by score.
    run = {str(u): {f"i{item}": score for item, score in data.scored(u)} for u in data.judged}
    binary = {str(u): {f"i{item}": 1 for item in data.grades[u]} for u in data.judged}
    graded = {str(u): {f"i{item}": grade for item, grade in data.grades[u].items()} for u in data.judged}
    names = {name: name for name in ("ndcg", "recall", "precision", "hit_rate", "mrr", "f1")} | {"map_trec": "map"}
    result: Values = {}
    for relevant, asked in [(binary, names), (graded, {"ndcg_linear": "ndcg", "ndcg_exp2": "ndcg_burges"})]:
        for k in data.ks:
            judged, lists = Qrels(relevant), Run(run)
            evaluate(judged, lists, [f"{theirs}@{k}" for theirs in asked.values()], return_mean=False, threads=1)
            for name, theirs in asked.items():
                result[f"{name}@{k}"] = {u: float(value) for u, value in lists.scores[f"{theirs}@{k}"].items()}
    return result


def pytrec_eval(data: Data) -> Values:
    from pytrec_eval import RelevanceEvaluator

    run = {str(u): {f"i{item}": score for item, score in data.scored(u)} for u in data.judged}
    binary = {str(u): {f"i{item}": 1 for item in data.grades[u]} for u in data.judged}
    graded = {str(u): {f"i{item}": grade for item, grade in data.grades[u].items()} for u in data.judged}
    names = {"ndcg": "ndcg_cut", "recall": "recall", "precision": "P", "map_trec": "map_cut", "hit_rate": "success"}
    cuts = ",".join(map(str, data.ks))
    asked = {f"{theirs}.{cuts}" for theirs in names.values()} | {"recip_rank"}
    found = RelevanceEvaluator(binary, asked).evaluate(run)
    by_grade = RelevanceEvaluator(graded, {f"ndcg_cut.{cuts}"}).evaluate(run)
    result: Values = {}
    for k in data.ks:
        for name, theirs in names.items():
            result[f"{name}@{k}"] = {u: values[f"{theirs}_{k}"] for u, values in found.items()}
        # TREC's reciprocal rank is of the whole list; its first hit is within k where the value is at least 1 / k.
        ranks = {u: values["recip_rank"] for u, values in found.items()}
        result[f"mrr@{k}"] = {u: value if value > 1 / (k + 0.5) else 0.0 for u, value in ranks.items()}
        result[f"ndcg_linear@{k}"] = {u: values[f"ndcg_cut_{k}"] for u, values in by_grade.items()}
    return result


def rectools(data: Data) -> Values:
    from rectools import Columns, metrics

    columns = [Columns.User, Columns.Item, Columns.Rank]
    raw = [(u, item, place + 1) for u in data.users for place, item in enumerate(data.raw[u])]
    generated = pd.DataFrame(raw, columns=columns)
    # RecTools takes foreign ids for cold items. Without their rows, and with the others' ranks as they were, the places
    # are empty, as they are for recpeft.
    usable = [row for u in data.users for row, kept in zip(_rows(raw, u), data.usable[u], strict=True) if kept]
    reco = pd.DataFrame(usable, columns=columns)
    pairs = columns[:2]
    relevant = pd.DataFrame([(u, item) for u in data.users for item in data.grades[u]], columns=pairs)
    previous = pd.DataFrame([(u, item) for u in data.users for item in data.history[u]], columns=pairs)
    # CoveredUsers looks at users with test interactions; recpeft at all.
    everyone = pd.DataFrame([(u, 0) for u in data.users], columns=pairs)
    catalogue = list(range(data.num_items))
    num_genres = 1 + max(genre for genres in data.genres for genre in genres)
    bits = [[int(genre in data.genres[item]) for genre in range(num_genres)] for item in catalogue]
    hamming = metrics.PairwiseHammingDistanceCalculator(pd.DataFrame(bits, index=catalogue))
    result: Values = {}
    for k in data.ks:
        found = {
            "ndcg": metrics.NDCG(k=k, divide_by_achievable=True).calc_per_user(reco, relevant),
            "ndcg_ideal_k": metrics.NDCG(k=k).calc_per_user(reco, relevant),
            "recall": metrics.Recall(k=k).calc_per_user(reco, relevant),
            "precision": metrics.Precision(k=k).calc_per_user(reco, relevant),
            "hit_rate": metrics.HitRate(k=k).calc_per_user(reco, relevant),
            "mrr": metrics.MRR(k=k).calc_per_user(reco, relevant),
            "map_trec": metrics.MAP(k=k).calc_per_user(reco, relevant),
            "f1": metrics.F1Beta(k=k).calc_per_user(reco, relevant),
            "novelty": metrics.MeanInvUserFreq(k=k).calc_per_user(reco, previous),
            "arp": metrics.AvgRecPopularity(k=k).calc_per_user(reco, previous),
            "serendipity_rank": metrics.Serendipity(k=k).calc_per_user(reco, relevant, previous, catalogue),
            "ild_hamming": metrics.IntraListDiversity(k=k, distance_calculator=hamming).calc_per_user(reco),
            "user_coverage": metrics.CoveredUsers(k=k).calc_per_user(reco, everyone),
            "sufficient": metrics.SufficientReco(k=k, deep=True).calc_per_user(generated),
            "unrepeated": metrics.UnrepeatedReco(k=k, deep=True).calc_per_user(generated),
        }
        for name, values in found.items():
            result[f"{name}@{k}"] = {str(u): float(value) for u, value in values.dropna().items()}
        result[f"item_coverage@{k}"] = metrics.CatalogCoverage(k=k, normalize=True).calc(reco, catalogue)
    return result


def _rows(rows: list[tuple[int, int, int]], user: int) -> list[tuple[int, int, int]]:
    return [row for row in rows if row[0] == user]


def replay(data: Data) -> Values:
    from replay import metrics
    from replay.metrics import PerUser

    recommended = {u: data.scored(u) for u in data.users}
    relevant = {u: list(data.grades[u]) for u in data.judged}
    train = {u: items for u, items in enumerate(data.history) if items}
    accuracy = {
        "ndcg": metrics.NDCG,
        "recall": metrics.Recall,
        "precision": metrics.Precision,
        "hit_rate": metrics.HitRate,
        "mrr": metrics.MRR,
        "map": metrics.MAP,
    }
    result: Values = {}
    for name, metric in accuracy.items():
        values = metric(data.ks, mode=PerUser())(recommended, relevant)
        result |= {f"{name}@{k}": by_user for k, by_user in zip(data.ks, values.values(), strict=True)}

    # RePlay's Unexpectedness is held against a recommender of the user's choice: the most popular unseen items.
    counts = [sum(item in items for items in data.history) for item in range(data.num_items)]
    order = sorted(range(data.num_items), key=lambda item: (-counts[item], item))
    popular = {u: [(i, 1.0 - place) for place, i in enumerate(_unseen(order, data.history[u]))] for u in data.users}
    values = metrics.Unexpectedness(data.ks, mode=PerUser())(recommended, popular)
    for k, by_user in zip(data.ks, values.values(), strict=True):
        result[f"unexpectedness@{k}"] = {u: value for u, value in by_user.items() if any(data.usable[u][:k])}

    # The next two take what is at the first k places of a list and know of no empty ones.
    clean = [u for u in data.users if data.clean(u)]
    values = metrics.Surprisal(data.ks, mode=PerUser())({u: recommended[u] for u in clean}, train)
    for k, by_user in zip(data.ks, values.values(), strict=True):
        # Surprisal divides by k where recpeft divides by what is listed.
        result[f"surprisal@{k}"] = {u: value * k / min(k, len(data.raw[u])) for u, value in by_user.items()}
    categories = {u: [(data.labels[item], score) for item, score in recommended[u]] for u in clean}
    values = metrics.CategoricalDiversity(data.ks, mode=PerUser())(categories)
    for k, by_user in zip(data.ks, values.values(), strict=True):
        result[f"category_per_slot_single@{k}"] = by_user

    # Coverage is over the items with train users.
    values = metrics.Coverage(data.ks)(recommended, train)
    result |= {f"item_coverage_of_train@{k}": value for k, value in zip(data.ks, values.values(), strict=True)}
    return result


def _unseen(order: list[int], history: list[int]) -> list[int]:
    return [item for item in order if item not in set(history)]


def torch_metrics_builder(data: Data) -> Values:
    """RePlay's, one user at a time, as it gives means only."""
    import torch
    from replay.metrics.torch_metrics_builder import TorchMetricsBuilder

    names = {name: name for name in ("ndcg", "recall", "precision", "mrr", "map")}
    builder = TorchMetricsBuilder(list(names.values()), data.ks)
    result: Values = {f"{name}@{k}": {} for name in names for k in data.ks}
    longest = max(data.ks)
    for u in data.judged:
        # Lists are filled up to one length by ids that are no items.
        item = (data.places(u) + [20_000 + place for place in range(longest)])[:longest]
        builder.reset()
        builder.add_prediction(torch.tensor([item]), torch.tensor([list(data.grades[u])]))
        for name, value in builder.get_metrics().items():
            result[name][str(u)] = float(value)
    return result


def main(source: Path, target: Path) -> None:
    warnings.filterwarnings("ignore")  # RePlay warns of what it finds twice, pandas of RecTools
    data = Data(json.loads(source.read_text()))
    libraries = [ranx, pytrec_eval, rectools, replay, torch_metrics_builder]
    values = {library.__name__: library(data) for library in libraries}
    target.write_text(json.dumps(values, default=float))
    for name, found in values.items():
        print(name, len(found), "values at cut-offs")
        assert not any(math.isnan(v) for got in found.values() for v in np.atleast_1d(_numbers(got)))


def _numbers(got: Any) -> list[float]:
    return list(got.values()) if isinstance(got, dict) else [got]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
