"""A finished run's model leaves recpeft: as an adapter for peft, or merged for plain transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from adapters import Adapter, lora
from experiments.cell.train import run
from experiments.cli.finished import export
from experiments.config.grid import load_runs
from experiments.finished.export import export_adapter, export_merged
from lightning_modules import load
from lightning_modules._saved import load_adapter
from recpeft.errors import RecpeftError

TEXT = "watched : red film 7 ( 1993 )"


def trained(study_file: Path, out: Path, **changes: Any) -> Path:
    """Folder of a finished run of the small study with ``changes``."""
    overrides = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in changes.items()]
    config = load_runs(study_file, [*overrides, "training.max_steps=6"])[-1]
    run(config, out)
    return out / config.study / config.run_id


@pytest.fixture(scope="module")
def runs(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("runs")
    return {width: trained(study_file, out, backbone__width=width) for width in ("none", "nf4", "int8")}


def states(model: Any, folder: Path) -> torch.Tensor:
    texts = AutoTokenizer.from_pretrained(folder)([TEXT], return_tensors="pt")
    with torch.no_grad():
        result: torch.Tensor = model.eval()(**{k: texts[k] for k in ("input_ids", "attention_mask")}).last_hidden_state
    return result


def test_a_merged_run_is_a_folder_that_plain_transformers_loads(
    runs: dict[str, Path], tiny_backbone: Path, tmp_path: Path
) -> None:
    drift = export_merged(runs["none"], tmp_path / "merged")
    adapted = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_backbone), str(runs["none"] / "adapter"))
    merged = AutoModel.from_pretrained(tmp_path / "merged")
    assert torch.allclose(states(merged, tmp_path / "merged"), states(adapted, tiny_backbone), atol=1e-5)
    assert not torch.allclose(
        states(merged, tmp_path / "merged"), states(AutoModel.from_pretrained(tiny_backbone), tiny_backbone), atol=1e-3
    )
    assert drift["scores"]["largest_change"] < 1e-4
    record = json.loads((runs["none"] / "result.json").read_text())
    for name, values in drift["test"].items():
        if record["test"][name] is None:  # a group without users
            assert values == {"trained": None, "merged": None}
            continue
        assert values["trained"] == pytest.approx(record["test"][name], abs=1e-6)
        assert values["merged"] == pytest.approx(record["test"][name], abs=1e-6)


def test_a_quantised_backbone_is_dequantised_and_its_drift_measured(
    runs: dict[str, Path], tiny_backbone: Path, tmp_path: Path
) -> None:
    import bitsandbytes

    for width in ("nf4", "int8"):
        to = tmp_path / width
        drift = export_merged(runs[width], to)
        merged = AutoModel.from_pretrained(to)
        layer = merged.encoder.layer[1].output.dense
        assert layer.weight.dtype == torch.float32
        # by hand: what the quantised weight stands for, plus alpha / rank * B A
        backbone = load(str(tiny_backbone), width).model  # type: ignore[arg-type]
        stored = backbone.get_submodule("encoder.layer.1.output.dense").weight
        if width == "nf4":
            value = bitsandbytes.functional.dequantize_4bit(stored.data, stored.quant_state)
        else:
            value = stored.data.float() * stored.SCB[:, None] / 127
        learnt = load_file(runs[width] / "adapter" / "adapter_model.safetensors")
        a, b = (learnt[f"base_model.model.encoder.layer.1.output.dense.lora_{m}.weight"] for m in "AB")
        assert torch.allclose(layer.weight, value + 16 / 4 * (b @ a), atol=1e-5)
        assert 0 < drift["scores"]["largest_change"] < 1.0
        assert json.loads((to / "merge.json").read_text()) == drift
        assert drift["test"]["ndcg@5"]["merged"] == pytest.approx(drift["test"]["ndcg@5"]["trained"], abs=0.1)


def test_an_exported_adapter_is_pefts_and_has_a_card(
    runs: dict[str, Path], tiny_backbone: Path, tmp_path: Path
) -> None:
    export_adapter(runs["nf4"], tmp_path / "adapter")
    again = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_backbone), str(tmp_path / "adapter"))
    once = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_backbone), str(runs["nf4"] / "adapter"))
    assert torch.equal(states(again, tiny_backbone), states(once, tiny_backbone))
    assert (tmp_path / "adapter" / "head.safetensors").is_file()
    card = (tmp_path / "adapter" / "README.md").read_text()
    record = json.loads((runs["nf4"] / "result.json").read_text())
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "peft"
    assert yaml.safe_load(card.split("```yaml")[1].split("```")[0]) == record["config"]
    assert record["data"]["hash"] in card
    assert f"| ndcg@5 | {record['test']['ndcg@5']:.4f} |" in card


def test_a_method_that_is_no_change_of_weights_cannot_be_merged(study_file: Path, tmp_path: Path) -> None:
    folder = trained(study_file, tmp_path, adapter={"method": "bottleneck", "bottleneck_dim": 4})
    with pytest.raises(RecpeftError, match=r"bottleneck run.* cannot be merged \(.*lora.* can\); use --adapter"):
        export_merged(folder, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    export_adapter(folder, tmp_path / "adapter")
    assert (
        "after `from adapters.bottleneck import BottleneckConfig`" in (tmp_path / "adapter" / "README.md").read_text()
    )


def test_only_a_finished_text_run_is_exported_and_only_into_a_new_folder(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RecpeftError, match="holds no record"):
        export_adapter(tmp_path, tmp_path / "to")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(RecpeftError, match="is there already and not empty"):
        export_adapter(runs["none"], tmp_path / "full")
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_a_model_that_is_not_what_its_record_says_is_told_of(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = [tmp_path / "same", tmp_path / "other"]
    export(runs["none"], to[0], merge=True)
    assert "WARNING" not in capsys.readouterr().err
    assert json.loads((to[0] / "merge.json").read_text())["differs_from_record"] == {}
    run = Path(shutil.copytree(runs["none"].parent, tmp_path / "tiny")) / runs["none"].name
    record = json.loads((run / "result.json").read_text())
    trained = record["test"]["ndcg@5"]
    record["test"]["ndcg@5"] += 0.1
    (run / "result.json").write_text(json.dumps(record))
    export(run, to[1], merge=True)
    found = json.loads((to[1] / "merge.json").read_text())["differs_from_record"]
    assert found == {"ndcg@5": {"recorded": trained + 0.1, "trained": pytest.approx(trained)}}
    sentence = f"WARNING: the record says ndcg@5 {trained + 0.1:.4f}, but the trained model as it is loaded here has"
    assert sentence in capsys.readouterr().err
    assert sentence in (to[1] / "README.md").read_text()


# Adapters on disk --------------------------------------------------------------------------------------


def test_an_adapter_of_another_backbone_is_refused_and_both_are_named(
    runs: dict[str, Path], tiny_backbone: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_backbone, tmp_path / "other"))
    model = AutoModel.from_pretrained(other)
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight.add_(0.5)
    model.save_pretrained(other)
    with pytest.raises(RecpeftError, match=rf"was made for \S*/{tiny_backbone.name} .* but the backbone is {other}"):
        load_adapter(load(str(other)), Adapter(lora.Config()), runs["none"] / "adapter")


def test_an_adapter_that_peft_saved_alone_names_both_backbones_where_it_does_not_fit(
    runs: dict[str, Path], tiny_backbone: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(runs["none"] / "adapter", tmp_path / "adapter"))
    (folder / "backbone.json").unlink()
    other = Path(shutil.copytree(tiny_backbone, tmp_path / "other"))
    small = AutoModel.from_pretrained(tiny_backbone).config
    small.hidden_size, small.intermediate_size = 32, 16
    AutoModel.from_config(small).save_pretrained(other)
    made_for = rf"made for \S*/{tiny_backbone.name}"
    with pytest.raises(RecpeftError, match=rf"{made_for}, cannot be put on {other} \(BertModel\): .*size"):
        load_adapter(load(str(other)), Adapter(lora.Config()), folder)


def test_a_pickled_adapter_is_refused_unread(runs: dict[str, Path], tiny_backbone: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs["none"] / "adapter", tmp_path / "adapter"))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(RecpeftError, match=r"adapter_model\.bin is a pickle, whose loading can run code"):
        load_adapter(load(str(tiny_backbone)), Adapter(lora.Config()), folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(RecpeftError, match="holds no adapter in safetensors"):
        load_adapter(load(str(tiny_backbone)), Adapter(lora.Config()), folder)
