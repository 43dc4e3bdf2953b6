"""Runs of formulation sequence: what cells share, what survives a kill, what is loaded again, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from experiments import load_runs, recommend, run
from experiments.config.run import TextRun
from experiments.records.record import run_folder
from lightning_modules._sequence_impl import Sequence
from recpeft.errors import RecpeftError

pytestmark = pytest.mark.usefixtures("one_thread")

SEQUENCE = [
    "formulation={name: sequence, ids: add, width: 16, length: 5, texts_per_step: 6}",
    "loss={name: listwise_softmax, logq: false}",
    "training={examples: positions, negatives: {catalogue: true}, users_per_step: 8, max_steps: 8, head_steps: 4, "
    "steps_per_epoch: 2, learning_rate: 0.01, checkpoint_every_steps: 1}",
]


def of(study_file: Path, *changes: str) -> TextRun:
    (config,) = load_runs(study_file, [*SEQUENCE, *changes])
    assert isinstance(config, TextRun)
    return config


def result(config: TextRun, out: Path) -> dict[str, Any]:
    """The record without what depends on the clock."""
    record = run(config, out)
    return {part: record[part] for part in ("test", "trace", "parameters", "training")} | {
        "files": record["certificate"]["hashes"]["files"],
        "reload": record["certificate"]["reload"],
    }


@pytest.fixture(scope="module")
def uninterrupted(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("uninterrupted")
    return result(of(study_file), out), out


@pytest.mark.parametrize("call", [2, 6])  # within the head's steps, and within the adapter's
def test_a_run_that_breaks_off_anywhere_ends_as_if_it_had_not(
    study_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: tuple[dict[str, Any], Path],
    call: int,
) -> None:
    calls, loss = 0, Sequence.loss

    def breaks(self: Sequence, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return loss(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Sequence, "loss", breaks)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run(of(study_file), tmp_path)
    assert result(of(study_file), tmp_path) == uninterrupted[0]


def test_cells_that_differ_in_the_adapter_share_the_heads_steps(
    study_file: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: tuple[dict[str, Any], Path]
) -> None:
    _, out = uninterrupted
    (head,) = (out / "tiny" / "heads").glob("*.safetensors")
    before = load_file(head)
    losses = 0
    loss = Sequence.loss

    def counted(self: Sequence, batch: Any) -> Any:
        nonlocal losses
        losses += 1
        return loss(self, batch)

    monkeypatch.setattr(Sequence, "loss", counted)
    run(of(study_file, "adapter={method: frozen}"), out)
    assert losses == 4
    (again,) = (out / "tiny" / "heads").glob("*.safetensors")
    assert all(before[name].equal(value) for name, value in load_file(again).items())
    run(of(study_file, "adapter={method: frozen}", "seed=1"), out)
    assert len(list((out / "tiny" / "heads").glob("*.safetensors"))) == 2


def test_a_run_scores_the_same_when_it_is_loaded_again_and_recommends(
    study_file: Path, uninterrupted: tuple[dict[str, Any], Path]
) -> None:
    found, out = uninterrupted
    assert found["reload"]["largest_difference_in_score_sd"] < 1e-5
    bank = found["training"]["bank"]
    assert 0 < bank["gradient_cosine"] < 1
    assert 0 < bank["age_steps"] < 2  # two steps behind each validation, which renews it
    config = of(study_file)
    folder = run_folder(out, config.study, config.run_id).path
    tested = json.loads((folder / "result.json").read_text())["test"]
    assert tested["ndcg@5"] == found["test"]["ndcg@5"]
    listed = recommend(folder, ["1"], k=3)
    assert len(listed) == 3


def test_encodings_of_another_pooling_are_kept_apart(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECPEFT_HOME", str(tmp_path / "home"))
    for pooling in ("mean", "first"):
        second = f"{{name: sequence, ids: add, width: 16, pooling: {pooling}}}"
        stages = f"formulation={{name: two_stage, first: {{name: popularity}}, size: 6, second: {second}}}"
        run(of(study_file, stages, "training.head_steps=0", "training.max_steps=1"), tmp_path)
    assert len(list((tmp_path / "home" / "encodings").glob("*.safetensors"))) == 2


@pytest.mark.parametrize("user_encoder", ["gru", "target_attention"])
def test_rated_candidates_are_judged_by_the_history_before_each(
    study_file: Path, tmp_path: Path, user_encoder: str
) -> None:
    config = of(
        study_file,
        f"formulation={{name: sequence, ids: gate, ratings: true, width: 16, user_encoder: {user_encoder}}}",
        "data.liked_from=4",
        "training={examples: interactions, users_per_step: 16, max_steps: 4, negatives: {in_batch: false}}",
        "loss={name: bce}",
        "adapter={method: none}",
        "evaluation={k: [1], monitor: auc, candidates: {kind: rated, rolling: true}}",
    )
    assert config.width == "–"
    record = run(config, tmp_path)
    assert 0 <= record["test"]["auc/rolling"] <= 1
    assert record["parameters"]["adapter"] == 0


def test_a_file_of_sequences_has_the_rows_it_is_read_against(study_file: Path) -> None:
    rows = load_runs(study_file, [*SEQUENCE, "references=[popularity, frozen, none, sasrec]", "adapter.rank=2"])
    assert [row.method for row in rows] == ["popularity", "frozen", "none", "none", "lora"]
    texts = [row for row in rows if isinstance(row, TextRun)]
    assert [row.training.head_steps for row in texts] == [4, 4, 0, 4]
    assert texts[2].backbone.name == "none"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["formulation={name: sequence}", "adapter={method: none}"], ["reads no text", "ids: add"]),
        (["formulation={name: two_tower}", "adapter={method: none}", "training={}"], ["reads no text", "sequence"]),
        (["formulation={name: sequence, user_encoder: target_attention}"], ["positions", "user_encoder"]),
        (["formulation={name: sequence, user_encoder: gru, heads: 4}"], ["heads is 4", "gru"]),
        (["formulation={name: sequence, width: 15}"], ["heads is 2", "width 15"]),
        (["formulation={name: sequence, length: 0}"], ["formulation.length", "greater than 0"]),
        (["formulation={name: sequence, texts_per_step: 0}"], ["texts_per_step"]),
        (["training.head_steps=8"], ["head_steps is 8", "max_steps 8"]),
        (["training.positive_window=0"], ["positive_window", "greater than 0"]),
        (["backbone.name=none"], ["backbone.name is none", "lora"]),
        (["formulation={name: two_tower}", "training={head_steps: 3}"], ["head_steps is 3", "two_tower"]),
        (["formulation={name: two_tower}"], ["positions", "two_tower"]),
        (["training.positives_per_user=3"], ["positives_per_user", "positions"]),
    ],
)
def test_what_does_not_fit_is_one_sentence(study_file: Path, changes: list[str], words: list[str]) -> None:
    with pytest.raises(RecpeftError) as error:
        load_runs(study_file, [*SEQUENCE, *changes])
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
