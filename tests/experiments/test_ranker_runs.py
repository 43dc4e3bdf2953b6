"""Rankers as rows: saved with their run, found by their study, run once for each seed, and left out where they do not
fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import experiments.cell.ranker as module
from experiments import load_runs
from experiments.cell.candidates import frozen_candidates
from experiments.cell.data import prepare
from experiments.cell.train import run
from experiments.cli.app import app
from experiments.config.run import RankerRun, RunConfig
from experiments.finished.recommend import recommend
from experiments.records.record import run_folder
from experiments.reporting import write_report
from experiments.study.serial import run_study
from recpeft.errors import RecpeftError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the rankers that are fitted from here on."""
    found: list[str] = []
    original = module.fit_ranker

    def counted(config: Any, *arguments: Any, **options: Any) -> Any:
        found.append(config.name)
        return original(config, *arguments, **options)

    monkeypatch.setattr(module, "fit_ranker", counted)
    monkeypatch.setattr("experiments.finished.pipeline.fit_ranker", counted)
    return found


@pytest.fixture
def rankers(study_file: Path) -> Callable[..., list[RunConfig]]:
    def load(references: str, *overrides: str) -> list[RunConfig]:
        runs = load_runs(study_file, [f"references={references}", *overrides])
        return [run for run in runs if isinstance(run, RankerRun)]

    return load


@pytest.mark.parametrize("name", ["ease", "bpr"])
def test_recommend_loads_what_the_run_saved_and_fits_only_where_nothing_was_saved(
    name: str, rankers: Callable[..., list[RunConfig]], tmp_path: Path, fits: list[str]
) -> None:
    (config,) = rankers(f"[{name}]")
    run(config, tmp_path)
    folder = run_folder(tmp_path, config.study, config.run_id)
    assert fits == [name]
    loaded = recommend(folder.path, ["1", "5"], 4)
    assert fits == [name]
    folder.ranker.unlink()  # as of a version that saved none
    assert recommend(folder.path, ["1", "5"], 4).equals(loaded)
    assert fits == [name, name]


def test_a_saved_ranker_that_is_damaged_is_told(rankers: Callable[..., list[RunConfig]], tmp_path: Path) -> None:
    (config,) = rankers("[ease]")
    run(config, tmp_path)
    folder = run_folder(tmp_path, config.study, config.run_id)
    for path, content in ((folder.ranker_tensors, b"torn"), (folder.ranker, b"[1]")):
        path.write_bytes(content)
        with pytest.raises(RecpeftError, match=r"no whole ease ranker; remove it and ranker\.json"):
            recommend(folder.path, ["1"], 4)


def test_a_first_stage_is_fitted_once_for_a_study_and_taken_from_a_run_that_has_it(
    rankers: Callable[..., list[RunConfig]], tmp_path: Path, fits: list[str]
) -> None:
    (config,) = rankers("[ease]")
    of = prepare(config.data)

    def drawn(study: Path, size: int) -> None:
        first = {"kind": "first_stage", "size": size, "ranker": {"name": "ease"}}
        candidates = type(config.evaluation.candidates).model_validate(first)
        frozen_candidates(of, config.evaluation.model_copy(update={"candidates": candidates}), study)

    drawn(tmp_path / "alone", 9)
    drawn(tmp_path / "alone", 8)
    assert fits == ["ease"]
    run(config, tmp_path)
    drawn(tmp_path / config.study, 9)
    assert fits == ["ease", "ease"]


def test_a_ranker_that_draws_is_run_for_each_seed_and_any_other_once_under_its_old_id(
    rankers: Callable[..., list[RunConfig]],
) -> None:
    (once,) = rankers("[ease]")
    runs = rankers("[ease, bpr]", "seeds=[3, 4]")
    assert [(run.method, getattr(run, "seed", None)) for run in runs] == [("ease", None), ("bpr", 3), ("bpr", 4)]
    assert runs[0].run_id == once.run_id
    assert runs[1].run_id != runs[2].run_id


def test_a_file_of_rankers_alone_has_seeds_for_those_that_draw(study_file: Path) -> None:
    raw = {"study": "s", "data": {"source": "synthetic"}, "references": ["popularity", "bpr"], "seeds": [0, 1]}
    assert [(run.method, getattr(run, "seed", None)) for run in load_runs(raw)] == [
        ("popularity", None),
        ("bpr", 0),
        ("bpr", 1),
    ]
    with pytest.raises(RecpeftError, match="seed is for runs that draw, but ranker ease draws nothing; leave it out"):
        load_runs({"study": "s", "data": {"source": "synthetic"}, "ranker": {"name": "ease"}, "seed": 3})


def test_references_are_open_to_every_ranker_with_its_options(rankers: Callable[..., list[RunConfig]]) -> None:
    references = "[item_knn, {name: ease, l2: [10.0]}, {name: ease, memory_share: 0.9}, rankers.popularity]"
    runs = rankers(references)
    assert [run.method for run in runs] == ["item_knn", "ease", "ease", "rankers.popularity"]
    assert runs[1].run_id != runs[2].run_id
    assert runs[2].run_id == rankers("[ease]")[0].run_id  # how much memory there is says nothing of what is run
    with pytest.raises(RecpeftError, match=r"references is .*'nothing'.*give a list out of .*item_knn"):
        rankers("[nothing]")


def test_a_ranker_that_does_not_fit_is_left_out_with_a_sentence_and_the_study_goes_on(
    rankers: Callable[..., list[RunConfig]], study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = rankers("[ease, popularity]")
    monkeypatch.setattr(module, "machine_bytes", lambda: 64_000)
    assert run_study(configs, tmp_path, plan=configs) == 0
    ease, popularity = (
        json.loads(run_folder(tmp_path, config.study, config.run_id).record.read_text()) for config in configs
    )
    assert popularity["status"] == "done"
    sentence = "ease, whose matrices are 30 × 30 items, would need 0.0 GB of memory, and ranker.memory_share allows"
    assert ease["error"].startswith(sentence)
    write_report(tmp_path / configs[0].study, page=True)
    assert f"left out: {ease['run_id']} ease" in (tmp_path / configs[0].study / "report.md").read_text()
    page = (tmp_path / configs[0].study / "report.html").read_text()
    assert "1 left out" in page
    assert "failed;" not in page
    shown = CliRunner().invoke(app, ["status", str(tmp_path / configs[0].study)])
    assert "1 left out, 1 done" in shown.stdout
