"""The encodings of all items' texts by an untrained backbone: computed once for all cells that need them."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from datamodules import TextPairDataModule
from experiments.config.run import TextRun
from experiments.records.versions import versions
from lightning_modules import Backbone, RecModule
from recpeft.config import digest
from recpeft.files import atomic_path, home, locked


def give_bank(config: TextRun, module: RecModule, data: TextPairDataModule, backbone: Backbone) -> None:
    """Give ``module``, which is not trained yet, the items' encodings, where its formulation keeps them."""
    if not module.has_bank:
        return
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    module.to(device)
    fixed = not config.adapter.trains_backbone
    if not fixed and not config.adapter.starts_as_backbone:
        encodings = _encode(module, data)  # the adapter's own, whose start is drawn from the seed
    else:
        pooling = getattr(config.formulation, "pooling", "")
        made_of = [backbone.identity, config.backbone.asked_for(), pooling, data.prompt.hash, versions()]
        made_on = [device.type, torch.get_num_threads()]  # another number of threads rounds differently
        encodings = _kept(home() / "encodings" / f"{digest([made_of, made_on])}.safetensors", module, data)
    module.take_bank(encodings, fixed)


def _kept(path: Path, module: RecModule, data: TextPairDataModule) -> Tensor:
    """What stands at ``path``; the first to ask computes it."""
    found = _read(path, data)
    if found is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            found = _read(path, data)
            if found is None:
                found = _encode(module, data)
                with atomic_path(path) as temporary:
                    save_file({"items": found.cpu().contiguous()}, temporary)
    return found.to(module.device)


def _read(path: Path, data: TextPairDataModule) -> Tensor | None:
    try:
        found = load_file(path)["items"]
    except (OSError, SafetensorError, KeyError):  # none yet, or cut off: it is made anew
        return None
    return found if len(found) == data.prompt.num_items and found.isfinite().all() else None


@torch.no_grad()
def _encode(module: RecModule, data: TextPairDataModule) -> Tensor:
    """(I, H) float32 in evaluation mode."""
    mode = module.training
    module.eval()
    for batch in data.catalogue():
        module.encode_catalogue(move_data_to_device(batch, module.device))
    module.train(mode)
    encodings = module.encodings()
    assert encodings is not None
    return encodings
