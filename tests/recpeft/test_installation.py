"""recpeft's packages have plain names; another project's must not be taken for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from recpeft.errors import RecpeftError
from recpeft.installation import PACKAGES, check_installation

ROOT = Path(__file__).resolve().parents[2]


def check_in_subprocess(first_on_path: Path) -> subprocess.CompletedProcess[str]:
    script = f"""
import sys
sys.path[:0] = [{str(first_on_path)!r}, {str(ROOT)!r}]
from recpeft.installation import check_installation
check_installation()
"""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


def test_this_installation_is_accepted() -> None:
    check_installation()


def test_every_package_of_the_project_is_checked() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"recpeft", "tests"}
    assert folders <= set(PACKAGES)


@pytest.mark.parametrize("kind", ["package", "module", "namespace"])
def test_another_projects_package_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "package":
        (tmp_path / "adapters").mkdir()
        (tmp_path / "adapters" / "__init__.py").write_text("raise SystemExit('it was imported')")
    elif kind == "module":
        (tmp_path / "adapters.py").write_text("raise SystemExit('it was imported')")
    else:
        (tmp_path / "adapters" / "sub").mkdir(parents=True)
    done = check_in_subprocess(tmp_path)
    if kind == "namespace":
        # Python itself prefers a real package further down the path.
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 1
    sentence = done.stderr.strip().splitlines()[-1]
    assert "RecpeftError: the package 'adapters' is taken from" in sentence
    assert str(tmp_path) in sentence
    assert "environment of its own" in sentence


def test_a_missing_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from recpeft import installation

    monkeypatch.setattr(installation, "PACKAGES", ("recpeft_nowhere",))
    with pytest.raises(RecpeftError, match="'recpeft_nowhere' is taken from nowhere"):
        check_installation()
