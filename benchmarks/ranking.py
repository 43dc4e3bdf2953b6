"""Time of ranking metrics against other libraries in one run, and of all metrics at once on ML-100K's shape.

    make bench        # makes the peers' environment, then .venv/bin/python benchmarks/ranking.py

NDCG, recall and MRR at 10 of 20,000 users' lists of 100 among 10,000 items, 1 to 20 relevant items each, in batches of
512; one thread's processor time, so that what else runs counts little; medians of five rounds in which the sides take
turns. All start from the whole lists. recpeft cuts them at 10 and matches them with the relevant pairs, as rank() does
with what it lists, and that is in its time. Peers run in their own environment, each fed in its own best form; bringing
data into it is in no time, as recpeft's tensors of lists and of pairs are ready too. All must find the same means.

Beside the libraries as they are called stand what they leave to the caller: lists cut at 10 before for RePlay, which
else compares all 100 places, and numba's lists for ranx, which else makes them from Qrels and Run in each call.
"""

from __future__ import annotations

import json
import os
import sys

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS"), "1"))

import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metrics import History, RankedLists, RankingMetrics, ScoreMetrics, match, rank
from metrics.catalog import METRICS

USERS, ITEMS, LENGTH, MOST_RELEVANT, K, BATCH, ROUNDS = 20_000, 10_000, 100, 20, 10, 512, 5
PEERS = Path(sys.prefix + "-peers") / "bin/python"
NAMES = ("ndcg", "recall", "mrr")
BARS = {"ranx": 1.0, "RecTools": 1.0, "pytrec_eval": 1.0, "torchmetrics": 1.0, "RePlay": 0.5}
"""Of recpeft's time over the peer's."""
Batch = tuple[Tensor, Tensor, tuple[Tensor, Tensor]]


def made_up() -> dict[str, np.ndarray]:
    """Lists without repetitions, and relevant items of which about a third are listed."""
    draw = np.random.default_rng(0)
    lists = np.stack([draw.choice(ITEMS, LENGTH, replace=False) for _ in range(USERS)])
    relevant = []
    for listed, size in zip(lists, draw.integers(1, MOST_RELEVANT + 1, USERS), strict=True):
        found = draw.choice(listed, draw.binomial(size, 1 / 3), replace=False)
        relevant.append(np.unique(np.concatenate([found, draw.integers(0, ITEMS, size - len(found))])))
    offsets = np.cumsum([0, *map(len, relevant)])
    return {"lists": lists, "relevant_item": np.concatenate(relevant), "offsets": offsets}


def batches_of(data: Mapping[str, np.ndarray]) -> list[Batch]:
    result: list[Batch] = []
    for start in range(0, USERS, BATCH):
        stop = min(start + BATCH, USERS)
        first, last = data["offsets"][[start, stop]]
        row = np.repeat(np.arange(stop - start), np.diff(data["offsets"][start : stop + 1]))
        relevant = torch.from_numpy(row), torch.from_numpy(data["relevant_item"][first:last])
        result.append((torch.arange(start, stop), torch.from_numpy(data["lists"][start:stop]), relevant))
    return result


def recpeft_sides(batches: list[Batch]) -> dict[str, Callable[[], dict[str, float]]]:
    gender = torch.randint(0, 2, (USERS,), generator=torch.Generator().manual_seed(0))

    def metric(*more: str) -> RankingMetrics:
        return RankingMetrics(
            [K],
            categories=torch.zeros(ITEMS, 1, dtype=torch.bool),
            train_counts=torch.ones(ITEMS, dtype=torch.int64),
            num_train_users=USERS,
            groups={"gender": (gender, ["F", "M"])} if more else {},
            names=[*NAMES, *more],
        )

    plain, wide = metric(), metric("item_coverage", "gini", "ndcg_gap")

    def measure(chosen: RankingMetrics, width: int = K) -> dict[str, float]:
        chosen.reset()
        for users, item, relevant in batches:
            chosen.update(match(users, item[:, :width], relevant, ITEMS))
        return chosen.compute()

    return {
        "recpeft": lambda: measure(plain),
        "recpeft with item counts and groups": lambda: measure(wide),
        "recpeft, all 100 places matched": lambda: measure(plain, LENGTH),
    }


def against_peers() -> None:
    data = made_up()
    ours = recpeft_sides(batches_of(data))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "data.npz"
        np.savez(source, lists=data["lists"], relevant_item=data["relevant_item"], offsets=data["offsets"])
        command = [str(PEERS), str(Path(__file__).parent / "peers/timing.py"), str(source)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdin is not None
            assert worker.stdout is not None
            theirs: list[str] = json.loads(worker.stdout.readline())
            times: dict[str, list[float]] = {name: [] for name in [*ours, *theirs]}
            means: dict[str, Mapping[str, float]] = {}
            for call in ours.values():
                call()
            for _ in range(ROUNDS):
                for name, call in ours.items():
                    start = time.process_time()
                    found = call()
                    times[name].append(time.process_time() - start)
                    means[name] = {metric: found[f"{metric}@{K}"] for metric in NAMES}
                for name in theirs:
                    print(name, file=worker.stdin, flush=True)
                    means[name] = json.loads(worker.stdout.readline())
                    times[name].append(means[name]["seconds"])
            worker.stdin.close()
    for name, of_side in means.items():
        for metric in NAMES:
            # Some sum in float32.
            assert abs(of_side[metric] - means["recpeft"][metric]) < 1e-5, (name, metric, of_side, means["recpeft"])
    print(", ".join(f"{metric}@{K} {means['recpeft'][metric]:.6f}" for metric in NAMES), "on all sides")
    base = statistics.median(times["recpeft"])
    for name, taken in times.items():
        median = statistics.median(taken)
        spread = f"{min(taken) * 1e3:.0f} to {max(taken) * 1e3:.0f}"
        line = f"{name}: {median * 1e3:.0f} ms ({spread}), recpeft takes {base / median:.2f} of it"
        if name in BARS:
            line += f"; {'reached' if base / median <= BARS[name] else 'MISSED'}: at most {BARS[name]}"
        print(line)
    more = statistics.median(times["recpeft with item counts and groups"]) / base - 1
    print(f"item counts and groups add {more:.0%}; {'reached' if more < 0.5 else 'MISSED'}: less than 50%")


def all_at_once() -> None:
    """Every metric that lists are enough for, and both AUCs, on random scores of 943 users and 1,682 items."""
    users, items = 943, 1_682
    draw = torch.Generator().manual_seed(0)
    popular = (torch.rand(80_000, generator=draw) ** 2 * items).long()  # a few items have many users
    history = History.of(torch.randint(0, users, (80_000,), generator=draw), popular, users, items)
    groups = {
        "gender": (torch.randint(0, 2, (users,), generator=draw), ["F", "M"]),
        "age": (torch.randint(0, 4, (users,), generator=draw), ["a", "b", "c", "d"]),
    }
    scores = torch.rand(users, items, generator=draw)
    relevant = torch.rand(users, items, generator=draw) < 0.01
    grades = torch.randint(1, 6, relevant.shape, generator=draw)
    kinds = ("per_user", "sums", "item_groups", "user_groups")
    names = [name for name, info in METRICS.items() if info.kind in kinds and "impressions" not in info.needs]
    metric = RankingMetrics(
        [5, 10, 20],
        torch.rand(items, 19, generator=draw) < 0.1,
        history.train_counts,
        users,
        groups,
        keep_users=True,
        names=[*names, "ndcg_gap", "ndcg_cvar50", "ndcg_user_gini"],
        item_groups={"popularity": (torch.randint(0, 3, (items, 1), generator=draw) == torch.arange(3), list("xyz"))},
        embeddings=torch.randn(items, 384, generator=draw),
        history=history,
        main_category=torch.randint(0, 19, (items,), generator=draw),
    )
    of_scores = ScoreMetrics(items, groups, ["user_auc", "gauc"])
    batches = list[tuple[RankedLists, Tensor, tuple[Tensor, Tensor]]]()
    for part in (slice(start, min(start + BATCH, users)) for start in range(0, users, BATCH)):
        row, item = relevant[part].nonzero(as_tuple=True)
        lists = rank(scores[part], torch.arange(users)[part], None, (row, item), 20, seed=0)
        batches.append((lists.graded((row, item), grades[part][row, item]), scores[part], (row, item)))
    taken: list[tuple[float, float, float]] = []
    for _ in range(ROUNDS + 1):
        start = time.process_time()
        metric.reset()
        for lists, _, _ in batches:
            metric.update(lists)
        updated = time.process_time()
        values = metric.compute()
        computed = time.process_time()
        of_scores.reset()
        for lists, block, pairs in batches:
            of_scores.update(lists.user, block, None, pairs)
        values |= of_scores.compute()
        taken.append((updated - start, computed - updated, time.process_time() - computed))
    update, compute, auc = (statistics.median(part) for part in zip(*taken[1:], strict=True))
    print(
        f"{len(names) + 5} metrics at 5, 10 and 20, {len(values)} values, of {users} users and {items:,} items: "
        f"{update + compute + auc:.3f} s (lists' update {update:.3f}, compute {compute:.3f}; both AUCs {auc:.3f})"
    )


def main() -> None:
    if not PEERS.exists():
        sys.exit(f"there is no {PEERS}; run make bench, which makes the peers' environment.")
    torch.set_num_threads(1)
    against_peers()
    all_at_once()


if __name__ == "__main__":
    main()
