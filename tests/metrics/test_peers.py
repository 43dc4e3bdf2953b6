"""Values equal to other libraries' on random data: ragged relevance, users with nothing relevant, lists that are short,
empty, repeat items or hold ids beyond the catalogue.

Most peers run in an environment of their own (`make peers`) on the same data; benchmarks/peers/values.py says where
conventions differ and how they are aligned. torchmetrics, scipy and sklearn are compared with in process, where other
files here do not do so already.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.special import rel_entr
from scipy.stats import entropy
from sklearn.metrics import auc
from torch import Tensor
from torchmetrics.functional import retrieval

from metrics import History, RankedLists, RankingMetrics, match
from metrics.accuracy import average_precision, ndcg
from metrics.coverage import item_coverage
from metrics.generated import as_misses, sufficient, unrepeated
from metrics.novelty import novelty
from metrics.per_item import counts

ROOT = Path(__file__).parents[2]
PEERS = Path(sys.prefix + "-peers") / "bin/python"
"""What `make peers` makes beside the environment that runs this."""

USERS, ITEMS, LENGTH, GENRES, LABELS, KS = 300, 80, 20, 6, 5, [1, 5, 10, 20]
ACCURACY = ("ndcg", "recall", "precision", "hit_rate", "mrr")
COMPARED = {
    "ranx": (*ACCURACY, "map_trec", "f1", "ndcg_linear", "ndcg_exp2"),
    "pytrec_eval": (*ACCURACY, "map_trec", "ndcg_linear"),
    "rectools": (
        *ACCURACY,
        "map_trec",
        "f1",
        "ndcg_ideal_k",
        "novelty",
        "arp",
        "serendipity_rank",
        "ild_hamming",
        "item_coverage",
        "user_coverage",
        "sufficient",
        "unrepeated",
    ),
    "replay": (
        *ACCURACY,
        "map",
        "unexpectedness",
        "surprisal",
        "category_per_slot_single",
        "item_coverage_of_train",
    ),
    "torch_metrics_builder": ("ndcg", "recall", "precision", "mrr", "map"),
}
OPTIONS = ("ndcg_ideal_k", "surprisal", "sufficient", "unrepeated", "item_coverage_of_train")
"""Reached by an option of a function, not by a name of the catalogue of metrics."""
OF_THE_CATALOGUE = ("item_coverage", "item_coverage_of_train")
OF_CLEAN_LISTS = ("surprisal", "category_per_slot_single")
"""Of peers that know of no empty places between listed items."""


@dataclass
class Case:
    """One random world, as plain lists and as recpeft sees it."""

    given: dict[str, Any]
    """What peers get."""
    raw: Tensor
    """(U, LENGTH) int64: generated ids, -1 behind the end of the list."""
    lists: RankedLists
    history: History
    genres: Tensor
    """(I, GENRES) bool."""
    labels: Tensor
    embeddings: Tensor
    clean: Tensor
    """(U,) bool: whether the list is not empty and holds different items of the catalogue."""


def make_case() -> Case:
    draw = np.random.default_rng(20)
    lists: list[list[int]] = []
    for size in draw.choice([0, 1, 3, 10, LENGTH], USERS, p=[0.05, 0.05, 0.1, 0.2, 0.6]):
        listed = draw.permutation(ITEMS)[:size]
        if draw.random() < 0.5:
            # Up to a third of the places hold ids beyond the catalogue, or what stands elsewhere in the list.
            broken = draw.random(size) < draw.random() / 3
            listed[broken] = np.where(
                draw.random(size) < 0.5, ITEMS + draw.integers(0, 4, size), draw.permutation(listed)
            )[broken]
        lists.append(listed.tolist())
    sizes = np.where(np.arange(USERS) % 7, draw.integers(1, 30, USERS), 0)
    grades = [{int(item): int(draw.integers(1, 5)) for item in draw.permutation(ITEMS)[:size]} for size in sizes]
    # Popular items stand in more histories; three in none, and some users have none.
    weight = 1 / (1 + np.arange(ITEMS - 3))
    sizes = np.where(np.arange(USERS) % 31, draw.integers(1, 25, USERS), 0)
    histories = [draw.choice(ITEMS - 3, size, replace=False, p=weight / weight.sum()).tolist() for size in sizes]
    bits = draw.random((ITEMS, GENRES)) < 0.3
    labels = draw.integers(0, LABELS, ITEMS)
    given = {
        "num_items": ITEMS,
        "ks": KS,
        "lists": lists,
        "relevant": grades,
        "history": histories,
        "genres": [np.flatnonzero(row).tolist() for row in bits],
        "labels": labels.tolist(),
    }
    raw = torch.tensor([listed + [-1] * (LENGTH - len(listed)) for listed in lists])
    pairs = [(user, item) for user, graded in enumerate(grades) for item in graded]
    relevant = torch.tensor([user for user, _ in pairs]), torch.tensor([item for _, item in pairs])
    misses = as_misses(raw, ITEMS)
    matched = match(torch.arange(USERS), misses, relevant, ITEMS)
    of = torch.tensor([user for user, items in enumerate(histories) for _ in items])
    return Case(
        given=given,
        raw=raw,
        lists=matched.graded(relevant, torch.tensor([grades[user][item] for user, item in pairs])),
        history=History.of(of, torch.tensor([item for items in histories for item in items]), USERS, ITEMS),
        genres=torch.from_numpy(bits),
        labels=torch.from_numpy(labels),
        embeddings=torch.from_numpy(draw.normal(size=(ITEMS, 8))),
        clean=((raw == misses).all(1)) & (raw[:, 0] >= 0),
    )


def measured(case: Case, names: list[str]) -> RankingMetrics:
    """RankingMetrics after uneven batches."""
    metric = RankingMetrics(
        KS,
        case.genres,
        case.history.train_counts,
        int((case.history.offsets.diff() > 0).sum()),
        groups={},
        keep_users=True,
        names=names,
        embeddings=case.embeddings,
        history=case.history,
        main_category=case.labels,
    )
    pairs, grade = case.lists.relevant, case.lists.grade
    assert pairs is not None
    assert grade is not None
    for part in torch.arange(USERS).split(128):
        inside = (pairs[0] >= part[0]) & (pairs[0] <= part[-1])
        relevant = pairs[0][inside] - part[0], pairs[1][inside]
        lists = match(part, as_misses(case.raw[part], ITEMS), relevant, ITEMS)
        metric.update(lists.graded(relevant, grade[inside]))
    return metric


def by_option(case: Case, name: str, k: int) -> Tensor:
    lists, train = case.lists, case.history.train_counts
    if name == "ndcg_ideal_k":
        return ndcg(lists, k, ideal="k")
    if name == "surprisal":
        return novelty(lists, k, train, int((case.history.offsets.diff() > 0).sum()), normalised=True)
    if name == "item_coverage_of_train":
        return item_coverage(counts(lists, k, ITEMS), among=train > 0)
    # RecTools has no row of an empty list; for recpeft it is one with nothing in its places.
    function = {"sufficient": sufficient, "unrepeated": unrepeated}[name]
    return function(case.raw, k).masked_fill(case.raw[:, 0] < 0, math.nan)


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case()


@pytest.fixture(scope="module")
def peers(case: Case, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The values of each library by ``metric@k``: by user, or one."""
    if not PEERS.exists():
        missing = f"there is no {PEERS}; make the peers' environment by `make peers`"
        if os.environ.get("RECPEFT_PEERS"):
            pytest.fail(missing)
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("peers")
    (folder / "data.json").write_text(json.dumps(case.given))
    script = ROOT / "benchmarks/peers/values.py"
    subprocess.run([PEERS, script, folder / "data.json", folder / "values.json"], check=True)
    values: dict[str, dict[str, Any]] = json.loads((folder / "values.json").read_text())
    return values


@pytest.fixture(scope="module")
def ours(case: Case) -> dict[str, Any]:
    """recpeft's values by ``metric@k``, (U,) by user or one, and the means that are reported by ``mean metric@k``."""
    names = dict.fromkeys(name for names in COMPARED.values() for name in names if name not in OPTIONS)
    metric = measured(case, list(names))
    columns, reported = metric.per_user(), metric.compute()
    result: dict[str, Any] = {f"mean {key}": value for key, value in reported.items()}
    result |= {f"{name}@{k}": reported[f"{name}@{k}"] for name in names for k in KS}
    result |= {key: column for key, column in columns.items() if key != "user"}
    return result | {f"{name}@{k}": by_option(case, name, k) for name in OPTIONS for k in KS}


def test_the_data_hold_what_is_hard(case: Case) -> None:
    raw = case.raw
    beyond, found = (raw >= ITEMS).any(1), as_misses(raw, ITEMS)
    again = ((raw < ITEMS) & (raw >= 0) & (found == -1)).any(1)
    sizes = (raw >= 0).sum(1)
    hidden = [  # an item that is relevant stands there a second time
        user
        for user, listed in enumerate(case.given["lists"])
        for item in case.given["relevant"][user]
        if listed.count(item) > 1
    ]
    for what in (beyond, again, sizes == 0, (sizes > 0) & (sizes < LENGTH), case.lists.num_relevant == 0):
        assert what.sum() >= 10
    assert len(hidden) >= 10
    assert len(case.lists.num_relevant.unique()) > 20
    assert case.clean.sum() >= 100


@pytest.mark.parametrize(
    ("library", "name"),
    [(library, name) for library, names in COMPARED.items() for name in names],
)
def test_values_equal_the_peers(
    library: str, name: str, case: Case, ours: dict[str, Any], peers: dict[str, dict[str, Any]]
) -> None:
    for k in KS:
        theirs = peers[library][f"{name}@{k}"]
        if name in OF_THE_CATALOGUE:
            assert float(ours[f"{name}@{k}"]) == pytest.approx(theirs, abs=1e-6)
            continue
        column = ours[f"{name}@{k}"]
        if name in OF_CLEAN_LISTS:
            column = column.masked_fill(~case.clean, math.nan)
        values = {str(user): value for user, value in enumerate(column.tolist()) if not math.isnan(value)}
        assert set(theirs) == set(values)  # the same users have a value
        assert len(values) >= 100
        assert values == pytest.approx(theirs, abs=1e-6)
        if name not in (*OPTIONS, *OF_CLEAN_LISTS):
            assert ours[f"mean {name}@{k}"] == pytest.approx(np.mean(list(theirs.values())), abs=1e-6)


def test_torchmetrics_values_are_equal(case: Case, ours: dict[str, Any]) -> None:
    """It counts users without relevant items as 0 and needs each relevant item among the scored, so these stand behind
    the places of the list. Its MAP is over the hits. Scores of 0 and below never count as hits to it."""
    for k in KS:
        found = {"map_over_hits": average_precision(case.lists, k, over="hits")}
        for user, graded in enumerate(case.given["relevant"]):
            if not graded:
                assert math.isnan(ours[f"ndcg@{k}"][user])
                continue
            hits = case.lists.hit[user].tolist()
            listed = case.lists.item[user].tolist()
            missed = [item for item in graded if item not in listed]
            target = torch.tensor(hits + [True] * len(missed))
            scores = 1 / torch.arange(1, len(target) + 1, dtype=torch.float64)
            grade = [graded[item] if hit else 0 for item, hit in zip(listed, hits, strict=True)]
            graded_target = torch.tensor(grade + [graded[item] for item in missed])
            expected = {
                "ndcg": retrieval.retrieval_normalized_dcg(scores, target, top_k=k),
                "ndcg_linear": retrieval.retrieval_normalized_dcg(scores, graded_target, top_k=k),
                "recall": retrieval.retrieval_recall(scores, target, top_k=k),
                "precision": retrieval.retrieval_precision(scores, target, top_k=k),
                "hit_rate": retrieval.retrieval_hit_rate(scores, target, top_k=k),
                "mrr": retrieval.retrieval_reciprocal_rank(scores, target, top_k=k),
                "map_over_hits": retrieval.retrieval_average_precision(scores, target, top_k=k),
            }
            for name, value in expected.items():
                column = found[name] if name in found else ours[f"{name}@{k}"]
                assert column[user].item() == pytest.approx(value.item(), abs=1e-6), (name, k, user)


def test_list_distances_are_scipys(case: Case) -> None:
    """scipy's Hamming distance is a share of the features, recpeft's a number of them."""
    columns = measured(case, ["ild_cosine", "ild_jaccard", "ild_hamming"]).per_user()
    bits, vectors = case.genres.numpy(), case.embeddings.numpy()
    for k in KS[1:]:
        for user in range(USERS):
            item = case.lists.item[user, :k]
            item = item[item >= 0].numpy()
            if len(item) < 2:
                continue
            expected = {
                "ild_cosine": pdist(vectors[item], "cosine"),
                "ild_jaccard": pdist(bits[item], "jaccard"),
                "ild_hamming": pdist(bits[item], "hamming") * GENRES,
            }
            for name, distances in expected.items():
                assert columns[f"{name}@{k}"][user].item() == pytest.approx(distances.mean(), abs=1e-6), (name, k, user)


def test_entropies_and_divergences_are_scipys(case: Case) -> None:
    names = ["category_entropy_single", "calibration_kl", "shannon_entropy"]
    metric = measured(case, names)
    columns, values = metric.per_user(), metric.compute()
    weight = (case.genres.double() / case.genres.sum(1, keepdim=True).clamp(min=1)).numpy()
    for k in KS:
        listed = [row[row >= 0].numpy() for row in case.lists.item[:, :k]]
        number = np.bincount(np.concatenate(listed), minlength=ITEMS)
        assert values[f"shannon_entropy@{k}"] == pytest.approx(entropy(number, base=2), abs=1e-6)
        for user, item in enumerate(listed):
            if not len(item):
                continue
            labels = np.bincount(case.labels[item].numpy())
            assert columns[f"category_entropy_single@{k}"][user].item() == pytest.approx(
                entropy(labels, base=2), abs=1e-6
            )
            p, q = weight[case.given["history"][user]].sum(0), weight[item].sum(0)
            if p.sum() and q.sum():
                p, q = p / p.sum(), q / q.sum()
                expected = rel_entr(p, 0.99 * q + 0.01 * p).sum()
                assert columns[f"calibration_kl@{k}"][user].item() == pytest.approx(expected, abs=1e-6)


def test_gini_is_twice_the_area_between_sklearns_lorenz_curve_and_the_diagonal(case: Case) -> None:
    values = measured(case, ["gini"]).compute()
    for k in KS:
        item = case.lists.item[:, :k]
        ascending = np.sort(np.bincount(item[item >= 0].numpy(), minlength=ITEMS))
        share = np.concatenate([[0], ascending.cumsum() / ascending.sum()])
        assert values[f"gini@{k}"] == pytest.approx(1 - 2 * auc(np.linspace(0, 1, ITEMS + 1), share), abs=1e-6)
