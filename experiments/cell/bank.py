"""Encode all items' texts with an untrained backbone, once for all cells that need the encodings."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from datamodules import TextPairDataModule
from datamodules._batching import PairBatch
from experiments.config.run import TextRun
from experiments.records.versions import versions
from lightning_modules import Backbone, RecModule
from lightning_modules._diagnostics import failure
from recpeft.config import digest
from recpeft.files import atomic_path, home, locked


def give_bank(config: TextRun, module: RecModule, data: TextPairDataModule, backbone: Backbone) -> None:
    """Give the untrained ``module`` the items' encodings, if its formulation keeps a bank of them."""
    if not module.has_bank:
        return
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    module.to(device)
    fixed = not config.adapter.trains_backbone
    if not fixed and not config.adapter.starts_as_backbone:
        encodings = _encode(module, data)  # not shared: the seed draws the adapter's initial weights
    else:
        made_of = [backbone.identity, config.backbone.asked_for(), module.bank_pooling, data.prompt.hash, versions()]
        made_on = [device.type, torch.get_num_threads()]  # another number of threads rounds differently
        encodings = _kept(home() / "encodings" / f"{digest([made_of, made_on])}.safetensors", module, data)
    module.take_bank(encodings, fixed)


def bank_record(module: RecModule, data: TextPairDataModule, step: int) -> dict[str, float | str]:
    """Return the record's entry on a bank that was used in training; empty if all texts had a gradient.

    Args:
        step: step of the batch on which gradients are compared.
    Returns:
        ``age_steps``, the mean number of steps since an item of the bank was encoded, and ``gradient_cosine``, the
        cosine between the backbone's gradients through some and through all of a batch's texts; or ``error``, the
        reason why there is no cosine, such as too little memory for all texts.
    """
    if not data.texts_are_sampled or not module.backbone_is_trained:
        return {}
    found: dict[str, float | str] = {"age_steps": module.bank_age}
    try:
        some, every = (_gradient(module, data.train_batch(step, all_texts=whole)) for whole in (False, True))
        found["gradient_cosine"] = float(torch.nn.functional.cosine_similarity(some, every, dim=0))
    except Exception as error:  # must not cost hours of training
        found["error"] = failure(error)
    module.zero_grad()
    module.eval()
    return found


def _gradient(module: RecModule, batch: PairBatch) -> Tensor:
    """Return the backbone's gradient on ``batch``, (number of its parameters,) float32."""
    module.zero_grad()
    module.train()
    with torch.random.fork_rng():  # the same units drop out each time, and later draws stay what they were
        torch.manual_seed(0)
        module.loss(move_data_to_device(batch, module.device)).backward()
    return torch.cat([p.grad.flatten().float() for p in module.backbone.parameters() if p.grad is not None])


def _kept(path: Path, module: RecModule, data: TextPairDataModule) -> Tensor:
    """Return the encodings stored at ``path``; the first process that asks computes them."""
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
    except (OSError, SafetensorError, KeyError):  # missing or truncated: it is computed again
        return None
    return found if len(found) == data.prompt.num_items and found.isfinite().all() else None


@torch.no_grad()
def _encode(module: RecModule, data: TextPairDataModule) -> Tensor:
    """Return the items' encodings, (I, H) float32, made in evaluation mode."""
    mode = module.training
    module.eval()
    for batch in data.catalogue():
        module.encode_catalogue(move_data_to_device(batch, module.device))
    module.train(mode)
    encodings = module.encodings()
    assert encodings is not None
    return encodings
