"""The certificate of a record: of each field an input is corrupted: it changes or ``recpeft certify`` complains."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from datamodules import RecDataset, Split
from experiments import load_runs, run
from experiments.cell.candidates import frozen_candidates
from experiments.cell.certificate import file_hashes, invalid_outputs, invariance, leak_audit, surroundings
from experiments.cell.data import Prepared, prepare
from experiments.cli.app import app
from experiments.config.run import build_run
from experiments.finished.check_certificate import Check, check_certificate
from experiments.finished.judge import judge, read_lists
from experiments.records.record import RunFolder
from experiments.records.versions import git_state
from lightning_modules import _pooling
from lightning_modules._saved import save_adapter
from lightning_modules._two_tower_impl import TwoTower
from recpeft.errors import RecpeftError
from tests.conftest import write_tiny_data
from tests.lightning_modules.test_listwise_verbalizer import write_decoder

pytestmark = pytest.mark.usefixtures("one_thread")

CANDIDATES = "evaluation.candidates={kind: uniform, size: 9}"


def make(study_file: Path, out: Path, *overrides: str, method: str = "lora") -> Path:
    """Folder of a short run of the small world, on data of its own that may be spoilt."""
    data = out / "data"
    if not data.exists():
        write_tiny_data(data)
    configs = load_runs(study_file, [f"data.path={data}", "training.max_steps=3", *overrides])
    config = [config for config in configs if config.method == method][-1]
    run(config, out / "runs")
    return out / "runs" / config.study / config.run_id


@pytest.fixture(scope="module")
def finished(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run whose candidates are drawn."""
    return make(study_file, tmp_path_factory.mktemp("certified"), CANDIDATES)


@pytest.fixture(scope="module")
def verbalized(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that reads the answers Yes and No."""
    out = tmp_path_factory.mktemp("verbalized")
    decoder = write_decoder(out / "decoder")
    overrides = [
        "formulation={name: verbalizer}",
        f"backbone.name={decoder}",
        "prompt.max_user_tokens=64",
        "loss={name: bpr}",
        "adapter={method: lora, rank: 2}",
    ]
    return make(study_file, out, CANDIDATES, *overrides)


@pytest.fixture
def spoilt(finished: Path) -> Iterator[Path]:
    """The run, to be spoilt: it, its data and its candidates are put back afterwards."""
    whole = finished.parents[2]
    shutil.copytree(whole, whole.with_suffix(".kept"))
    yield finished
    shutil.rmtree(whole)
    whole.with_suffix(".kept").rename(whole)


def broken(folder: Path) -> dict[str, Check]:
    """What no longer holds."""
    return {check.field: check for check in check_certificate(folder) if check.state == "no longer holds"}


def certificate(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())["certificate"]
    return found


def edit_record(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    record = json.loads((folder / "result.json").read_text())
    change(record)
    (folder / "result.json").write_text(json.dumps(record))


# What it says --------------------------------------------------------------------------------------------


def test_a_sound_run_has_good_values_and_all_of_it_holds(finished: Path) -> None:
    found = certificate(finished)
    record = json.loads((finished / "result.json").read_text())
    assert found["hashes"]["data"] == record["data"]["hash"]
    assert found["hashes"]["candidates"] == record["candidates"]["hash"]
    assert found["hashes"]["config"] == finished.name
    assert found["leak_audit"]["duplicates_across_splits"] == 0
    assert found["tie_rate"] == record["test"]["tie_rate"]
    assert found["invariance"]["padding_largest_change_in_score_sd"] < 1e-4
    assert found["invariance"]["batch_size_largest_change_in_score_sd"] < 1e-4
    assert found["reload"]["largest_difference_in_score_sd"] < 1e-6
    assert found["invalid_outputs"]["share"] == 0
    assert found["invalid_outputs"]["places"] == 40 * 10  # nine candidates and the one that is to be found
    assert found["threads"] == {"configured": 1, "torch": 1}
    assert "label_proof" not in found
    checks = check_certificate(finished)
    assert {check.state for check in checks} == {"holds"}
    assert {check.field.partition(".")[0] for check in checks} >= set(found)


def test_a_model_that_reads_answers_says_by_which_tokens(verbalized: Path) -> None:
    proof = certificate(verbalized)["label_proof"]
    tokens = json.loads((verbalized.parents[2] / "decoder" / "tokenizer.json").read_text())["model"]["vocab"]
    assert proof["token_ids"] == {" Yes": tokens["Yes"], " No": tokens["No"]}
    assert proof["prompts"] == 30
    assert {check.state for check in check_certificate(verbalized)} == {"holds"}


APPLY = {"hashes", "leak_audit", "tie_rate", "invalid_outputs", "versions", "device", "threads", "git"}


def test_a_ranker_has_what_applies_and_all_of_it_holds(study_file: Path, tmp_path: Path) -> None:
    folder = make(study_file, tmp_path, "references=[popularity]", CANDIDATES, method="popularity")
    assert set(certificate(folder)) == APPLY
    assert set(certificate(folder)["hashes"]) == {
        *("data", "split", "statistics", "candidates", "config", "results", "files")
    }
    assert {check.state for check in check_certificate(folder)} == {"holds"}


def test_reordered_lists_have_what_applies(study_file: Path, tmp_path: Path) -> None:
    stage = "diversify={method: mmr, strength: 0.9, depth: 10}"
    folder = make(study_file, tmp_path, CANDIDATES, stage)
    assert "reordered" in json.loads((folder / "result.json").read_text())
    assert set(certificate(folder)) == APPLY
    assert certificate(folder)["invalid_outputs"]["share"] == 0
    states = {check.field: check.state for check in check_certificate(folder)}
    of_the_base = {"tie_rate", "hashes.prompt", "hashes.backbone"}
    assert {field for field, state in states.items() if state != "holds"} == of_the_base
    assert {states[field] for field in of_the_base} == {"not checked"}


def test_judged_lists_have_what_applies_and_their_invalid_places_are_counted(study_file: Path, tmp_path: Path) -> None:
    """Of two users' lists of five one place repeats an item, one is none of the catalogue and two are left out."""
    (config,) = load_runs(study_file)
    prepared = prepare(config.data)
    seen = {user: set(part["item"]) for (user,), part in prepared.split.known(at_test=True).group_by("user")}
    new = [[str(item + 1) for item in range(30) if item not in seen[user]][:5] for user in (0, 1)]
    lists = {"1": [*new[0][:3], new[0][0], "nothing"], "2": new[1][:3]}
    rows = [f"{user},{item},{rank}" for user, items in lists.items() for rank, item in enumerate(items, 1)]
    (tmp_path / "theirs.csv").write_text("\n".join(["user,item,rank", *rows]))
    judge(read_lists(tmp_path / "theirs.csv"), config, tmp_path)
    (folder,) = [path.parent for path in tmp_path.glob("**/result.json")]
    assert set(certificate(folder)) == APPLY
    missing = 2 + 38 * 5
    assert certificate(folder)["invalid_outputs"] == {
        "share": (2 + missing) / 200,
        "places": 200,
        "out_of_catalogue": 1,
        "repeated": 1,
        "seen": 0,
        "no_candidate": 0,
        "missing": missing,
    }
    unchecked = {check.field.partition(".")[0] for check in check_certificate(folder) if check.state != "holds"}
    assert unchecked == {"tie_rate", "invalid_outputs"}


# What goes in --------------------------------------------------------------------------------------------


def test_another_title_is_another_hash_of_the_data(spoilt: Path) -> None:
    items = spoilt.parents[2] / "data" / "ml-100k.item"
    items.write_text(items.read_text().replace("blue film 0", "blue film 99"))
    found = broken(spoilt)
    assert set(found) == {"hashes.data", "record.data"}
    assert found["hashes.data"].recorded != found["hashes.data"].now


def test_a_row_moved_from_test_to_train_is_another_split_and_statistic(spoilt: Path) -> None:
    """User 1's last film is now the first: another one is tested, and popularity is another."""
    rows = spoilt.parents[2] / "data" / "ml-100k.inter"
    lines = rows.read_text().split("\n")
    own = [place for place, line in enumerate(lines) if line.startswith("1\t")]
    first, last = own[0], own[-1]
    lines[last] = "\t".join([*lines[last].split("\t")[:3], str(int(lines[first].split("\t")[3]) - 1)])
    rows.write_text("\n".join(lines))
    assert set(broken(spoilt)) >= {"hashes.data", "hashes.split", "hashes.statistics"}


def test_altered_candidates_are_seen(spoilt: Path) -> None:
    (path,) = spoilt.parent.glob("candidates-*.parquet")
    frame = pl.read_parquet(path)
    frame.with_columns(item=pl.when(pl.int_range(frame.height) == 0).then(29 - pl.col("item")).otherwise("item")).cast(
        {"item": pl.Int32}
    ).write_parquet(path)
    found = broken(spoilt)
    assert set(found) == {"hashes.candidates"}
    assert "is not whole or was altered" in found["hashes.candidates"].note


def test_candidates_that_are_gone_are_drawn_anew_and_not_written(spoilt: Path) -> None:
    (path,) = spoilt.parent.glob("candidates-*.parquet")
    path.unlink()
    assert not broken(spoilt)
    assert not path.exists()


def test_another_prompt_is_another_hash(spoilt: Path) -> None:
    edit_record(spoilt, lambda record: record["config"]["prompt"].update(ending="; which next?"))
    assert set(broken(spoilt)) >= {"hashes.config", "hashes.prompt", "reload.largest_difference_in_score_sd"}


def test_another_config_is_another_run(spoilt: Path) -> None:
    edit_record(spoilt, lambda record: record["config"].update(seed=7))
    assert set(broken(spoilt)) == {"hashes.config"}


def test_another_backbone_is_seen_and_its_adapter_not_put_on_it(
    study_file: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(tiny_backbone, tmp_path / "backbone"))
    folder = make(study_file, tmp_path, f"backbone.name={own}")
    weights = load_file(own / "model.safetensors")
    save_file({name: 1.01 * value for name, value in weights.items()}, own / "model.safetensors", {"format": "pt"})
    found = broken(folder)
    assert set(found) == {"hashes.backbone", "reload.largest_difference_in_score_sd"}
    assert "was made for" in found["reload.largest_difference_in_score_sd"].note


def test_a_leak_shows_in_the_audit(spoilt: Path) -> None:
    """User 1 did all of it eleven days later: the other 39 users' test rows are then older than train's last."""
    rows = spoilt.parents[2] / "data" / "ml-100k.inter"
    lines = [line.split("\t") for line in rows.read_text().strip().split("\n")]
    later = [[*line[:3], str(int(line[3]) + 1_000_000)] if line[0] == "1" else line for line in lines]
    rows.write_text("\n".join(map("\t".join, later)) + "\n")
    found = broken(spoilt)["leak_audit.test_rows_before_train_end"]
    assert (found.recorded, found.now) == (0, 39)


def test_a_test_row_that_stands_in_train_too_shows_in_the_audit(world: tuple[RecDataset, Split]) -> None:
    dataset, split = world

    def audited(split: Split) -> dict[str, int]:
        return leak_audit(Prepared(dataset, split, {"split": {"audit": split.audit()}}))

    assert audited(split)["duplicates_across_splits"] == 0
    leaking = replace(split, train=pl.concat([split.train, split.test[:1]]), places=None)
    assert audited(leaking)["duplicates_across_splits"] == 1
    assert audited(leaking)["users_out_of_order"] == 1  # trained on behind what it is validated on


# What comes out ------------------------------------------------------------------------------------------


def test_a_metric_that_was_edited_is_seen(spoilt: Path) -> None:
    edit_record(spoilt, lambda record: record["test"].update({"ndcg@5/uniform9": 0.99}))
    found = broken(spoilt)
    assert set(found) == {
        "hashes.results",
        "record.test from per_user.parquet",
        "record.test from test_lists.parquet",
    }
    assert "ndcg@5/uniform9 0.99, now 0." in found["record.test from per_user.parquet"].note


@pytest.mark.parametrize("name", ["per_user.parquet", "test_lists.parquet", "validation_lists.parquet"])
def test_a_file_that_was_edited_is_seen(name: str, spoilt: Path) -> None:
    frame = pl.read_parquet(spoilt / name)
    frame[: frame.height - 1].write_parquet(spoilt / name)
    assert set(broken(spoilt)) == {f"hashes.files.{name}"}


def test_lists_that_were_forged_with_their_hash_are_not_the_models(spoilt: Path) -> None:
    """The first two items of every list change places, and each keeps its score's place."""
    path = spoilt / "test_lists.parquet"
    order = pl.col("rank").replace({1: 2, 2: 1})
    items = pl.read_parquet(path).sort("user", order)["item"]
    pl.read_parquet(path).sort("user", "rank").with_columns(items).write_parquet(path)
    forged = file_hashes(RunFolder(spoilt))["test_lists.parquet"]
    edit_record(spoilt, lambda r: r["certificate"]["hashes"]["files"].update({"test_lists.parquet": forged}))
    assert set(broken(spoilt)) == {
        "reload.largest_difference_in_score_sd",
        "record.test from test_lists.parquet",
        "per_user.parquet from test_lists.parquet",
    }


def test_the_tie_rate_is_that_of_the_lists(spoilt: Path) -> None:
    edit_record(spoilt, lambda record: record["certificate"].update(tie_rate=0.5))
    assert set(broken(spoilt)) == {"tie_rate"}


def test_a_constant_scorer_ties_everywhere(study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = TwoTower.score
    monkeypatch.setattr(TwoTower, "score", lambda *arguments: torch.zeros_like(score(*arguments)))
    folder = make(study_file, tmp_path)
    assert certificate(folder)["tie_rate"] == 1
    assert certificate(folder)["invariance"]["padding_largest_change_in_score_sd"] is None  # nothing to measure by


def test_places_that_hold_what_they_must_not_are_counted(finished: Path) -> None:
    """One of each kind, and a place with two faults counts once: 5 of 400, of which one is missing."""
    record = json.loads((finished / "result.json").read_text())
    config = build_run(record["config"])
    prepared = prepare(config.data)
    drawn = frozen_candidates(prepared, config.evaluation, finished.parent)
    assert drawn is not None
    lists = pl.read_parquet(finished / "test_lists.parquet").sort("user", "rank")

    def found(lists: pl.DataFrame, candidates: pl.DataFrame | None = drawn.test) -> dict[str, Any]:
        return invalid_outputs(prepared, config.evaluation, lists, candidates, scored=True)

    assert found(lists)["share"] == 0
    rows = lists.to_dicts()
    assert [row["rank"] for row in rows[:20]] == [*range(1, 11), *range(1, 11)]
    seen = prepared.split.train.filter(pl.col("user") == 0)["item"][0]
    assert rows[0]["user"] == "1"
    rows[0]["item"] = prepared.dataset.items["raw_id"][seen]  # watched before
    rows[1]["item"] = "nothing"  # in no catalogue, and its score is none
    rows[1]["score"] = float("nan")
    rows[11]["item"] = rows[10]["item"]
    rows[12]["score"] = float("inf")
    del rows[19]
    edited = pl.DataFrame(rows, lists.schema)
    assert found(edited) == {
        "share": 5 / 400,
        "places": 400,
        "outside_candidates": 2,
        "repeated": 1,
        "score_not_finite": 2,
        "missing": 1,
    }
    # Of the catalogue's 30 films each user has watched 11, and 10 of the other 19 are listed.
    whole = found(edited, None)
    assert (whole["outside_candidates"], whole["missing"]) == (2, 40 * 9 + 1)


# The model -----------------------------------------------------------------------------------------------


def test_changes_of_scores_are_in_their_standard_deviation() -> None:
    measured = {"users": 4, "batch": 0.5, "padding": 0.25, "standard_deviation": 2.0}
    assert invariance(measured) == {
        "users": 4,
        "padding_largest_change_in_score_sd": 0.125,
        "batch_size_largest_change_in_score_sd": 0.25,
    }


def test_pooling_that_looks_at_padding_is_seen(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_pooling.POOLINGS, "mean", lambda states, mask: states.mean(dim=1))
    assert "invariance.padding_largest_change_in_score_sd" in broken(finished)


def test_scores_that_cannot_be_measured_again_leave_the_other_checks(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr("experiments.finished.check_certificate.diagnose", fail)
    found = broken(finished)
    assert {field.partition(".")[0] for field in found} == {"invariance", "reload"}
    assert {check.note for check in found.values()} == {"OutOfMemoryError: no memory left"}


def test_scores_that_depend_on_the_batch_are_seen(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = TwoTower.score
    monkeypatch.setattr(TwoTower, "score", lambda self, users, *of: score(self, users, *of) + users.texts.size)
    assert "invariance.batch_size_largest_change_in_score_sd" in broken(finished)


def test_an_adapter_that_was_edited_scores_otherwise(spoilt: Path) -> None:
    path = spoilt / "adapter" / "adapter_model.safetensors"
    save_file({name: -value for name, value in load_file(path).items()}, path, {"format": "pt"})
    assert broken(spoilt).keys() == {"hashes.files.adapter/adapter_model.safetensors"}  # both signs cancel in B @ A
    save_file({name: 3 * value for name, value in load_file(path).items()}, path, {"format": "pt"})
    assert broken(spoilt).keys() == {
        "hashes.files.adapter/adapter_model.safetensors",
        "reload.largest_difference_in_score_sd",
    }


def test_an_adapter_that_is_gone_is_seen(spoilt: Path) -> None:
    (spoilt / "adapter" / "adapter_model.safetensors").unlink()
    found = broken(spoilt)
    assert found["hashes.files.adapter/adapter_model.safetensors"].now is None
    assert "holds no adapter" in found["reload.largest_difference_in_score_sd"].note


def test_saving_that_loses_something_is_measured(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(model: Any, folder: Path, backbone: Any) -> None:
        save_adapter(model, folder, backbone)
        path = folder / "adapter_model.safetensors"
        save_file({name: 0 * value for name, value in load_file(path).items()}, path, {"format": "pt"})

    monkeypatch.setattr("experiments.cell.text.save_adapter", forgetful)
    folder = make(study_file, tmp_path)
    assert certificate(folder)["reload"]["largest_difference_in_score_sd"] > 0.1


def test_answers_that_have_other_tokens_by_now_are_seen(verbalized: Path) -> None:
    path = verbalized.parents[2] / "decoder" / "tokenizer.json"
    kept = path.read_text()
    yes, no = certificate(verbalized)["label_proof"]["token_ids"].values()
    tokenizer = json.loads(kept)
    tokenizer["model"]["vocab"] |= {"Yes": no, "No": yes}
    path.write_text(json.dumps(tokenizer))
    found = broken(verbalized)
    path.write_text(kept)
    assert found["label_proof.token_ids. Yes"].now == no
    assert "reload.largest_difference_in_score_sd" in found  # every score has the other sign


def test_answers_that_cannot_be_told_apart_any_more_are_seen(verbalized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def label_proof(*_: Any) -> None:
        raise RecpeftError("the answers begin with the same token")

    monkeypatch.setattr("experiments.finished.check_certificate.label_proof", label_proof)
    found = broken(verbalized)
    assert set(found) == {"label_proof.token_ids. Yes", "label_proof.token_ids. No", "label_proof.prompts"}


@pytest.mark.parametrize(
    "overrides",
    [
        ["formulation={name: two_stage, first: {name: popularity}, size: 12, second: {name: two_tower}}"],
        [
            "data.liked_from=4",
            "data.split={kind: per_user_temporal, ratios: [0.6, 0.2, 0.2]}",
            "training={max_steps: 2, users_per_step: 8, examples: interactions, negatives: {in_batch: false}}",
            "loss={name: bce}",
            "evaluation={k: [1], monitor: auc, candidates: {kind: rated, rolling: true}}",
        ],
        ["training.precision=bf16-mixed"],
        ["backbone.width=int8"],
    ],
    ids=["two_stage", "rolling", "bf16", "int8"],
)
def test_what_is_ranked_and_computed_otherwise_is_certified_too(
    overrides: list[str], study_file: Path, tmp_path: Path
) -> None:
    folder = make(study_file, tmp_path, *overrides)
    found = certificate(folder)
    assert found["reload"]["largest_difference_in_score_sd"] == 0  # to the last bit: the same batches
    assert found["invalid_outputs"]["share"] == 0
    assert {check.state for check in check_certificate(folder)} <= {"holds", "not checked"}
    assert ("proposals" in found["hashes"]) == ("two_stage" in overrides[0])


# Surroundings --------------------------------------------------------------------------------------------


def test_threads_are_those_that_torch_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    record = {"versions": {}, "device": "cpu", "threads": 2}
    assert surroundings(record)["threads"] == {"configured": 2, "torch": 3}


@pytest.mark.parametrize(
    ("field", "value"), [("versions.torch", "1.0"), ("device", "A100"), ("threads.torch", 64), ("git.commit", "0" * 40)]
)
def test_other_surroundings_are_told_and_are_no_failure(field: str, value: Any, spoilt: Path) -> None:
    part, _, name = field.partition(".")
    edit_record(spoilt, lambda record: record["certificate"].update({part: {name: value} if name else value}))
    found = {check.field: check for check in check_certificate(spoilt)}
    assert found[field].state == "differs"
    assert found[field].recorded == value
    assert not {check.state for check in found.values()} & {"no longer holds"}


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


def test_git_state_is_of_our_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = git_state.__wrapped__
    (tmp_path / "recpeft").mkdir()
    source = tmp_path / "recpeft" / "__init__.py"
    source.write_text("")
    assert state(tmp_path) is None  # no checkout
    (tmp_path / "notes.txt").write_text("another project's")
    git(tmp_path, "init")
    git(tmp_path, "add", "notes.txt")
    git(tmp_path, "commit", "-m", "first")
    assert state(tmp_path) is None  # in a checkout, but no part of it
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "second")
    clean = state(tmp_path)
    assert clean is not None
    assert len(clean["commit"]) == 40
    assert not clean["dirty"]
    (tmp_path / "notes.txt").write_text("edited, and no source of ours")
    assert state(tmp_path) == clean
    source.write_text("edited")
    assert state(tmp_path) == clean | {"dirty": True}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert state(tmp_path) is None  # git is not installed


# The command ---------------------------------------------------------------------------------------------


def test_the_command_says_what_no_longer_holds(spoilt: Path) -> None:
    sound = CliRunner().invoke(app, ["certify", str(spoilt)])
    assert sound.exit_code == 0
    assert "holds            hashes.data: " in sound.output
    edit_record(spoilt, lambda record: record["config"].update(seed=7))
    other = CliRunner().invoke(app, ["certify", str(spoilt)])
    assert other.exit_code == 1
    assert f"no longer holds  hashes.config: recorded {spoilt.name}, now " in other.output
    told = CliRunner().invoke(app, ["certify", str(spoilt), "--json"])
    assert told.exit_code == 1
    found = json.loads(told.output)
    assert not found["holds"]
    assert [check["field"] for check in found["checks"] if check["state"] == "no longer holds"] == ["hashes.config"]


def test_what_is_no_finished_run_cannot_be_checked(spoilt: Path, tmp_path: Path) -> None:
    with pytest.raises(RecpeftError, match="holds no record"):
        check_certificate(tmp_path)
    edit_record(spoilt, lambda record: record.pop("certificate"))
    with pytest.raises(RecpeftError, match=r"has no certificate.*run it again"):
        check_certificate(spoilt)
    edit_record(spoilt, lambda record: record.update(status="failed", error="no"))
    with pytest.raises(RecpeftError, match=r"is no finished run \(no\)"):
        check_certificate(spoilt)
