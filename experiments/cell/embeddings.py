"""Item embeddings for distances between items: one fixed source for a whole study, never a model under test."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from datamodules import TextPairDataModule
from datamodules._prompts import PromptConfig
from experiments.cell.data import Prepared
from lightning_modules import _backbone as backbones
from lightning_modules._backbone import BackboneConfig
from recpeft.config import digest


def item_embeddings(prepared: Prepared, config: BackboneConfig | None, categories: Tensor) -> Tensor:
    """Return (I, D) float32: the items' categories, or each item text's mean hidden state in an untuned backbone.

    The default prompt writes the texts.

    Args:
        config: the backbone; None uses categories.
        categories: (I, C) bool.
    """
    return categories.float() if config is None else _of_backbone(prepared, config)


def embeddings_record(prepared: Prepared, config: BackboneConfig | None) -> dict[str, str | None]:
    """Return the source and hash of the item embeddings, for the record."""
    if config is None:
        return {"source": "categories", "hash": None}
    # In half precision, since sums of floats differ a little between machines.
    return {"source": config.name, "hash": digest(_of_backbone(prepared, config).half().tolist())}


@lru_cache(maxsize=2)
def _of_backbone(prepared: Prepared, config: BackboneConfig) -> Tensor:
    with torch.random.fork_rng(), torch.inference_mode():  # so measuring does not change a run's own random draws
        backbone = backbones.load(**config.model_dump())
        model = backbone.model.eval()
        data = TextPairDataModule(
            prepared.dataset, prepared.split, backbone.tokenizer, **PromptConfig(liked_from=None).model_dump()
        )
        backbones.check_vocabulary(config.name, model, backbone.tokenizer, data.prompt.largest_id)
        found = torch.empty(prepared.dataset.num_items, backbone.hidden_size)
        for batch in data.catalogue():
            for bucket in batch.texts.buckets:
                device = model.device
                ids, mask = bucket.input_ids.to(device), bucket.attention_mask.to(device)
                states = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
                means = (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
                found[batch.item[bucket.row]] = means.cpu()
    return found.clone()
