"""Searches: the test split unread until there is a winner, one journal for all processes, and going on after a kill."""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from command_line import output_of, start
from records import written_records

from datamodules import TextPairDataModule
from experiments import load_runs, run
from experiments.config.run import TextRun
from experiments.config.search import RangeConfig, Search, SearchConfig, build_search, load_search
from experiments.study.search import run_search, show
from experiments.study.search_cluster import run_task, submit
from experiments.study.trials import ENDED, Trials, count_alike, work
from recpeft.errors import DiskError, RecpeftError
from recpeft.stopping import Interrupted

pytestmark = pytest.mark.usefixtures("one_thread")

SPACE = {
    "adapter.rank": [2, 4],
    "training.learning_rate": {"low": 1.0e-4, "high": 2.0e-2, "log": True},
    "adapter.dropout": {"low": 0.0, "high": 0.3, "step": 0.1},
}
SEARCH = f"search={json.dumps({'trials': 4, 'space': SPACE, 'pruner': 'none'})}"


def searching(file: Path, overrides: tuple[str, ...] = (), **config: Any) -> Search:
    given = {"trials": 4, "space": SPACE, "pruner": "none"} | config
    search = load_search(file, [f"search={json.dumps(given)}", *overrides])
    assert search is not None
    return search


def summary(out: Path) -> dict[str, Any]:
    return json.loads((out / "tiny" / "search.json").read_text())


def outcomes(out: Path) -> list[tuple[Any, ...]]:
    """What is to be the same however a search was run."""
    return [(row["state"], row["values"], row["epochs"], row["steps"]) for row in summary(out)["trials"]]


@pytest.fixture(scope="module")
def searched(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, bool]]]:
    """A search in this process: the folder of studies; each reading of the test split, and if it had a winner."""
    out = tmp_path_factory.mktemp("searched")
    readings = []

    def note(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **named: Any) -> Any:
            readings.append((name, (out / "tiny" / "search.json").exists()))
            # The best one's, and those of the last, which was still held when it ended.
            assert len(list((out / "tiny").glob("*/checkpoints"))) <= 2
            return function(*arguments, **named)

        return noted

    with pytest.MonkeyPatch.context() as patched:
        for name in ("test_dataloader", "test_batches"):
            patched.setattr(TextPairDataModule, name, note(name, getattr(TextPairDataModule, name)))
        assert run_search(searching(study_file, ("references=[popularity]",)), out) == 0
    return out, readings


def test_the_test_split_is_unread_until_the_winner_is_named(searched: tuple[Path, list[tuple[str, bool]]]) -> None:
    _, readings = searched
    assert [name for name, _ in readings].count("test_dataloader") == 1  # the winner's; popularity reads no text
    assert all(named for _, named in readings)


def test_the_winner_has_the_best_validation_value_and_the_record_of_an_ordinary_run(
    searched: tuple[Path, list[tuple[str, bool]]], study_file: Path, tmp_path: Path
) -> None:
    out, _ = searched
    rows = [json.loads(path.read_text()) for path in (out / "tiny").glob("*/trial.json")]
    assert sorted(row["number"] for row in rows) == [0, 1, 2, 3]
    assert all(row["validation"] == max(row["epochs"]) and len(row["epochs"]) == 3 for row in rows)
    best = max(rows, key=lambda row: row["validation"])
    assert len({row["validation"] for row in rows}) > 1
    assert summary(out)["winner"]["run_id"] == best["run_id"]
    records = {record["run_id"]: record for _, record in written_records(out / "tiny")}
    assert sorted(record["method"] for record in records.values()) == ["lora", "popularity"]
    winner = records[best["run_id"]]
    assert winner["costs"]["steps_run"] == 0  # tested from its trial's checkpoint
    values = [f"{key}={value}" for key, value in best["values"].items()]
    (config,) = load_runs(study_file, values)
    ordinary = run(config, tmp_path)
    for part in ("run_id", "config", "test", "trace", "training", "parameters"):
        assert winner[part] == ordinary[part]


def test_only_the_winners_weights_are_kept(searched: tuple[Path, list[tuple[str, bool]]]) -> None:
    out, _ = searched
    assert not list((out / "tiny").glob("*/checkpoints"))
    assert len(list((out / "tiny").glob("*/adapter"))) == 1


def test_the_same_command_again_tries_nothing_and_more_trials_are_refused(
    searched: tuple[Path, list[tuple[str, bool]]], study_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out, _ = searched
    before = outcomes(out)
    monkeypatch.setattr("experiments.cell.train.run_trial", None)  # it would fail
    references = ("references=[popularity]",)
    assert run_search(searching(study_file, references), out) == 0
    assert outcomes(out) == before
    with pytest.raises(RecpeftError, match=r"in which search.trials was 4 and not 5"):
        run_search(searching(study_file, references, trials=5), out)
    with pytest.raises(RecpeftError, match=r"in which run.prompt.history was 4 and not 3"):
        run_search(searching(study_file, (*references, "prompt.history=3")), out)
    capsys.readouterr()
    show(searching(study_file, references), out)
    shown = capsys.readouterr().out
    assert "4 of 4 trials have ended" in shown
    assert f"the best so far is trial {summary(out)['winner']['number']} (" in shown


def test_a_finished_search_on_a_disk_for_reading_is_shown_and_tries_nothing(
    searched: tuple[Path, list[tuple[str, bool]]], study_file: Path, capsys: Any, read_only: Callable[[Path], None]
) -> None:
    out, _ = searched
    search = searching(study_file, ("references=[popularity]",))
    read_only(out)
    assert run_search(search, out) == 0
    capsys.readouterr()
    show(search, out)
    assert "4 of 4 trials have ended" in capsys.readouterr().out


def test_kill_9_within_a_trial_and_the_same_command_end_as_if_nothing_had_been(
    searched: tuple[Path, list[tuple[str, bool]]], study_file: Path, tmp_path: Path
) -> None:
    """Call 14 is the second trial's fifth step."""
    loss = f"loss={{name: outside.kills_itself, marker: '{tmp_path / 'killed'}', at_call: 14}}"
    command = ["run", study_file, "--out", tmp_path / "runs", "--set", SEARCH, "--set", loss]
    output_of(*command, code=-9)
    assert not (tmp_path / "runs" / "tiny" / "search.json").exists()
    assert "1 of 4 trials have ended" in output_of("plan", *command[1:])
    text = output_of(*command)
    assert outcomes(tmp_path / "runs") == outcomes(searched[0])
    assert text.count(" step 3: ") == 2  # of the trials 2 and 3; the first is done, and the second goes on
    assert summary(tmp_path / "runs")["winner"]["values"] == summary(searched[0])["winner"]["values"]
    tests = [
        next(record["test"] for _, record in written_records(out / "tiny") if record["method"] == "lora")
        for out in (tmp_path / "runs", searched[0])
    ]
    assert tests[0] == tests[1]


def test_two_processes_share_the_trials_and_one_that_dies_is_replaced(
    searched: tuple[Path, list[tuple[str, bool]]], study_file: Path, tmp_path: Path
) -> None:
    """Draws are functions of seed and number while nothing is learnt from what was tried (tpe's first ten)."""
    loss = f"loss={{name: outside.kills_itself, marker: '{tmp_path / 'killed'}', at_call: 5}}"
    text = output_of("run", study_file, "--out", tmp_path, "--workers", "2", "--set", SEARCH, "--set", loss)
    assert outcomes(tmp_path) == outcomes(searched[0])
    assert len(list((tmp_path / "tiny").glob("*/trial.json"))) == 4
    assert text.count("its process has died; another takes its place") == 1
    for number in (0, 1):
        assert f"worker {number}: trial " in text


def test_ctrl_c_saves_every_trial_and_the_same_command_goes_on(
    searched: tuple[Path, list[tuple[str, bool]]], study_file: Path, tmp_path: Path
) -> None:
    command = ["run", study_file, "--out", tmp_path, "--workers", "2", "--set", SEARCH]
    process = start(*command)
    until = time.monotonic() + 200
    while not list((tmp_path / "tiny").glob("*/checkpoints/last.ckpt")):
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert "stopped by SIGINT; what was tried is kept" in process.ended(75).stdout
    output_of(*command)
    assert outcomes(tmp_path) == outcomes(searched[0])


def test_a_trial_that_promises_nothing_ends_early(study_file: Path, tmp_path: Path) -> None:
    space = {"training.learning_rate": [5.0e-3, 1.0e-9]}
    given = {"trials": 2, "space": space, "sampler": "grid", "pruner": "median", "unpruned_trials": 1}
    good_first = next(
        seed for seed in range(20) if SearchConfig(**given, seed=seed).cell(0) == {"training.learning_rate": "0.005"}
    )
    assert run_search(searching(study_file, **given, seed=good_first), tmp_path) == 0
    rows = summary(tmp_path)["trials"]
    assert [(row["state"], row["steps"], len(row["epochs"])) for row in rows] == [("done", 9, 3), ("pruned", 3, 1)]
    assert summary(tmp_path)["winner"]["number"] == 0
    assert not list((tmp_path / "tiny").glob("*/checkpoints"))


# Without training: a run is a formula -------------------------------------------------------------


@pytest.fixture
def formula(monkeypatch: pytest.MonkeyPatch) -> list[TextRun]:
    """Each trial's three epochs have values that fall with its rank and learning rate; the list is of those trained."""
    trained: list[TextRun] = []

    def run_trial(config: TextRun, out: Path, watch: Any) -> dict[str, Any]:
        trained.append(config)
        if config.adapter.rank == 13:  # type: ignore[attr-defined]
            raise ArithmeticError("the loss is not a number")
        trace: list[dict[str, Any]] = []
        for epoch in range(3):
            value = 1 / config.adapter.rank - config.training.learning_rate + epoch / 100  # type: ignore[attr-defined]
            trace.append({"step": 3 * (epoch + 1), "validation": {config.evaluation.monitored: value}})
            watch(trace, epoch < 2)
        return {"trace": trace, "best": trace[-1]}

    monkeypatch.setattr("experiments.cell.train.run_trial", run_trial)
    return trained


def values_of(trials: Trials) -> list[dict[str, Any]]:
    return [row["values"] for row in trials.rows()]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_an_interrupted_search_draws_what_an_uninterrupted_one_does(
    sampler: str, formula: list[TextRun], study_file: Path, tmp_path: Path
) -> None:
    search = searching(study_file, trials=8, sampler=sampler, random_trials=3)
    whole = Trials(search, tmp_path / "whole")
    work(whole, debug=False)
    for number in range(8):
        with contextlib.ExitStack() as held:
            trials = Trials(search, tmp_path / "parts")  # as another process would
            trial, config = trials.take(held) or pytest.fail("there is one")
            assert trial.number == number
            trials.run(trial, config, debug=False)
    assert values_of(Trials(search, tmp_path / "parts")) == values_of(whole)
    assert len({str(values) for values in values_of(whole)}) == 8
    other = Trials(searching(study_file, trials=8, sampler=sampler, random_trials=3, seed=1), tmp_path / "other")
    work(other, debug=False)
    assert values_of(other) != values_of(whole)
    for values in values_of(whole):
        assert values["adapter.rank"] in (2, 4)
        assert values["adapter.dropout"] in (0.0, 0.1, 0.2, 0.3)
        assert 1e-4 <= values["training.learning_rate"] <= 2e-2


def test_a_grid_tries_every_combination_once(formula: list[TextRun], study_file: Path, tmp_path: Path) -> None:
    space = {"adapter.rank": {"low": 2, "high": 6, "step": 2}, "adapter.dropout": [0.0, 0.1]}
    trials = Trials(searching(study_file, trials=50, sampler="grid", space=space), tmp_path)
    work(trials, debug=False)
    tried = {(values["adapter.rank"], values["adapter.dropout"]) for values in values_of(trials)}
    assert len(trials.rows()) == 6
    assert tried == {(rank, dropout) for rank in (2, 4, 6) for dropout in (0.0, 0.1)}
    assert (trials.best() or {})["values"]["adapter.rank"] == 2


def test_equal_values_are_trained_once_and_sections_may_be_choices(
    formula: list[TextRun], study_file: Path, tmp_path: Path
) -> None:
    space = {"adapter": [{"method": "lora", "rank": 2}, {"method": "lora", "rank": 4, "dropout": 0.1}]}
    trials = Trials(searching(study_file, trials=6, sampler="random", space=space), tmp_path)
    work(trials, debug=False)
    rows = trials.rows()
    assert len(rows) == 6
    assert len(formula) == len({row["run_id"] for row in rows}) == 2
    assert all(row["validation"] == rows[row["same_as"]]["validation"] for row in rows if row["same_as"] is not None)


def test_two_processes_never_have_the_same_trial_nor_more_than_asked_for(
    formula: list[TextRun], study_file: Path, tmp_path: Path
) -> None:
    search = searching(study_file, trials=2)
    one, other = Trials(search, tmp_path), Trials(search, tmp_path)
    with contextlib.ExitStack() as held:
        with contextlib.ExitStack() as first:
            taken = one.take(first)
            second = other.take(held)
            assert taken is not None
            assert second is not None
            assert (taken[0].number, second[0].number) == (0, 1)
            assert one.take(held) is None
            work(one, debug=False, to_the_end=False)  # does not wait for the two
        again = other.take(held)  # the first's process has died
        assert again is not None
        assert (again[0].number, again[1].run_id) == (0, taken[1].run_id)
        assert other.take(held) is None


def test_a_failed_trial_is_told_and_a_search_without_a_good_one_ends_in_a_sentence(
    formula: list[TextRun], study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.cell.train.preflight", lambda *_: None)
    space = {"adapter.rank": [2, 13]}
    trials = Trials(searching(study_file, trials=2, sampler="grid", space=space), tmp_path / "some")
    work(trials, debug=False)
    assert sorted((row["state"], row["error"]) for row in trials.rows()) == [
        ("done", None),
        ("failed", "ArithmeticError: the loss is not a number"),
    ]
    with pytest.raises(RecpeftError, match="none of 1 trials has ended well, the last: ArithmeticError"):
        run_search(searching(study_file, trials=1, space={"adapter.rank": [13]}), tmp_path / "none")


def test_a_trial_whose_process_dies_at_the_same_step_is_given_up(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(BaseException):
        """Nothing of a killed process is caught."""

    def die(*_: Any) -> None:
        raise Died

    monkeypatch.setattr("experiments.cell.train.run_trial", die)
    search = searching(study_file, trials=1)
    for _ in range(3):
        with pytest.raises(Died):
            work(Trials(search, tmp_path), debug=False)
    trials = Trials(search, tmp_path)
    work(trials, debug=False)
    (row,) = trials.rows()
    assert "its process ended 3 times in a row at the same step" in row["error"]


@pytest.mark.parametrize("monitor", ["ndcg@5", "gini@5"])
def test_nan_is_the_worst_value_of_a_trial(
    monitor: str, study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all begin with NaN none is ended for it, but the one that still has none when others have a value."""
    traces = {2: [math.nan, 0.5, 0.4], 3: [math.nan, 0.5, 0.45], 4: [math.nan, math.nan, 0.45]}

    def run_trial(config: TextRun, out: Path, watch: Any) -> dict[str, Any]:
        trace: list[dict[str, Any]] = []
        for value in traces[config.adapter.rank]:  # type: ignore[attr-defined]
            trace.append({"step": 3 * (len(trace) + 1), "validation": {monitor: value}})
            watch(trace, len(trace) < 3)
        return {"trace": trace, "best": trace[2]}

    monkeypatch.setattr("experiments.cell.train.run_trial", run_trial)
    space = {"adapter.rank": [2, 3, 4]}
    given: dict[str, Any] = {"trials": 3, "sampler": "grid", "pruner": "median", "unpruned_trials": 1, "space": space}
    seed = next(n for n in range(99) if SearchConfig(**given, seed=n).cell(2) == {"adapter.rank": "4"})
    trials = Trials(searching(study_file, (f"evaluation.monitor={monitor}",), **given, seed=seed), tmp_path)
    work(trials, debug=False)
    assert {row["values"]["adapter.rank"]: row["state"] for row in trials.rows()} == {2: "done", 3: "done", 4: "pruned"}
    better = min if monitor == "gini@5" else max
    for row in trials.rows():
        numbers = [value for value in traces[row["values"]["adapter.rank"]] if not math.isnan(value)]
        assert row["validation"] == (None if row["state"] == "pruned" else better(numbers))


def test_a_disk_that_is_full_when_the_journal_is_written_is_a_sentence(
    formula: list[TextRun], study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = Trials(searching(study_file, trials=2), tmp_path)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("optuna.trial.Trial.report", full)
    monkeypatch.setattr("optuna.study.Study.tell", full)
    with pytest.raises(DiskError, match=r"the disk is full: could not write .*search\.journal"):
        work(trials, debug=False)


def test_hyperband_ends_trials_by_halving(formula: list[TextRun], study_file: Path, tmp_path: Path) -> None:
    trials = Trials(searching(study_file, trials=12, sampler="random", pruner="hyperband"), tmp_path)
    work(trials, debug=False)
    epochs = {state: [len(row["epochs"]) for row in trials.rows() if row["state"] == state] for state in ENDED}
    assert epochs["failed"] == []
    assert set(epochs["done"]) == {3}
    assert set(epochs["pruned"]) <= {1, 2}
    assert epochs["pruned"]


def test_lower_may_be_better(formula: list[TextRun], study_file: Path, tmp_path: Path) -> None:
    search = searching(study_file, ("evaluation.monitor=gini@5",), sampler="grid", space={"adapter.rank": [2, 4, 8]})
    trials = Trials(search, tmp_path)
    work(trials, debug=False)
    assert (trials.best() or {})["values"] == {"adapter.rank": 8}
    assert trials.study.direction == optuna.study.StudyDirection.MINIMIZE


def test_a_search_may_go_on_with_other_threads_and_trackers(
    formula: list[TextRun], study_file: Path, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as held:
        trials = Trials(searching(study_file, trials=2), tmp_path)
        trials.run(*(trials.take(held) or pytest.fail("there is one")), debug=False)
    how = ("threads=2", "trackers=[csv]")
    work(Trials(searching(study_file, how, trials=2), tmp_path), debug=False)
    assert [(len(run.trackers), run.threads) for run in formula] == [(0, 1), (1, 2)]


def test_a_trial_that_ends_as_the_best_while_others_checkpoints_are_dropped_keeps_its_own(
    formula: list[TextRun], study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = Trials(searching(study_file, trials=2, sampler="grid", space={"adapter.rank": [2, 4]}), tmp_path)
    work(trials, debug=False)
    worse, best = sorted(trials.rows(), key=lambda row: row["validation"])
    checkpoints = trials.folder / best["run_id"] / "checkpoints"
    checkpoints.mkdir(parents=True)
    journal = iter([[worse, best | {"state": "begun", "validation": None}]])
    monkeypatch.setattr(trials, "rows", lambda: next(journal, [worse, best]))
    trials.drop_checkpoints()
    assert checkpoints.exists()


@pytest.mark.parametrize(
    "line", ["{", "[]", "null", "[" * 30_000, '{"op_code": 7, "trial_id": 0, "step": 1, "intermediate_value": {}}']
)
def test_a_journal_that_is_none_is_a_sentence(
    line: str, formula: list[TextRun], study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = searching(study_file, trials=1)
    work(Trials(search, tmp_path), debug=False)
    journal = tmp_path / "tiny" / "search.journal"
    first, *others = journal.read_text().splitlines()
    journal.write_text("\n".join([first, *others[:-1], line, others[-1]]) + "\n")
    with pytest.raises(RecpeftError, match=r"search\.journal cannot be read \(.*; move the study's folder away"):
        show(search, tmp_path)


def test_an_arrays_tasks_share_the_trials_and_the_first_tests_the_winner(
    formula: list[TextRun], study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slurm.submit", lambda *_: "7")
    search = searching(study_file, trials=3)
    text, script, job = submit(search, tmp_path, None, {"max_parallel": 2}, dry_run=False)
    assert job == "7"
    assert script is not None
    assert "#SBATCH --array=0-1\n" in text
    file = script.parent / "search.yaml"
    assert f'slurm trials --out {tmp_path} {file} "$SLURM_ARRAY_TASK_ID"' in text
    assert run_task(file, 1, tmp_path) == 0  # the first has not begun
    assert len(formula) == 3
    assert not (tmp_path / "tiny" / "search.json").exists()
    assert run_task(file, 0, tmp_path) == 0
    assert len(formula) == 3
    assert [record["run_id"] for _, record in written_records(tmp_path / "tiny")] == [
        summary(tmp_path)["winner"]["run_id"]
    ]
    with pytest.raises(RecpeftError, match="give --max-parallel"):
        submit(search, tmp_path, None, {}, dry_run=True)
    monkeypatch.setattr("slurm.most_tasks", lambda: 2)
    assert "#SBATCH --array=0-1\n" in submit(search, tmp_path, None, {"max_parallel": 3}, dry_run=True)[0]


def test_a_stopped_trial_is_kept_and_counts_as_no_death(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise Interrupted("stopped")

    monkeypatch.setattr("experiments.cell.train.run_trial", stop)
    for _ in range(5):
        with pytest.raises(Interrupted):
            work(Trials(searching(study_file, trials=1), tmp_path), debug=False)
    (row,) = Trials(searching(study_file, trials=1), tmp_path).rows()
    assert (row["state"], row["error"]) == ("begun", None)


# The file -----------------------------------------------------------------------------------------


def test_the_winner_is_run_with_each_seed_beside_the_references(study_file: Path) -> None:
    search = searching(study_file, ("seeds=[0, 1]", "references=[popularity, frozen]"))
    runs = search.final({"adapter.rank": 2})
    assert [(run.method, getattr(run, "seed", None)) for run in runs] == [
        ("popularity", None), ("frozen", 0), ("frozen", 1), ("lora", 0), ("lora", 1),
    ]  # fmt: skip
    assert search.trial({"adapter.rank": 2}).run_id == runs[3].run_id
    assert searching(study_file, ("seeds=[3, 4]",)).base.seed == 3  # so that the winner's run is one of them


@pytest.mark.parametrize(
    ("low", "high", "step", "expected"),
    [(8, 64, 8, [8, 16, 24, 32, 40, 48, 56, 64]), (1, 3, None, [1, 2, 3]), (0.0, 0.3, 0.1, [0.0, 0.1, 0.2, 0.3])],
)
def test_a_range_with_steps_holds_these_numbers(low: Any, high: Any, step: Any, expected: list[float]) -> None:
    values = RangeConfig(low=low, high=high, step=step)
    found = [values.at(place) for place in range(int(values.size))]
    assert found == expected
    assert [type(number) for number in found] == [type(number) for number in expected]


def test_a_drawn_number_lies_on_the_steps_exactly() -> None:
    """Optuna adds up steps, and 0.1 + 2 * 0.1 is 0.30000000000000004, which would be another run."""
    assert RangeConfig(low=0.1, high=1.3, step=0.1).nearest(0.1 + 2 * 0.1) == 0.3
    assert RangeConfig(low=0.1, high=1.3).nearest(0.1 + 2 * 0.1) == 0.1 + 2 * 0.1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"adapter": {"method": "lroa"}}, "^adapter.method: .*lora"),
        ({"search": {"trials": 3}}, r"search.space is None; give a mapping"),
        ({"search": [1]}, r"search is \[1\]; give a mapping"),
        ({"search": {"space": {"adapter.rank": [2]}}}, "search.trials"),
        ({"space": {}}, "search.space"),
        ({"space": {"adapter.rnk": [2]}}, r"search.space.adapter.rnk with the value 2: .*rnk.*rank"),
        ({"space": {"adapter.rank": [2, 0]}}, "search.space.adapter.rank with the value 0: adapter.rank"),
        ({"space": {"adapter.dropout": {"low": 0.0, "high": 1.5}}}, "adapter.dropout with the value 1.5"),
        ({"space": {"adapter.rank": 8}}, "search.space.adapter.rank is 8; give a list, or a range"),
        ({"space": {"adapter.rank": []}}, "space.adapter.rank is an empty list"),
        ({"space": {"adapter.rank": [2, 2]}}, "with a value twice"),
        ({"space": {"adapter.rank": {"low": 8, "high": 4}}}, "low is 8 and high 4"),
        ({"space": {"adapter.rank": {"low": 4}}}, "search.space.adapter.rank.high"),
        ({"space": {"adapter.rank": {"low": 4, "high": 9, "step": 2}}}, "high - low must be a multiple"),
        ({"space": {"training.learning_rate": {"low": 0.0, "high": 1.0, "log": True}}}, "log needs a low above 0"),
        ({"space": {"adapter": [{"method": "lora"}], "adapter.rank": [2]}}, "set the same values"),
        ({"space": {"data.min_rating": [3]}}, "space names data.min_rating; search a key of prompt"),
        ({"space": {"seed": [0, 1]}}, "space names seed"),
        ({"space": {"training.learning_rate": {"low": 0.1, "high": 0.2}}, "sampler": "grid"}, "has no step"),
        ({"space": {"adapter.dropout": {"low": 0.0, "high": 0.5, "step": 1e-300}}}, "more than 1,000,000 values"),
        ({"space": {"adapter.rank": [datetime.date(2024, 1, 1)]}}, r"space.adapter.rank has the choice datetime.date"),
        ({"space": {"adapter": [{1: 2, "a": 3}]}}, "space.adapter has the choice {1: 2, 'a': 3}, with a"),
        ({"space": {"adapter.rank": [*range(1, 2000)]}}, "space has 1,999 choices and ends of ranges"),
        (
            {"space": {f"training.x{n}": [*range(20)] for n in range(4)}, "sampler": "grid"},
            "grid, and space has more than 100,000 combinations",
        ),
        ({"sampler": "cma"}, "search.sampler"),
        ({"pruner": "mean"}, "search.pruner"),
        ({"grid": {"adapter.rank": [2, 4]}}, "search and grid both say what is run"),
        ({"variants": {"low": {"adapter.rank": 2}}}, "search and variants"),
        ({"include": [{"adapter.rank": 2}]}, "search and include"),
        ({"ranker": {"name": "ease"}}, "the file names a ranker"),
        ({"distributed": {"devices": 2}, "training": {"accumulate_batches": 2}}, "distributed asks for several"),
    ],
)
def test_a_mistake_is_a_sentence_before_the_first_trial(
    changes: dict[str, Any], sentence: str, study_file: Path
) -> None:
    content = yaml.safe_load(study_file.read_text())
    search = {"trials": 3, "space": {"adapter.rank": [2, 4]}}
    search |= {key: changes[key] for key in ("space", "sampler", "pruner") if key in changes}
    content |= {"search": search} | {key: value for key, value in changes.items() if key not in search}
    if "search" in changes:
        content["search"] = changes["search"]
    with pytest.raises(RecpeftError, match=sentence):
        build_search(content)


def test_what_needs_the_runs_beforehand_says_how_to_get_them(study_file: Path) -> None:
    with pytest.raises(RecpeftError, match=r"study\.yaml: search finds its runs as it goes.*--set search=null"):
        load_runs(study_file, [SEARCH])
    assert len(load_runs(study_file, [SEARCH, "search=null"])) == 1


def test_a_value_set_at_the_command_line_is_no_longer_searched(study_file: Path) -> None:
    search = load_search(study_file, [SEARCH, "adapter.rank=8"])
    assert search is not None
    assert "adapter.rank" not in search.config.space
    assert search.base.adapter.rank == 8  # type: ignore[attr-defined]


def test_trials_validated_on_candidates_drawn_otherwise_are_not_compared_with_new_ones(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = searching(study_file, ("evaluation.candidates={kind: uniform, size: 9}",))
    for version, refused in ((1, False), (2, True)):
        monkeypatch.setattr("experiments.config.evaluation.DRAWN", version)
        expected = pytest.raises(RecpeftError, match="in which version of drawn candidates was 1 and not 2")
        with expected if refused else contextlib.nullcontext():
            Trials(search, tmp_path)


def test_a_winner_among_trials_that_validate_alike_is_told() -> None:
    rows = [{"state": "done", "validation": 0.0, "same_as": None} for _ in range(3)]
    others = [
        {"state": "failed", "validation": 0.5, "same_as": None},
        {"state": "done", "validation": 0.0, "same_as": 0},
    ]
    assert count_alike(rows + others) == 3
    assert count_alike(rows[:1] + others) == 0
    assert count_alike([*rows, {"state": "done", "validation": 0.1, "same_as": None}]) == 0


def test_a_winner_at_an_end_of_the_space_is_told(study_file: Path) -> None:
    rates = {"low": 1.0e-4, "high": 1.0e-2, "log": True}
    space = {"adapter.rank": [2, 4, 8], "training.learning_rate": rates, "adapter.alpha": [8, 16]}
    search = searching(study_file, space=space)
    ends = search.at_an_end({"adapter.rank": 8, "training.learning_rate": 1.1e-4, "adapter.alpha": 16})
    assert ends == ["adapter.rank", "training.learning_rate"]
    assert search.at_an_end({"adapter.rank": 4, "training.learning_rate": 1.0e-3, "adapter.alpha": 8}) == []
