"""AUC over judged pairs: exact, with ties, and its interval over users."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from metrics._judged import JudgedMetrics, JudgedPairs, among, replicates
from metrics.ratings import auc

DRAW = np.random.default_rng(0)


def pairs(users: int = 20, count: int = 400, decimals: int = 1) -> JudgedPairs:
    """Rounded scores, so that many are tied."""
    liked = DRAW.random(count) < 0.6
    score = np.round(liked + DRAW.normal(size=count), decimals)
    user = DRAW.integers(users, size=count)
    return JudgedPairs(*map(torch.from_numpy, (user, DRAW.integers(9, size=count), score, liked)))


def test_auc_is_sklearns_with_ties_and_weights() -> None:
    found = pairs()
    assert float(auc(found.score, found.liked)) == pytest.approx(roc_auc_score(found.liked, found.score), abs=1e-12)
    weight = torch.from_numpy(DRAW.integers(0, 4, size=(3, 400)))
    expected = [roc_auc_score(found.liked, found.score, sample_weight=row) for row in weight]
    assert auc(found.score, found.liked, weight).tolist() == pytest.approx(expected, abs=1e-12)


def test_large_scores_are_not_tied_by_a_sigmoid() -> None:
    assert float(auc(torch.tensor([40.0, 60.0, 50.0]), torch.tensor([False, True, False]))) == 1.0


def test_a_constant_scorer_gets_chance_and_one_class_has_no_value() -> None:
    assert float(auc(torch.zeros(4), torch.tensor([True, False, True, True]))) == 0.5
    assert auc(torch.zeros(2), torch.tensor([True, True])).isnan()


def test_batches_add_up_and_the_stamp_stands_behind_the_name() -> None:
    found, metric = pairs(), JudgedMetrics("/rated")
    for part in range(0, 400, 130):
        rows = slice(part, part + 130)
        metric.update(JudgedPairs(found.user[rows], found.item[rows], found.score[rows], found.liked[rows]))
    values = metric.compute()
    assert values["auc/rated"] == pytest.approx(roc_auc_score(found.liked, found.score))
    assert values["pairs/rated"] == 400
    metric.reset()
    metric.update(JudgedPairs(found.user[:5], found.item[:5], found.score[:5], found.liked[:5]))
    assert metric.compute()["pairs/rated"] == 5


def test_the_interval_draws_users_with_all_their_pairs() -> None:
    # One user has 300 of 304 pairs: drawn by pairs, the interval would be narrow.
    user = torch.tensor([0] * 300 + [1, 2, 3, 4])
    liked = torch.arange(304) % 2 == 0
    score = torch.where(user == 0, liked.float(), 1 - liked.float())
    found = JudgedPairs(user, user, score, liked)
    drawn = replicates(found, draws=400)
    assert len(drawn) == 400
    # Without user 0 in the draw (a third of all), every pair of classes is the wrong way round.
    assert float((drawn == 0).double().mean()) == pytest.approx(0.8**5, abs=0.08)
    low, high = drawn.nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert low == 0
    assert high > 0.9
    assert torch.equal(replicates(found, draws=50, seed=3), replicates(found, draws=50, seed=3))


def test_candidates_go_to_their_owners_and_nothing_else_is_listed() -> None:
    scores = torch.tensor([[1.0, 2.0], [3.0, 9.0], [4.0, 9.0]])
    candidates = torch.tensor([[0, 3], [1, -1], [2, -1]])
    found = among(scores, candidates, torch.tensor([1, 0, 0]), 2, 4)
    nothing = -torch.inf
    assert found.tolist() == [[nothing, 3.0, 4.0, nothing], [1.0, nothing, nothing, 2.0]]


def test_pairs_of_two_processes_are_those_of_one_by_user(tmp_path: Path) -> None:
    """The first process has none; the second's come in another order of users, and one with each of its pairs."""
    found = pairs()
    order = found.user.argsort(stable=True)
    torch.save((found.user, found.item, found.score, found.liked), tmp_path / "pairs.pt")
    expected = [part[order].tolist() for part in (found.user, found.item, found.score.float(), found.liked)]
    torch.save((expected, float(auc(found.score.float(), found.liked))), tmp_path / "expected.pt")
    script = textwrap.dedent(
        """
        import sys
        import pytest
        import torch
        from metrics._judged import JudgedMetrics, JudgedPairs

        folder, rank = sys.argv[1], int(sys.argv[2])
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
        metrics = JudgedMetrics()
        if rank == 1:
            metrics.update(JudgedPairs(*torch.load(f"{folder}/pairs.pt")))
        expected, auc = torch.load(f"{folder}/expected.pt")
        assert metrics.compute() == {"auc": pytest.approx(auc, abs=1e-12), "pairs": 400}
        pairs = metrics.pairs()
        assert [part.tolist() for part in (pairs.user, pairs.item, pairs.score, pairs.liked)] == expected
        assert pairs.rating.isnan().all()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        """
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(rank)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
