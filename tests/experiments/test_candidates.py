"""Candidates of a study: drawn once, the same for all its runs, and never mixed up with the whole catalogue."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from records import written_records

from experiments import load_runs, run_all
from experiments.cell.allowed import known_matrix
from experiments.cell.assemble import make_data, make_module
from experiments.cell.candidates import Candidates, frozen_candidates
from experiments.cell.data import Prepared, prepare
from experiments.cell.ranker import _measure, fit_ranker
from experiments.cell.suite import make_suite
from experiments.config.evaluation import EvaluationConfig
from experiments.config.run import TextRun
from lightning_modules import load
from metrics import RankedLists
from metrics._judged import among
from metrics._suite import Ranked
from recpeft.errors import RecpeftError
from recpeft.validation import build_plugin


def prepared(**options: Any) -> Prepared:
    source: Any = build_plugin("datamodules", "source", {"source": "synthetic", **options}, "data")
    return prepare(source)


def evaluation(**candidates: Any) -> EvaluationConfig:
    return EvaluationConfig.model_validate({"k": [5], "monitor": "ndcg@5", "candidates": candidates})


def drawn(of: Prepared, study: Path | None = None, **candidates: Any) -> Candidates:
    found = frozen_candidates(of, evaluation(**candidates), study)
    assert found is not None
    return found


def sets(frame: pl.DataFrame) -> dict[int, set[int]]:
    return {key[0]: set(rows["item"]) for key, rows in frame.group_by("user")}  # type: ignore[misc]


class Constant:
    """Knows nothing."""

    details: dict[str, float] = {}  # noqa: RUF012

    def score(self, users: np.ndarray, history: Any) -> torch.Tensor:
        return torch.zeros(history.shape)


class Listens:
    """Takes what a suite of metrics is given."""

    def __init__(self) -> None:
        self.lists: list[RankedLists] = []

    def reset(self) -> None: ...

    def update(self, ranked: Ranked) -> None:
        self.lists.append(ranked.lists)

    def compute(self) -> dict[str, float]:
        return {}


# The file ----------------------------------------------------------------------------------------------


def test_the_whole_catalogue_has_no_file(tmp_path: Path) -> None:
    assert frozen_candidates(prepared(), EvaluationConfig(), tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "candidates",
    [
        {"kind": "uniform", "size": 20},
        {"kind": "popularity", "size": 20},
        {"kind": "first_stage", "size": 20, "ranker": {"name": "popularity"}},
    ],
)
def test_candidates_are_written_once_and_read_by_the_next(candidates: dict[str, Any], tmp_path: Path) -> None:
    first = drawn(prepared(), tmp_path, **candidates)
    (path,) = tmp_path.glob("candidates-*.parquet")
    before = path.stat().st_mtime_ns
    second = drawn(prepared(), tmp_path, **candidates)
    assert path.stat().st_mtime_ns == before
    assert second.validation.equals(first.validation)
    assert second.test.equals(first.test)
    assert first.hash == second.hash == drawn(prepared(), None, **candidates).hash
    assert len(first.hash) == 16
    path.unlink()
    assert drawn(prepared(), tmp_path, **candidates).hash == first.hash


def test_the_file_names_users_and_items_by_the_datas_own_ids(tmp_path: Path) -> None:
    of = prepared()
    found = drawn(of, tmp_path, kind="uniform", size=20)
    (path,) = tmp_path.glob("candidates-*.parquet")
    table = pl.read_parquet(path)
    assert table["hash"].unique().to_list() == [found.hash]
    for part, frame in (("validation", found.validation), ("test", found.test)):
        rows = table.filter(pl.col("part") == part)
        assert rows.select("user", "item").equals(frame)
        assert rows["user_id"].to_list() == [of.dataset.users["raw_id"][user] for user in frame["user"]]
        assert rows["item_id"].to_list() == [of.dataset.items["raw_id"][item] for item in frame["item"]]


def test_what_the_candidates_depend_on_has_a_file_of_its_own(tmp_path: Path) -> None:
    choices: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"kind": "uniform", "size": 20}),
        ({}, {"kind": "uniform", "size": 21}),
        ({}, {"kind": "uniform", "size": 20, "seed": 1}),
        ({}, {"kind": "popularity", "size": 20}),
        ({"data_seed": 1}, {"kind": "uniform", "size": 20}),
        ({"split": "leave_one_out"}, {"kind": "uniform", "size": 20}),
        ({}, {"kind": "first_stage", "size": 20, "ranker": {"name": "popularity"}}),
        ({}, {"kind": "first_stage", "size": 20, "ranker": {"name": "ease", "l2": [100.0]}}),
    ]
    hashes = {drawn(prepared(**data), tmp_path, **candidates).hash for data, candidates in choices}
    assert len(hashes) == len(list(tmp_path.glob("candidates-*.parquet"))) == len(choices)


def test_a_first_stage_chosen_by_another_metric_is_another_file(tmp_path: Path) -> None:
    first = {"kind": "first_stage", "size": 20, "ranker": {"name": "ease"}}
    for change in ({}, {"monitor": "recall@5"}, {"mask_seen": False}):
        frozen_candidates(prepared(), evaluation(**first).model_copy(update=change), tmp_path)
    assert len(list(tmp_path.glob("*.parquet"))) == 3


@pytest.mark.parametrize("change", ["item", "dropped", "truncated", "text"])
def test_an_altered_file_is_refused(change: str, tmp_path: Path) -> None:
    drawn(prepared(), tmp_path, kind="uniform", size=20)
    (path,) = tmp_path.glob("candidates-*.parquet")
    table = pl.read_parquet(path)
    if change == "item":
        item = pl.when(pl.int_range(pl.len()) == 7).then(159 - pl.col("item")).otherwise("item")
        table.with_columns(item.cast(pl.Int32).alias("item")).write_parquet(path)
    elif change == "dropped":
        table.head(table.height - 1).write_parquet(path)
    elif change == "truncated":
        path.write_bytes(path.read_bytes()[:500])
    else:
        path.write_text("nothing")
    with pytest.raises(RecpeftError, match=r"candidates-.*\.parquet is not whole or was altered; remove it"):
        drawn(prepared(), tmp_path, kind="uniform", size=20)


def test_more_candidates_than_there_are_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(RecpeftError, match=r"size is 141, but 200 of 200 users .* with 140; lower size"):
        drawn(prepared(), tmp_path, kind="uniform", size=141)
    with pytest.raises(RecpeftError, match=r"is to give 145 items, but a user has only 144 items .*; lower"):
        drawn(prepared(), tmp_path, kind="first_stage", size=145, ranker={"name": "popularity"})
    assert list(tmp_path.glob("*.parquet")) == []


# What a first stage is ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_seen", [True, False])
def test_a_first_stage_is_eases_best_items_that_the_user_has_not_seen(mask_seen: bool) -> None:
    of = prepared()
    config = evaluation(kind="first_stage", size=15, ranker={"name": "ease", "l2": [20.0]})
    found = frozen_candidates(of, config.model_copy(update={"mask_seen": mask_seen}), None)
    assert found is not None
    train = np.zeros((200, 160))
    train[of.split.train["user"].to_numpy(), of.split.train["item"].to_numpy()] = 1
    inverse = np.linalg.inv(train.T @ train + 20.0 * np.eye(160))
    weight = np.eye(160) - inverse / np.diag(inverse)
    known = train.copy()
    for frame, added in ((found.validation, None), (found.test, of.split.validation)):
        if added is not None:
            known[added["user"].to_numpy(), added["item"].to_numpy()] = 1
        for user, items in sets(frame).items():
            scores = known[user] @ weight
            if mask_seen:
                scores[known[user] == 1] = -np.inf
            best = np.sort(scores)[::-1]
            assert best[14] - best[15] > 1e-6  # no tie at the boundary
            assert items == set(np.argsort(-scores)[:15].tolist())


def test_a_first_stage_with_ties_takes_the_best_and_draws_among_equals() -> None:
    of = prepared()
    counts = np.bincount(of.split.train["item"].to_numpy(), minlength=160)
    own = {key[0]: set(rows["item"]) for key, rows in of.split.known(at_test=True).group_by("user")}
    zero, one = (
        drawn(of, kind="first_stage", size=15, ranker={"name": "popularity"}, seed=seed).test for seed in (0, 1)
    )
    for user, items in sets(zero).items():
        left = set(range(160)) - items - own[user]
        assert len(items) == 15
        assert not items & own[user]
        assert min(counts[item] for item in items) >= max(counts[item] for item in left)
    assert sets(zero) != sets(one)
    assert len({frozenset(items) for items in sets(zero).values()}) > 20


def test_a_first_stage_is_of_the_users_own_domain() -> None:
    sizes = {"source": "synthetic", "num_users": 20, "num_items": 64, "interactions_per_user": 6}
    domains = {"films": {**sizes, "num_users": 60, "data_seed": 1}, "books": {**sizes, "data_seed": 2}}
    of = prepared(source="joint", domains=domains)
    frame = drawn(of, kind="first_stage", size=20, ranker={"name": "popularity"}).test
    domain = of.dataset.items["domain"]
    for user, items in sets(frame).items():
        assert {domain[item] for item in items} == {of.dataset.users["domain"][user]}
        assert len(items) == 20
    with pytest.raises(RecpeftError, match="a user has only 59 items"):
        drawn(of, kind="first_stage", size=60, ranker={"name": "popularity"})


# Rankers on candidates ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_a_constant_scorer_on_candidates_gets_chance(kind: str) -> None:
    # One item to be found among 20: a list of 5 holds it in a quarter of all cases.
    of = prepared(num_users=2000, interactions_per_user=5, split="leave_one_out")
    config = evaluation(kind=kind, size=19)
    frame = drawn(of, kind=kind, size=19).test
    metric = make_suite(of, config)
    found = _measure(metric, Constant(), of, config, True, of.split.test, frame)
    stamp = f"/{kind}19"
    assert found["users"] == 2000
    assert found[f"hit_rate@5{stamp}"] == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 2000) ** 0.5)
    gain = sum(1 / np.log2(place + 1) for place in range(1, 6)) / 20
    assert found[f"ndcg@5{stamp}"] == pytest.approx(gain, abs=0.03)
    whole = make_suite(of, EvaluationConfig(k=(5,), monitor="ndcg@5"))
    full = _measure(whole, Constant(), of, EvaluationConfig(k=(5,), monitor="ndcg@5"), True, of.split.test, None)
    # 156 items are not known: 5/156
    assert full["hit_rate@5"] == pytest.approx(5 / 156, abs=4 * (0.032 / 2000) ** 0.5)


@pytest.mark.parametrize("candidates", [{"kind": "uniform"}, {"kind": "first_stage", "ranker": {"name": "popularity"}}])
def test_a_rankers_lists_hold_candidates_alone_and_are_its_best_of_them(candidates: dict[str, Any]) -> None:
    of = prepared()
    config = evaluation(size=12, **candidates)
    found = drawn(of, size=12, **candidates)
    ranker = fit_ranker(build_plugin("rankers", "name", {"name": "ease", "l2": [50.0]}, "ranker"), of, config)  # type: ignore[arg-type]
    listens: Any = Listens()
    known = known_matrix(of, True)
    _measure(listens, ranker, of, config, True, of.split.test, found.test)
    allowed = sets(found.test)
    users = 0
    for lists in listens.lists:
        for user, row in zip(lists.user.tolist(), lists.item[:, :5].tolist(), strict=True):
            scores = ranker.score(np.array([user]), known[[user]])[0].numpy()
            best = sorted(allowed[user], key=lambda item: -scores[item])[:5]
            assert [scores[item] for item in row] == [scores[item] for item in best]
            assert set(row) <= allowed[user]
            users += 1
    assert users == 200


# Text models on candidates -----------------------------------------------------------------------------


def test_scores_among_candidates_are_the_full_scores_of_them(study_file: Path) -> None:
    (run,) = load_runs(study_file, ["evaluation.candidates={kind: uniform, size: 9}"])
    assert isinstance(run, TextRun)
    of = prepare(run.data)
    found = frozen_candidates(of, run.evaluation, None)
    assert found is not None
    backbone = load(run.backbone.name)
    data = make_data(run, of, backbone.tokenizer, (found.validation, found.test))
    module = make_module(run, of, backbone.model, backbone).eval()
    with torch.no_grad():
        torch.nn.init.normal_(module.head.bias)
        catalogue, users = data.test_dataloader()
        for batch in catalogue:
            module.encode_catalogue(batch)
        for batch in users:
            allowed = sets(found.test)
            everything = module.score(batch)
            # A user with fewer candidates than others, whose row ends in padding.
            batch.candidates = torch.cat([batch.candidates, torch.full((len(batch.user), 1), -1)], dim=1)
            batch.candidates[3, 4:] = -1
            allowed[int(batch.user[3])] = set(batch.candidates[3, :4].tolist())
            of_batch = module.score(batch, batch.candidates)
            scores = among(of_batch, batch.candidates, torch.arange(len(of_batch)), *everything.shape)
            for row, user in enumerate(batch.user.tolist()):
                for item in range(of.dataset.num_items):
                    if item in allowed[user]:
                        assert scores[row, item] == pytest.approx(everything[row, item].item(), abs=1e-4)
                    else:
                        assert scores[row, item] == -torch.inf
            ranked = module._rank(batch)
            assert ranked is not None
            lists = ranked.lists
            for user, listed in zip(batch.user.tolist(), lists.item.tolist(), strict=True):
                assert {item for item in listed if item >= 0} <= allowed[user]
            assert (lists.item[3] >= 0).sum() == 4


def test_the_stamp_stands_in_record_trace_per_user_values_and_report(
    study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [
        "references=[popularity, ease]",
        "evaluation.candidates={kind: uniform, size: 9}",
        "training.max_steps=3",
    ]
    runs = load_runs(study_file, overrides)
    assert run_all(runs, tmp_path, 1) == 0
    (path,) = (tmp_path / "tiny").glob("candidates-*.parquet")
    drawn_hash = pl.read_parquet(path)["hash"][0]
    found = written_records(tmp_path / "tiny")
    assert sorted(record["method"] for _, record in found) == ["ease", "lora", "popularity"]
    for folder, record in found:
        assert record["status"] == "done", record
        assert record["monitor"] == "ndcg@5/uniform9"
        assert record["candidates"] == {"kind": "uniform", "hash": drawn_hash}
        measured = {"test": record["test"], **{str(row["step"]): row["validation"] for row in record["trace"]}}
        for part, values in measured.items():
            cut = [name for name in values if "@" in name]
            assert "ndcg@1/uniform9" in cut, part
            assert all(name.endswith("/uniform9") for name in cut), part
        columns = pl.read_parquet(folder.per_user).columns
        assert "ndcg@5/uniform9" in columns
        assert all(name.endswith("/uniform9") for name in columns if name != "raw_id")
        assert f"candidates {drawn_hash}" in record["audit"]
        assert json.loads(folder.record.read_text())["config"]["evaluation"]["candidates"]["size"] == 9
    assert f"candidates {drawn_hash}" in capsys.readouterr().out
    report = (tmp_path / "tiny" / "report.md").read_text()
    assert "9 frozen candidates (uniform9" in report
    assert drawn_hash in report
    with (tmp_path / "tiny" / "report.csv").open(newline="") as file:
        header = next(csv.reader(file))
    assert any("ndcg@5/uniform9" in name for name in header)
