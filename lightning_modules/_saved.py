"""Save and load trained weights: the adapter in PEFT's format, the head beside it, both in safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from adapters import Adapter
from lightning_modules._backbone import Backbone
from recpeft.errors import RecpeftError, cut
from recpeft.reading import read_json, reason

_NOTE = "backbone.json"
"""File in an adapter's folder that describes its backbone. PEFT ignores it."""


def save_adapter(model: nn.Module, folder: Path, backbone: Backbone) -> None:
    """Write the trained part of the adapted backbone into ``folder``, which must exist.

    A ``PeftModel`` is written in PEFT's format; a fully trained backbone in transformers' format.
    """
    from peft import PeftModel

    if isinstance(model, PeftModel):
        # The name from the config: the path of this machine's copy is useless elsewhere.
        for config in model.peft_config.values():
            config.base_model_name_or_path = backbone.name
        # Embeddings belong to the backbone; with the default, PEFT would query the hub about them.
        model.save_pretrained(str(folder), save_embedding_layers=False)
    else:
        model.save_pretrained(str(folder))  # type: ignore[operator]
    (folder / _NOTE).write_text(json.dumps(_about(backbone), indent=1) + "\n", encoding="utf-8")


def load_adapter(backbone: Backbone, adapter: Adapter, folder: Path) -> nn.Module:
    """Return ``backbone.model`` with the adapter that ``save_adapter`` wrote into ``folder``, in eval mode.

    Raises:
        RecpeftError: there is no adapter, it is a pickle, or it was made for another backbone.
    """
    check_adapter_folder(backbone, folder)
    try:
        return adapter.load(backbone.model, folder).eval()
    except Exception as error:  # PEFT may raise anything for a foreign config
        problem = " ".join(str(error).split())[:300]
        raise RecpeftError(
            f"the adapter in {folder}, made for {_made_for(folder)}, cannot be put on {backbone.name} "
            f"({type(backbone.model).__name__}): {problem}"
        ) from error


def _made_for(folder: Path) -> str:
    """Return the name of the backbone in PEFT's config."""
    config = folder / "adapter_config.json"
    named = _mapping(config) if config.is_file() else {}
    return cut(str(named.get("base_model_name_or_path") or "an unnamed backbone"))


def _mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file.

    Raises:
        RecpeftError: the file is not JSON or holds no mapping.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise RecpeftError(f"{path} is no JSON ({reason(error)}); give the adapter folder of a finished run.") from None
    if not isinstance(content, dict):
        raise RecpeftError(f"{path} holds no mapping; give the adapter folder of a finished run.")
    return content


def check_adapter_folder(backbone: Backbone, folder: Path) -> None:
    """Check that ``folder`` holds an adapter in safetensors that was made for ``backbone``; loads nothing.

    Raises:
        RecpeftError: it does not; the message names both backbones if they differ.
    """
    if not any(folder.glob("*.safetensors")):
        pickles = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
        if pickles:
            raise RecpeftError(
                f"{pickles[0]} is a pickle, whose loading can run code; save the adapter as safetensors "
                "(PEFT's save_pretrained does)."
            )
        raise RecpeftError(f"{folder} holds no adapter in safetensors; give the adapter folder of a finished run.")
    note = folder / _NOTE
    if note.is_file():
        here = _about(backbone)
        made_for = dict.fromkeys(here, "?") | _mapping(note)
        if made_for["identity"] != here["identity"]:
            then = [cut(str(made_for[key])) for key in ("name", "architecture", "identity")]
            raise RecpeftError(
                f"the adapter in {folder} was made for {then[0]} ({then[1]}, {then[2]}) but the backbone is "
                f"{here['name']} ({here['architecture']}, {here['identity']}); load it on its own backbone."
            )


def check_weights(folder: Path, head: Path) -> None:
    """Check that trained weights are finite; they are not after diverged training.

    Raises:
        RecpeftError: a weight is NaN or infinite; names file and weight. Unreadable files are left to the loader.
    """
    for path in (*sorted(folder.glob("*.safetensors")), head):
        try:
            weights = load_file(path)
        except (OSError, SafetensorError):
            continue
        for name, weight in weights.items():
            if not weight.isfinite().all():
                raise RecpeftError(f"{path} holds NaN or infinity in {name}, by which nothing is ranked; train again.")


def _about(backbone: Backbone) -> dict[str, Any]:
    return {
        "name": backbone.name,
        "architecture": type(backbone.model).__name__,
        "identity": backbone.identity,
        "hidden_size": backbone.hidden_size,
    }


def save_head(head: nn.Module, path: Path) -> None:
    """Write the head's parameters."""
    save_file({name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}, path)


def load_head(head: nn.Module, path: Path) -> None:
    """Load the parameters that ``save_head`` wrote into ``head``.

    Raises:
        RecpeftError: the file is missing, broken, or from another head.
    """
    try:
        head.load_state_dict(load_file(path))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        problem = str(error).strip().split("\n")[0][:300]
        raise RecpeftError(f"the head in {path} cannot be loaded: {problem}") from error
