"""Other libraries' side of benchmarks/ranking.py; runs in the peers' environment and is asked over standard input.

    .venv-peers/bin/python benchmarks/peers/timing.py data.npz

Data are brought into each peer's own best form first, which no figure holds, and everything runs once to be compiled.
Then each line read is the name of a side, and the answer is one line of JSON: its seconds of processor time and the
three means at 10.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

K, BATCH = 10, 512
Means = Mapping[str, float]


class Data:
    """20,000 lists of 100 items, and each user's relevant items, at least one."""

    def __init__(self, source: Path) -> None:
        given = np.load(source)
        self.lists: np.ndarray = given["lists"]
        self.relevant = np.split(given["relevant_item"], given["offsets"][1:-1])
        self.parts = [slice(start, start + BATCH) for start in range(0, len(self.lists), BATCH)]


def ranx(data: Data) -> dict[str, Callable[[], Means]]:
    from ranx import Qrels, Run, evaluate

    qrels = Qrels({f"{u}": {f"i{i}": 1 for i in items} for u, items in enumerate(data.relevant)})
    run = Run({f"{u}": {f"i{i}": 100.0 - r for r, i in enumerate(items)} for u, items in enumerate(data.lists)})
    # Qrels and Run are what its users hold; evaluate() makes these lists of them anew in each call.
    lists = qrels.to_typed_list(), run.to_typed_list()
    names = {name: f"{name}@{K}" for name in ("ndcg", "recall", "mrr")}

    def measure(*sides: object) -> Means:
        found = evaluate(*sides, list(names.values()), threads=1, save_results_in_run=False)
        return {name: float(found[theirs]) for name, theirs in names.items()}

    return {"ranx": lambda: measure(qrels, run), "ranx, numba's lists ready": lambda: measure(*lists)}


def rectools(data: Data) -> dict[str, Callable[[], Means]]:
    import pandas as pd
    from rectools import Columns
    from rectools.metrics import MRR, NDCG, Recall, calc_metrics

    users, length = data.lists.shape
    reco = {Columns.User: np.repeat(np.arange(users), length), Columns.Item: data.lists.ravel()}
    table = pd.DataFrame(reco | {Columns.Rank: np.tile(np.arange(1, length + 1), users)})
    of = np.repeat(np.arange(users), [len(items) for items in data.relevant])
    relevant = pd.DataFrame({Columns.User: of, Columns.Item: np.concatenate(data.relevant)})
    metrics = {"ndcg": NDCG(k=K, divide_by_achievable=True), "recall": Recall(k=K), "mrr": MRR(k=K)}
    return {"RecTools": lambda: calc_metrics(metrics, table, relevant)}


def pytrec_eval(data: Data) -> dict[str, Callable[[], Means]]:
    from pytrec_eval import RelevanceEvaluator

    run = {f"{u}": {f"i{i}": 100.0 - r for r, i in enumerate(items)} for u, items in enumerate(data.lists)}
    qrels = {f"{u}": {f"i{i}": 1 for i in items} for u, items in enumerate(data.relevant)}
    evaluator = RelevanceEvaluator(qrels, {f"ndcg_cut.{K}", f"recall.{K}", "recip_rank"})

    def measure() -> Means:
        found = list(evaluator.evaluate(run).values())
        # TREC's reciprocal rank is of the whole list; below 1 / k the first hit stands behind k.
        first = [value["recip_rank"] for value in found]
        return {
            "ndcg": float(np.mean([value[f"ndcg_cut_{K}"] for value in found])),
            "recall": float(np.mean([value[f"recall_{K}"] for value in found])),
            "mrr": float(np.mean([value if value > 1 / (K + 0.5) else 0.0 for value in first])),
        }

    return {"pytrec_eval": measure}


def torchmetrics(data: Data) -> dict[str, Callable[[], Means]]:
    from torchmetrics import MetricCollection
    from torchmetrics.retrieval import RetrievalMRR, RetrievalNormalizedDCG, RetrievalRecall

    # It takes scores and whether each is of a relevant item, so hits are found for it here, and relevant items that are
    # not listed stand behind the list, as else it would not know of them. A score of 0 or less is never a hit to it.
    batches = []
    for part in data.parts:
        scores, hits, users = [], [], []
        for u in range(part.start, min(part.stop, len(data.lists))):
            missed = np.setdiff1d(data.relevant[u], data.lists[u])
            hits.append(np.concatenate([np.isin(data.lists[u], data.relevant[u]), np.ones(len(missed), dtype=bool)]))
            scores.append(1 / np.arange(1, len(hits[-1]) + 1, dtype=np.float32))
            users.append(np.full(len(hits[-1]), u))
        batches.append([torch.from_numpy(np.concatenate(columns)) for columns in (scores, hits, users)])
    metrics = MetricCollection(
        {
            "ndcg": RetrievalNormalizedDCG(top_k=K),
            "recall": RetrievalRecall(top_k=K),
            "mrr": RetrievalMRR(top_k=K),
        }
    )

    def measure() -> Means:
        metrics.reset()
        for scores, hits, users in batches:
            metrics.update(scores, hits, indexes=users)
        return {name: value.item() for name, value in metrics.compute().items()}

    return {"torchmetrics": measure}


def replay(data: Data) -> dict[str, Callable[[], Means]]:
    from replay.metrics.torch_metrics_builder import TorchMetricsBuilder

    batches = []
    for part in data.parts:
        relevant = data.relevant[part]
        padded = np.full((len(relevant), max(map(len, relevant))), -1)
        for row, items in enumerate(relevant):
            padded[row, : len(items)] = items
        batches.append((torch.from_numpy(data.lists[part]), torch.from_numpy(padded)))

    def measure(width: int) -> Means:
        builder = TorchMetricsBuilder(["ndcg", "recall", "mrr"], [K])
        for lists, relevant in batches:
            builder.add_prediction(lists[:, :width], relevant)
        return {name.partition("@")[0]: float(value) for name, value in builder.get_metrics().items()}

    width = data.lists.shape[1]
    return {"RePlay": lambda: measure(width), "RePlay, lists cut at 10 before": lambda: measure(K)}


def main(source: Path) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    data = Data(source)
    sides: dict[str, Callable[[], Means]] = {}
    for library in (ranx, rectools, pytrec_eval, torchmetrics, replay):
        sides |= library(data)
    for call in sides.values():
        call()
    gc.collect()
    gc.freeze()  # else each would pay for walking through the others' dictionaries
    print(json.dumps(list(sides)), flush=True)
    for line in sys.stdin:
        call = sides[line.strip()]
        start = time.process_time()
        means = call()
        seconds = time.process_time() - start
        print(json.dumps({"seconds": seconds, **means}, default=float), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
