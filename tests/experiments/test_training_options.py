"""What ``training:`` offers works through a whole run, and its cost is in the record."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, RobertaConfig, RobertaModel

from experiments.cell.data import prepare
from experiments.cell.embeddings import item_embeddings
from experiments.cell.train import preflight, run
from experiments.config.grid import load_runs
from lightning_modules._backbone import BackboneConfig
from recpeft.errors import RecpeftError
from tests.lightning_modules.test_backbone import write_composite


def record(study_file: Path, out: Path, *overrides: str) -> dict[str, Any]:
    return run(load_runs(study_file, overrides)[-1], out)


@pytest.mark.parametrize(
    "override",
    [
        "training.optimizer=adamw_8bit",
        "training.optimizer=adafactor",
        "training.precision=bf16-mixed",
        "training.gradient_checkpointing=layers",
        "training.gradient_checkpointing=buckets",
        "backbone.compute_dtype=bfloat16",
    ],
)
@pytest.mark.parametrize("width", ["none", "nf4"])
def test_a_run_learns_under_every_option(study_file: Path, tmp_path: Path, override: str, width: str) -> None:
    found = record(study_file, tmp_path, override, f"backbone.width={width}", "training.learning_rate=1.0e-2")
    losses = [row["train_loss"] for row in found["trace"]]
    assert [row["step"] for row in found["trace"]] == [3, 6, 9]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "loss",
    [
        "{name: bpr, rating_weight: true}",
        "{name: weighted_sum, parts: [{loss: {name: bpr}}, {weight: 0.01, loss: {name: mse}}]}",
    ],
)
def test_a_run_learns_under_another_loss(study_file: Path, tmp_path: Path, loss: str) -> None:
    found = record(study_file, tmp_path, f"loss={loss}", "training.learning_rate=1.0e-2")
    losses = [row["train_loss"] for row in found["trace"]]
    assert losses[-1] < losses[0]
    # Ratings differ between users, so what is learnt from them is not what is learnt without.
    plain = record(study_file, tmp_path, "loss={name: bpr}", "training.learning_rate=1.0e-2")
    assert losses[0] != pytest.approx(plain["trace"][0]["train_loss"], rel=1e-3)


@pytest.mark.parametrize("nested", [False, True])
def test_a_loss_gets_the_users_and_the_groups_that_it_asks_for(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nested: bool
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    loss = "{name: outside.fair_softmax}"
    loss = f"{{name: weighted_sum, parts: [{{loss: {loss}}}]}}" if nested else loss
    (config,) = load_runs(study_file, [f"loss={loss}", "training.max_steps=3"])
    run(config, tmp_path)
    users = prepare(config.data).dataset.users
    names = sorted(users["gender"].unique())
    seen = sys.modules["outside.fair_softmax"].SEEN
    assert len(seen) > 10
    assert {user: names[group] for user, group in seen.items()} == {user: users["gender"][user] for user in seen}
    assert set(seen.values()) == {0, 1}
    seen.clear()


def test_accumulated_batches_make_one_step_and_epochs_count_steps(study_file: Path, tmp_path: Path) -> None:
    plain = record(study_file, tmp_path)
    found = record(study_file, tmp_path, "training.accumulate_batches=2")
    assert [row["step"] for row in found["trace"]] == [3, 6, 9]
    assert found["training"]["steps"] == 9
    # twice the batches
    assert found["training"]["tokens_seen"] == pytest.approx(2 * plain["training"]["tokens_seen"], rel=0.1)


def test_gradient_checkpointing_learns_what_plain_training_learns(study_file: Path, tmp_path: Path) -> None:
    plain, *again = (
        record(study_file, tmp_path, f"training.gradient_checkpointing={kind}")
        for kind in ("none", "layers", "buckets")
    )
    for found in again:
        for row, expected in zip(found["trace"], plain["trace"], strict=True):
            assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)


def test_the_record_says_what_the_run_cost(study_file: Path, tmp_path: Path) -> None:
    found = record(study_file, tmp_path, "backbone.width=nf4")
    config = load_runs(study_file, ["backbone.width=nf4"])[-1]
    costs, parameters = found["costs"], found["parameters"]
    weights = tmp_path / config.study / config.run_id / "adapter" / "adapter_model.safetensors"
    # rank 4 on two layers of q, k, v, output (64 -> 64), up (64 -> 128) and down (128 -> 64)
    assert parameters["adapter"] == 2 * 4 * (4 * (64 + 64) + 2 * (64 + 128))
    assert costs["adapter_bytes"] == weights.stat().st_size
    assert 4 * parameters["adapter"] < costs["adapter_bytes"] < 4 * parameters["adapter"] + 10_000
    # AdamW: two moments of 4 bytes a parameter and a step count of 4 bytes a tensor
    assert 0 <= costs["optimizer_bytes"] - 8 * parameters["trainable"] < 4 * 100
    assert costs["train_tokens_per_second"] == pytest.approx(found["training"]["tokens_seen"] / costs["train_seconds"])
    assert costs["test_tokens_per_second"] > 0
    assert found["backbone"]["linear_bytes"] < found["backbone"]["bytes"]
    assert {"peak_memory_bytes", "added_memory_bytes", "wall_seconds"} <= costs.keys()


def test_the_record_names_the_modules_that_were_adapted(study_file: Path, tmp_path: Path) -> None:
    found = record(study_file, tmp_path, "adapter.target_modules=attention", "adapter.last_layers=1")
    attention = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
    assert found["adapter"]["target_modules"] == [f"encoder.layer.1.{name}" for name in attention]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("training.optimizer=paged_adamw_8bit", "paging needs a CUDA device"),
        ("training.precision=16-mixed", r"training\.precision is 16-mixed, which needs a CUDA device"),
        ("adapter.target_modules=[q_proj]", r"it has dense, key, query, value; name some of these"),
        ("adapter.last_layers=3", r"adapter\.last_layers is 3 but the backbone has 2 layers"),
        ("backbone.skip_modules=[q_proj]", r"backbone\.skip_modules is"),
        ("prompt.max_user_tokens=129", "has positions for 128 tokens"),
        (
            "adapter={method: prefix_tuning, num_virtual_tokens: 90}",
            r"max_user_tokens is 48 and adapter\.num_virtual_tokens 90 but .* 128 tokens",
        ),
        (
            "adapter={method: bottleneck, bottleneck_dim: 65}",
            r"adapter\.bottleneck_dim is 65 but the backbone's hidden_size is 64; choose a smaller bottleneck_dim",
        ),
        ("adapter={method: bottleneck, last_layers: 3}", "but the backbone has 2 layers"),
    ],
)
def test_what_the_machine_or_the_backbone_has_not_is_said_before_anything_is_loaded(
    study_file: Path, override: str, sentence: str
) -> None:
    with pytest.raises(RecpeftError, match=sentence):
        preflight(load_runs(study_file, [override, "backbone.width=nf4"]), study_file.parent)


def test_each_cells_virtual_tokens_count_where_cells_share_a_prompt(study_file: Path) -> None:
    lora, prompt = (
        load_runs(study_file, [f"adapter={{method: {method}}}"])[0]
        for method in ("lora", "prompt_tuning, num_virtual_tokens: 90")
    )
    preflight([lora], study_file.parent)
    with pytest.raises(RecpeftError, match=r"adapter\.num_virtual_tokens 90 but .* 128 tokens"):
        preflight([lora, prompt], study_file.parent)


@pytest.fixture
def folder(tiny_backbone: Path, tmp_path: Path) -> Path:
    """A copy of the tiny backbone to change."""
    return Path(shutil.copytree(tiny_backbone, tmp_path / "backbone"))


def test_a_token_without_an_embedding_is_said_before_anything_is_loaded(study_file: Path, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<mine>"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(RecpeftError, match=rf"the token '<mine>' with id {size}, but .* embeddings for {size} tokens"):
        preflight(load_runs(study_file, [f"backbone.name={folder}"]), study_file.parent)
    with pytest.raises(RecpeftError, match="the token '<mine>'"):
        item_embeddings(prepare(load_runs(study_file)[0].data), BackboneConfig(name=str(folder)), torch.empty(0))


def test_pickled_weights_and_weights_of_another_width_are_said_before_anything_is_loaded(
    study_file: Path, folder: Path
) -> None:
    config = folder / "config.json"
    plain = config.read_text()
    config.write_text(json.dumps(json.loads(plain) | {"quantization_config": {"load_in_8bit": True}}))
    with pytest.raises(RecpeftError, match=r"backbone\.width is none but .* saved with int8"):
        preflight(load_runs(study_file, [f"backbone.name={folder}"]), study_file.parent)
    config.write_text(plain)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(RecpeftError, match=r"there is no model\.safetensors, and pickles \(\.bin\) are never read"):
        preflight(load_runs(study_file, [f"backbone.name={folder}"]), study_file.parent)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["adapter={method: full}", "backbone.width=nf4"],
            "cannot train weights quantised to nf4; use backbone.width: none",
        ),
        (
            ["adapter={method: prefix_tuning}", "training.gradient_checkpointing=layers"],
            r"gradient_checkpointing is layers but .* use training\.gradient_checkpointing: buckets or none",
        ),
        (["adapter={method: adalora, init_rank: 4, target_rank: 6}"], "target_rank is 6 but init_rank is 4"),
        (["adapter={method: adalora, initial_phase: 0.6, final_phase: 0.5}"], "fill the training; lower one"),
        (["adapter={method: adalora}", "training.max_steps=1"], "leave no step between them to lower the ranks in"),
        (["adapter={method: frozen, learning_rate: 0.1}"], "frozen trains no adapter; leave it out"),
        (["backbone.double_quantisation=true"], "double_quantisation is for width nf4 and fp4 but width is none"),
        (["backbone.width=nf3"], "backbone.width is 'nf3'.*'none', 'int8', 'nf4' or 'fp4'"),
    ],
)
def test_what_cannot_work_is_refused_when_the_config_is_read(
    study_file: Path, overrides: list[str], sentence: str
) -> None:
    with pytest.raises(RecpeftError, match=sentence):
        load_runs(study_file, overrides)


def test_an_adapter_has_a_learning_rate_of_its_own(study_file: Path, tmp_path: Path) -> None:
    own = record(
        study_file,
        tmp_path,
        "adapter.learning_rate=5.0e-3",
        "training.learning_rate=1.0",
        "training.head_learning_rate=5.0e-3",
    )
    shared = record(study_file, tmp_path, "training.learning_rate=5.0e-3")
    assert json.dumps(own["trace"]) == json.dumps(shared["trace"])


def test_texts_as_long_as_robertas_positions_reach_are_tested_and_longer_ones_refused(
    study_file: Path, folder: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=20, pad_token_id=0, **sizes)
    RobertaModel(config).save_pretrained(folder)
    options = [f"backbone.name={folder}", "adapter={method: frozen}", "prompt.history=8"]
    with pytest.raises(RecpeftError, match=r"max_user_tokens is 20 but .* has positions for 19 tokens"):
        preflight(load_runs(study_file, [*options, "prompt.max_user_tokens=20"]), study_file.parent)
    found = record(study_file, tmp_path, *options, "prompt.max_user_tokens=19", "training.max_steps=1")
    assert "error" not in found["diagnostics"]


@pytest.mark.parametrize("formulation", ["two_tower", "verbalizer, answers: [' red', ' blue']", "cross_encoder"])
def test_a_model_with_a_vision_tower_is_trained_by_its_text_part(
    formulation: str, study_file: Path, folder: Path, tmp_path: Path
) -> None:
    write_composite(folder)
    found = record(
        study_file,
        tmp_path,
        f"backbone.name={folder}",
        f"formulation={{name: {formulation}}}",
        "loss={name: bpr}",
        "prompt.max_user_tokens=64",
        "training.max_steps=1",
        "evaluation.candidates={kind: uniform, size: 9}",
    )
    assert found["diagnostics"]["batch"] < 1e-4
    assert found["certificate"]["reload"]["largest_difference_in_score_sd"] == 0
