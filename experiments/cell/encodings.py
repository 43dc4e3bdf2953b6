"""Keep the encodings of a run's catalogue beside its record, so that recommending need not compute them."""

from __future__ import annotations

import contextlib
import hashlib

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from experiments.config.run import TextRun
from experiments.records.record import RunFolder
from experiments.records.versions import versions
from lightning_modules import RecModule
from recpeft.config import digest
from recpeft.errors import DiskError
from recpeft.files import atomic_path

_MOST_BYTES = 1 << 30
"""Maximum size in bytes of encodings that are kept."""


def keep(folder: RunFolder, config: TextRun, module: RecModule, device: torch.device) -> None:
    """Write the catalogue's encodings that ``module`` made on ``device``, if it has any and they are not too large."""
    made = module.encodings()
    if made is None or made.nbytes > _MOST_BYTES:
        return
    # One entry, since safetensors writes several in any order.
    made_for = {"made for": f"{_key(folder, config, device)} {torch.get_num_threads()}"}
    with contextlib.suppress(DiskError), atomic_path(folder.encodings) as temporary:  # the file is optional
        save_file({"catalogue": made.cpu().contiguous()}, temporary, made_for)


def kept(folder: RunFolder, config: TextRun, device: torch.device, to_the_bit: bool) -> Tensor | None:
    """Return the encodings that ``keep`` wrote for this adapter and head; None if missing or made by others.

    Args:
        to_the_bit: accept only encodings made with this process's number of threads.
    """
    try:
        with safe_open(folder.encodings, "pt") as file:
            key, _, threads = (file.metadata() or {}).get("made for", "").partition(" ")
            same_bits = threads == str(torch.get_num_threads())
            usable = key == _key(folder, config, device) and (same_bits or not to_the_bit)
            return file.get_tensor("catalogue") if usable else None
    except (OSError, SafetensorError):
        return None


def _key(folder: RunFolder, config: TextRun, device: torch.device) -> str:
    """Return a digest of the run's config, its trained weights and what rounding depends on."""
    state = hashlib.sha256()
    for path in (*sorted(folder.adapter.glob("*.safetensors")), folder.head):
        if path.exists():  # not every method has all
            with path.open("rb") as file:
                state.update(hashlib.file_digest(file, "sha256").digest())
    return digest([config.run_id, state.hexdigest(), device.type, versions()])
