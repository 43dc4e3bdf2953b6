"""Fitted rankers on disk: tensors as safetensors, everything else as JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from experiments.records.record import RunFolder
from rankers._base import Ranker, RankerConfig
from recpeft import plugins
from recpeft.config import plain
from recpeft.errors import RecpeftError
from recpeft.files import atomic_path, write_text
from recpeft.reading import read_json


def save_ranker(folder: RunFolder, config: RankerConfig, ranker: Ranker, key: str) -> None:
    """Write ``ranker`` into ``folder``.

    Args:
        key: digest of everything that the fit depends on.
    """
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in ranker.tensors().items()}
    folder.ranker.unlink(missing_ok=True)  # it must never stand beside the tensors of another fit
    with atomic_path(folder.ranker_tensors) as temporary:
        save_file(tensors, temporary)
    content = plain({"key": key, "ranker": config.model_dump(mode="json"), "details": dict(ranker.details)})
    write_text(folder.ranker, json.dumps(content, indent=1) + "\n")


def saved_ranker(folder: RunFolder, config: RankerConfig) -> Ranker | None:
    """Load the ranker in ``folder``; None if there is none.

    Args:
        config: names the plug-in whose ``load`` makes it.
    Raises:
        RecpeftError: the files are damaged, or belong to another ranker.
    """
    content = _read(folder)
    if content is None:
        return None
    try:
        same = content["ranker"]["name"] == config.name
        details = {name: math.nan if value is None else value for name, value in content["details"].items()}
        tensors = load_file(folder.ranker_tensors)
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError):
        same = False
    if not same:
        raise RecpeftError(
            f"{folder.ranker_tensors} is no whole {config.name} ranker; remove it and {folder.ranker.name}, and the "
            "ranker is fitted anew."
        )
    module: Any = plugins.load("rankers", config.name)
    ranker: Ranker = module.load(config, tensors, details)
    return ranker


def find_ranker(study: Path, key: str) -> RunFolder | None:
    """Return the folder within ``study`` that holds the ranker of ``key``, if there is one."""
    for path in sorted(study.glob("*/ranker.json")):
        folder = RunFolder(path.parent)
        if (_read(folder) or {}).get("key") == key:
            return folder
    return None


def _read(folder: RunFolder) -> dict[str, Any] | None:
    try:
        found = read_json(folder.ranker)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
