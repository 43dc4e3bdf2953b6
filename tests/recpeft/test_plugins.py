"""The file's name is the registry."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from recpeft import plugins
from recpeft.config import Config
from recpeft.errors import RecpeftError

FOLDERS = ["adapters", "datamodules", "lightning_modules", "lightning_modules.losses", "rankers", "rankers.diversify"]
HEAVY = ["torch", "lightning", "transformers", "polars"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package outside the project, on the path: ``recpeft_outside``."""
    package = tmp_path / "recpeft_outside"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "recpeft_outside"]:
        del sys.modules[name]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_public_file_of_a_folder_is_a_plug_in(folder: str) -> None:
    files = {path.stem for path in (ROOT / folder.replace(".", "/")).glob("*.py") if path.stem[0] != "_"}
    assert files
    assert plugins.names(folder) == sorted(files)


def test_a_package_inside_a_folder_is_no_plug_in() -> None:
    assert "losses" not in plugins.names("lightning_modules")


@pytest.mark.parametrize(("folder", "name"), [(folder, name) for folder in FOLDERS for name in plugins.names(folder)])
def test_every_plug_in_has_a_config_that_names_it(folder: str, name: str) -> None:
    config = plugins.config_class(folder, name)
    key = {"adapters": "method", "datamodules": "source", "rankers.diversify": "method"}.get(folder, "name")
    field = config.model_fields[key]
    assert field.is_required() or field.default == name


def test_an_unknown_name_lists_the_valid_ones() -> None:
    with pytest.raises(RecpeftError, match="unknown name 'lroa' in adapters") as caught:
        plugins.load("adapters", "lroa")
    for name in plugins.names("adapters"):
        assert name in str(caught.value)
    assert "_base" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "_base", "__init__", ".", "..lora", "lora.", "../adapters/lora", "a..b"])
def test_what_is_no_name_is_refused_in_a_sentence(name: str) -> None:
    with pytest.raises(RecpeftError, match=r"unknown name|no module named"):
        plugins.load("adapters", name)


def test_a_dotted_name_reaches_a_module_outside_the_project(outside: Path) -> None:
    (outside / "mine.py").write_text(
        "from adapters._base import AdapterConfig\nclass Config(AdapterConfig):\n    method: str = 'mine'\n"
    )
    assert plugins.load("adapters", "recpeft_outside.mine").__name__ == "recpeft_outside.mine"
    assert plugins.config_class("adapters", "recpeft_outside.mine")().model_dump()["method"] == "mine"


@pytest.mark.parametrize("name", ["recpeft_outside.other", "recpeft_nowhere.other"])
def test_a_dotted_module_that_is_not_there_is_said_so(outside: Path, name: str) -> None:
    with pytest.raises(RecpeftError, match=f"no module named '{name}' can be imported; install it"):
        plugins.load("adapters", name)


@pytest.mark.parametrize("needed", ["recpeft_nowhere", "recpeft_outside.nowhere"])
def test_a_missing_dependency_of_an_outside_plug_in_is_named_itself(outside: Path, needed: str) -> None:
    (outside / "needy.py").write_text(f"import {needed}\n")
    with pytest.raises(ModuleNotFoundError) as caught:
        plugins.load("adapters", "recpeft_outside.needy")
    assert caught.value.name == needed


def test_a_missing_dependency_of_an_own_plug_in_is_named_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import adapters

    (tmp_path / "needy.py").write_text("import recpeft_nowhere\n")
    monkeypatch.setattr(adapters, "__path__", [*adapters.__path__, str(tmp_path)])
    assert "needy" in plugins.names("adapters")
    with pytest.raises(ModuleNotFoundError) as caught:
        plugins.load("adapters", "needy")
    assert caught.value.name == "recpeft_nowhere"


@pytest.mark.parametrize("content", ["", "class Config:\n    pass\n", "Config = 3\n"])
def test_a_plug_in_without_a_config_is_said_so(outside: Path, content: str) -> None:
    (outside / "bare.py").write_text(content)
    with pytest.raises(RecpeftError, match=r"recpeft_outside\.bare has no class Config"):
        plugins.config_class("adapters", "recpeft_outside.bare")


def test_the_base_config_is_recpefts() -> None:
    assert issubclass(plugins.config_class("adapters", "lora"), Config)


def test_every_config_is_read_without_the_heavy_libraries() -> None:
    script = f"""
import sys
from recpeft import plugins
for folder in {FOLDERS!r}:
    for name in plugins.names(folder):
        plugins.config_class(folder, name)
        heavy = [module for module in {HEAVY!r} if module in sys.modules]
        assert not heavy, f"{{folder}}/{{name}}.py imports {{heavy}}"
from datamodules._prompts import PromptConfig
from lightning_modules._backbone import BackboneConfig, locate
PromptConfig(), BackboneConfig(name="x")
heavy = [module for module in {HEAVY!r} if module in sys.modules]
assert not heavy, f"the prompt's or the backbone's config imports {{heavy}}"
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
