"""Studies end to end on a small world: records, resume after kill -9, failures, the saved adapter."""

from __future__ import annotations

import errno
import fcntl
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from command_line import recpeft
from records import written_record, written_records
from safetensors.torch import load_file

from experiments import load_runs, run, run_all
from experiments.cell import candidates
from experiments.cli.reports import report
from experiments.config.run import RunConfig
from experiments.records.record import RunFolder, is_done, run_folder
from experiments.study.claims import claim, is_running, lock_path
from experiments.study.plan import cells, recall
from experiments.study.serial import label, run_study
from lightning_modules._two_tower_impl import CosineHead, TwoTower
from recpeft.errors import DiskError, RecpeftError
from recpeft.stopping import Interrupted


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "costs"}


def only(out: Path, study: str = "tiny") -> tuple[RunFolder, dict[str, Any]]:
    ((folder, record),) = written_records(out / study)
    return folder, record


@pytest.fixture(scope="module")
def finished(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any], Path]:
    """One LoRA run of the small world: its config, its record, the folder of all studies."""
    out = tmp_path_factory.mktemp("runs")
    (config,) = load_runs(study_file)
    return config, run(config, out), out


def test_a_record_holds_what_a_reader_of_the_table_needs(finished: Any) -> None:
    config, record, _ = finished
    assert record["status"] == "done"
    assert record["run_id"] == config.run_id
    assert record["data"]["users"] == 40
    assert record["data"]["split"]["audit"]["users_out_of_order"] == 0
    assert [epoch["step"] for epoch in record["trace"]] == [3, 6, 9]
    assert record["training"]["steps"] == 9
    assert record["costs"]["steps_run"] == 9
    assert record["threads"] == 1
    assert record["parameters"]["head"] == 30 + 1
    # Two layers of query, key, value, attention output (64 x 64), intermediate (64 x 128), output (128 x 64).
    assert record["parameters"]["adapter"] == 2 * 4 * (4 * (64 + 64) + 2 * (64 + 128))
    assert set(record["test"]) >= {
        "ndcg@1",
        "ndcg@5",
        "gini@5",
        "novelty@5",
        "ild_jaccard@5",
        "ndcg_gap_gender@5",
    }


def test_training_learns_the_planted_preference(finished: Any, study_file: Path, tmp_path: Path) -> None:
    """Four films of the user's own colour are left unseen, one of them the test film: who knows the colour
    gets (1 + 1/log2(3) + 1/2 + 1/log2(5)) / 4 = 0.64; the random backbone starts from the words in common."""
    _, record, _ = finished
    (zero_shot,) = load_runs(study_file, ["adapter={method: zero_shot}"])
    untrained = run(zero_shot, tmp_path)
    assert record["trace"][-1]["train_loss"] < record["trace"][0]["train_loss"]
    assert untrained["test"]["ndcg@5"] < 0.5
    assert record["test"]["ndcg@5"] > 0.55


def test_the_best_epoch_is_the_one_tested(finished: Any) -> None:
    _, record, _ = finished
    values = [epoch["validation"]["ndcg@5"] for epoch in record["trace"]]
    assert record["training"]["best_step"] == record["trace"][values.index(max(values))]["step"]


@pytest.mark.parametrize(("max_steps", "validated"), [(2, [2]), (5, [3, 5]), (6, [3, 6])])
def test_the_last_step_is_validated_even_within_an_epoch(
    max_steps: int, validated: list[int], study_file: Path, tmp_path: Path
) -> None:
    (config,) = load_runs(study_file, [f"training.max_steps={max_steps}"])
    record = run(config, tmp_path)
    assert [epoch["step"] for epoch in record["trace"]] == validated
    assert record["training"]["steps"] == max_steps
    assert record["training"]["best_step"] in validated


def test_the_same_seed_twice_gives_identical_records(finished: Any, tmp_path: Path) -> None:
    config, record, out = finished
    again = run(config, tmp_path)
    assert timeless(again) == timeless(record)
    folders = [run_folder(where, config.study, config.run_id) for where in (out, tmp_path)]
    for name in ("head.safetensors", "adapter/adapter_model.safetensors"):
        assert (folders[0].path / name).read_bytes() == (folders[1].path / name).read_bytes()
    assert pl.read_parquet(folders[0].per_user).equals(pl.read_parquet(folders[1].per_user))


def test_another_seed_gives_another_record(finished: Any, study_file: Path, tmp_path: Path) -> None:
    (config,) = load_runs(study_file, ["seed=1"])
    assert run(config, tmp_path)["trace"] != finished[1]["trace"]


def test_per_user_values_have_the_mean_of_the_record(finished: Any) -> None:
    config, record, out = finished
    values = pl.read_parquet(run_folder(out, config.study, config.run_id).per_user)
    assert values.height == 40
    assert set(values["raw_id"]) == {str(n) for n in range(1, 41)}
    for name in ("ndcg@5", "recall@1", "novelty@5"):
        assert values[name].fill_nan(None).mean() == pytest.approx(record["test"][name], abs=1e-12)


@pytest.mark.parametrize("at_call", [2, 5])
def test_kill_9_in_the_middle_and_the_same_command_end_as_if_nothing_had_been(
    at_call: int, finished: Any, study_file: Path, tmp_path: Path
) -> None:
    """The loss that kills its process is the uninterrupted run's in all else."""
    loss = f"loss={{name: outside.kills_itself, marker: '{tmp_path / 'killed'}', at_call: {at_call}}}"
    command = ["run", study_file, "--out", tmp_path / "runs", "--set", loss]
    recpeft(*command, code=-9)
    recpeft(*command)
    config, _, out = finished
    whole = written_record(run_folder(out, config.study, config.run_id)) or {}
    folder, killed = only(tmp_path / "runs")
    for part in ("test", "trace", "training", "parameters", "prompt"):
        assert killed[part] == whole[part]
    assert killed["costs"]["steps_run"] == 9 - (at_call - 1)
    adapters = [run_folder(out, config.study, config.run_id).adapter, folder.adapter]
    weights = [load_file(adapter / "adapter_model.safetensors") for adapter in adapters]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not folder.checkpoints.exists()


@pytest.mark.parametrize(("name", "at_call", "kept"), [("SIGUSR1", 2, 2), ("SIGTERM", 5, 5), ("SIGTERM", 6, 5)])
def test_a_signal_ends_a_run_at_the_step_with_code_75_and_the_same_command_goes_on(
    name: str, at_call: int, kept: int, finished: Any, study_file: Path, tmp_path: Path
) -> None:
    """Of call 6, an epoch's last, the validation behind it hears; the step before is what is saved."""
    loss = f"loss={{name: outside.asks_to_stop, marker: '{tmp_path / 'asked'}', at_call: {at_call}, signal: {name}}}"
    command = [
        "run",
        study_file,
        "--out",
        tmp_path / "runs",
        "--set",
        loss,
        "--set",
        "training.checkpoint_every_steps=5",
    ]
    stopped = recpeft(*command, code=75)
    assert f"stopped by {name}; " in stopped.stderr
    assert "goes on from there" in stopped.stderr
    assert not list((tmp_path / "runs").glob("**/result.json"))  # no failure
    recpeft(*command)
    config, _, out = finished
    whole = written_record(run_folder(out, config.study, config.run_id)) or {}
    folder, record = only(tmp_path / "runs")
    for part in ("test", "trace", "training", "parameters", "prompt"):
        assert record[part] == whole[part]
    assert record["costs"]["steps_run"] == 9 - kept
    adapters = [run_folder(out, config.study, config.run_id).adapter, folder.adapter]
    weights = [load_file(adapter / "adapter_model.safetensors") for adapter in adapters]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_run_interrupted_after_its_last_step_is_tested_without_training_again(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    config, record, _ = finished
    with monkeypatch.context() as patched:
        patched.setattr("experiments.cell.text.write_per_user", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path)
    again = run(config, tmp_path)
    assert again["costs"]["steps_run"] == 0
    assert timeless(again) == timeless(record)


def interrupted_at(step: int, config: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run ``config`` and interrupt it in the middle of the batch after ``step``."""
    loss, calls = TwoTower.loss, []

    def counted(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) > step:
            raise KeyboardInterrupt
        return loss(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(TwoTower, "loss", counted)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run(config, out)


@pytest.mark.parametrize(("damaged", "again"), [(["last"], 3), (["last", "last-before"], 9)])
def test_of_a_damaged_checkpoint_the_one_before_is_used(
    damaged: list[str], again: int, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off in the middle, or with a byte that is another one."""
    config, record, _ = finished
    interrupted_at(7, config, tmp_path, monkeypatch)
    for name in damaged:
        path = run_folder(tmp_path, config.study, config.run_id).checkpoints / f"{name}.ckpt"
        whole = path.read_bytes()
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        path.write_bytes(flipped if name == "last-before" else whole[:middle])
    resumed = run(config, tmp_path)
    assert resumed["costs"]["steps_run"] == again
    assert timeless(resumed) == timeless(record)


def test_a_study_may_be_moved_before_it_goes_on(finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, record, _ = finished
    interrupted_at(7, config, tmp_path / "here", monkeypatch)
    (tmp_path / "here").rename(tmp_path / "there")
    again = run(config, tmp_path / "there")
    assert again["costs"]["steps_run"] == 2
    assert timeless(again) == timeless(record)


def test_a_run_starts_anew_where_its_inputs_have_changed(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, record, _ = finished
    interrupted_at(7, config, tmp_path, monkeypatch)
    note = run_folder(tmp_path, config.study, config.run_id).checkpoints / "inputs.json"
    note.write_text(note.read_text().replace('"torch": "', '"torch": "0.'))
    again = run(config, tmp_path)
    assert again["costs"]["steps_run"] == 9
    assert timeless(again) == timeless(record)
    assert "it starts anew" in capsys.readouterr().out


def test_a_run_that_was_interrupted_with_other_candidates_starts_anew_and_says_so(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (config,) = load_runs(study_file, ["evaluation.candidates={kind: uniform, size: 9}"])
    draw = candidates.sampled

    def without_test_items(dataset: Any, parts: Any, *, at_test: bool, **options: Any) -> pl.DataFrame:
        """As version 1 drew validation's candidates."""
        found = draw(dataset, parts, at_test=at_test, **options)
        return found if at_test else found.join(parts.test, on=["user", "item"], how="anti")

    with monkeypatch.context() as patched:
        patched.setattr(candidates, "sampled", without_test_items)
        patched.setattr("experiments.config.evaluation.DRAWN", 1)
        interrupted_at(7, config, tmp_path, monkeypatch)
    again = run(config, tmp_path)
    assert again["costs"]["steps_run"] == 9
    assert timeless(again) == timeless(run(config, tmp_path / "apart"))
    assert len(list((tmp_path / "tiny").glob("candidates-*"))) == 2  # the old ones are not read
    assert "data, candidates, prompt, backbone, versions or the number" in capsys.readouterr().out


def test_a_run_that_another_process_has_claimed_is_left_to_it(
    study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_runs(study_file, ["references=[popularity]"])[0]
    with claim(run_folder(tmp_path, config.study, config.run_id)) as claimed:
        assert claimed
        assert run_study([config], tmp_path, wait=False) == 1
    told = capsys.readouterr()
    assert "left to another process" in told.out
    assert told.err.startswith(f"{label(config)}: another process has it, so that it is not done here")
    assert not run_folder(tmp_path, config.study, config.run_id).record.exists()
    assert run_study([config], tmp_path) == 0
    assert run_folder(tmp_path, config.study, config.run_id).record.exists()


def test_a_run_is_taken_over_where_the_process_that_has_it_dies(
    study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_runs(study_file, ["references=[popularity]"])[0]
    with ExitStack() as held, ThreadPoolExecutor() as pool:
        held.enter_context(claim(run_folder(tmp_path, config.study, config.run_id)))
        runner = pool.submit(run_study, [config], tmp_path)
        with pytest.raises(TimeoutError):
            runner.result(timeout=2)
        held.close()  # as the system does of a dead process
        assert runner.result(timeout=60) == 0
    told = capsys.readouterr().out
    assert "1 of 1 runs are other processes'; waiting for them" in told
    assert told.count(label(config)) == 2  # begun, and taken over
    assert is_done(run_folder(tmp_path, config.study, config.run_id))


def test_lists_wait_for_the_process_that_has_their_run_and_a_wish_to_stop_ends_that(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = "include=[{diversify: {method: mmr, strength: 0.5, depth: 10}}]"
    config = load_runs(study_file, [lists])[-1]
    asked = iter([None] * 3)
    monkeypatch.setattr("recpeft.stopping.asked", lambda: next(asked, "recpeft stop"))
    monkeypatch.setattr("time.sleep", lambda _: None)
    base = run_folder(tmp_path, config.study, config.undiversified.run_id)
    with claim(base), pytest.raises(Interrupted, match="stopped by recpeft stop; all runs were reached"):
        run_study([config], tmp_path)
    assert capsys.readouterr().out.count(label(config)) == 1  # not tried again and again
    assert not base.record.exists()


def test_a_finished_run_is_left_untouched(finished: Any) -> None:
    config, _, out = finished
    path = run_folder(out, config.study, config.run_id).record
    before = path.stat()
    assert run_study([config], out) == 0
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_a_failed_run_is_recorded_and_the_next_one_runs(study_file: Path, tmp_path: Path) -> None:
    arguments = ["run", study_file, "--out", tmp_path, "--set", "references=[popularity]"]
    done = recpeft(*arguments, "--set", "grid={loss.name: [outside.fails, listwise_softmax]}", code=1)
    assert "the loss is not a number" in done.stderr
    records = [record for _, record in written_records(tmp_path / "tiny")]
    failed = [record for record in records if record["status"] == "failed"]
    assert [record["error"] for record in failed] == ["ArithmeticError: the loss is not a number"]
    assert sorted(r["method"] for r in records if r["status"] == "done") == ["lora", "popularity"]
    table = (tmp_path / "tiny" / "report.md").read_text()
    assert "failed: " in table
    assert "popularity" in table


def test_only_runs_what_it_names(study_file: Path, tmp_path: Path) -> None:
    runs = load_runs(study_file, ["references=[popularity, ease]"])
    wanted = next(config.run_id for config in runs if config.method == "ease")
    recpeft("run", study_file, "--set", "references=[popularity, ease]", "--only", wanted, "--out", tmp_path)
    assert only(tmp_path)[1]["method"] == "ease"
    done = recpeft("run", study_file, "--only", "nonsense", "--out", tmp_path, code=2)
    assert "--only nonsense" in done.stderr


def test_a_saved_adapter_loads_in_plain_peft_and_scores_the_same(
    finished: Any, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Embeddings and scores by transformers and peft alone against recpeft's own, in a fresh process."""
    config, _, out = finished
    folder = run_folder(out, config.study, config.run_id)
    script = tmp_path / "plain.py"
    script.write_text(PLAIN)
    texts = ["red film 1 (1991)", "blue film 2 (1992)", "Watched: red film 3 (1993); red film 5 (1995);"]
    result = tmp_path / "result.pt"
    subprocess.run(
        [sys.executable, script, tiny_backbone, folder.adapter, folder.head, result, json.dumps(texts)],
        check=True,
        timeout=120,
        cwd=tmp_path,
    )
    plain = torch.load(result, weights_only=True)
    ours = embed_with_recpeft(config, folder, texts)
    assert torch.allclose(plain["embeddings"], ours, atol=1e-5)
    head = CosineHead(30, item_bias=True)
    head.load_state_dict(load_file(folder.head))
    scores = head(ours[2:], ours[:2], torch.tensor([1, 2]))
    assert torch.allclose(plain["scores"], scores, atol=1e-4)


def embed_with_recpeft(config: Any, folder: RunFolder, texts: list[str]) -> torch.Tensor:
    """As the run's own module embeds, its trained parameters put back from the saved files."""
    from peft import set_peft_model_state_dict

    from adapters import lora
    from datamodules._batching import bucket
    from lightning_modules import TwoTower, load

    backbone = load(config.backbone.name)
    module = TwoTower(lora.attach(backbone.model, config.adapter, 9), num_items=30, item_bias=True).eval()
    set_peft_model_state_dict(module.backbone, load_file(folder.adapter / "adapter_model.safetensors"))
    ids = backbone.tokenizer(texts)["input_ids"]
    with torch.no_grad():
        return module.encode(bucket(ids, backbone.tokenizer.pad_token_id, 4096))


PLAIN = """
import json, sys, torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

backbone, adapter, head, result, texts = sys.argv[1:]
assert not any(name.startswith("recpeft") for name in sys.modules)
tokenizer = AutoTokenizer.from_pretrained(backbone)
model = PeftModel.from_pretrained(AutoModel.from_pretrained(backbone), adapter).eval()
batch = tokenizer(json.loads(texts), padding=True, return_tensors="pt")
with torch.no_grad():
    states = model(**batch).last_hidden_state
mask = batch["attention_mask"].unsqueeze(-1)
embeddings = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
head = load_file(head)
scores = head["log_scale"].exp() * embeddings[2:] @ embeddings[:2].T + head["bias"][[1, 2]]
torch.save({"embeddings": embeddings, "scores": scores}, result)
"""


def test_a_corrupt_record_is_named(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "study", "run")
    folder.path.mkdir(parents=True)
    folder.record.write_text('{"schema": 1, "status": "do')
    with pytest.raises(RecpeftError, match=r"result\.json is no JSON"):
        written_record(folder)


def test_a_corrupt_record_is_left_alone_and_the_others_are_run(
    study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = load_runs(study_file, ["references=[popularity, ease]", "training.max_steps=1"])
    folder = run_folder(tmp_path, configs[1].study, configs[1].run_id)
    folder.path.mkdir(parents=True)
    folder.record.write_text('{"schema": 2, "status": "do')
    assert run_all(configs, tmp_path, 1) == 1
    told = capsys.readouterr().err
    assert f"failed: {folder.record} is no JSON" in told
    assert f"left out: {folder.record} is no JSON" in told  # of the table
    assert "| popularity |" in (tmp_path / "tiny" / "report.md").read_text()
    assert folder.record.read_text() == '{"schema": 2, "status": "do'
    done = [written_record(run_folder(tmp_path, config.study, config.run_id)) for config in (configs[0], configs[2])]
    assert [record and record["status"] for record in done] == ["done", "done"]


def test_what_reorders_the_lists_of_a_corrupt_record_fails_and_the_others_are_run(
    study_file: Path, tmp_path: Path
) -> None:
    stage = "diversify={method: mmr, strength: 0.5, depth: 10}"
    configs = load_runs(study_file, ["references=[popularity]", "training.max_steps=1", stage, "seeds=[0, 1]"])
    base = next(config for config in configs if config.run_id != config.undiversified.run_id).undiversified
    folder = run_folder(tmp_path, base.study, base.run_id)
    folder.path.mkdir(parents=True)
    folder.record.write_text('{"schema": 2, "status": "do')
    assert run_study(configs, tmp_path) == 2  # that one, and the one of its lists
    states = {config.run_id: record["status"] for config in configs for record in [_record(config, tmp_path)] if record}
    assert sorted(states.values()) == ["done", "done", "done", "failed"]


def _record(config: RunConfig, out: Path) -> dict[str, Any] | None:
    try:
        return written_record(run_folder(out, config.study, config.run_id))
    except RecpeftError:
        return None


# Locks -------------------------------------------------------------------------------------------------


def test_a_look_at_a_claim_is_a_shared_lock_since_network_disks_lock_no_reader_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, folder = fcntl.flock, run_folder(tmp_path, "study", "run")

    def nfs(file: Any, operation: int) -> None:
        """A network disk's: an exclusive lock is of a file that is open for writing (man 2 flock)."""
        if operation & fcntl.LOCK_EX and not file.writable():
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", nfs)
    with claim(folder) as claimed:
        assert claimed
        assert is_running(folder)
    lock_path(folder).touch()
    assert not is_running(folder)


def test_a_disk_without_locks_is_said_once_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    for _ in range(2):
        with claim(run_folder(tmp_path, "study", "run")) as claimed:
            assert claimed
            assert not is_running(run_folder(tmp_path, "study", "run"))
    assert capsys.readouterr().err.count("is on a disk without locks (Function not implemented), so") == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_finished_study_on_a_disk_for_reading_is_shown_and_reported_elsewhere(
    workers: int,
    study_file: Path,
    tmp_path: Path,
    read_only: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    configs = [config for config in load_runs(study_file, ["references=[popularity]"]) if config.method != "lora"]
    out = tmp_path / "runs"
    assert run_all(configs, out, workers) == 0
    page = out / "tiny" / "report.html"
    assert capsys.readouterr().out.splitlines()[-1] == f"The page: {page}"
    assert "popularity" in page.read_text()
    read_only(out)
    assert run_all(configs, out, workers) == 0
    said = capsys.readouterr()
    assert "popularity" in said.out
    assert f"no report is written: {out / 'tiny' / 'report.md'} may not be written (Read-only file system)" in said.err
    assert [cell.state for cell in cells(recall(out / "tiny"), out)] == ["done"]
    with pytest.raises(DiskError, match=r"\(Read-only file system\).* --to names a folder for the report's files"):
        report([out / "tiny"])
    report([out / "tiny"], to=tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "report.html").exists()


def test_a_full_disk_stops_the_study_with_a_sentence_and_half_writes_nothing(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    configs = load_runs(study_file, ["references=[popularity]"])
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskError, match="the disk is full"):
        run_study(configs, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("width", ["nf4", "int8"])
def test_a_quantised_run_ends_in_a_record(width: str, study_file: Path, tmp_path: Path) -> None:
    configs = load_runs(study_file, ["backbone.width=" + width, "training.max_steps=3"])
    none, quantised = run(load_runs(study_file)[0], tmp_path), run(configs[0], tmp_path)
    assert quantised["status"] == "done"
    assert quantised["backbone"]["linear_bytes"] < 0.4 * none["backbone"]["linear_bytes"]
    assert quantised["parameters"]["total"] == none["parameters"]["total"]
