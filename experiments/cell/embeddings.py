"""Where items stand, for distances between them: one fixed source for all of a study, never a model under test."""

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
    """(I, D) float32: the items' categories, or the mean state of each item's text in an untuned backbone.

    Texts are what the default prompt says of an item.

    Args:
        config: None is categories.
        categories: (I, C) bool.
    """
    return categories.float() if config is None else _of_backbone(prepared, config)


def embeddings_record(prepared: Prepared, config: BackboneConfig | None) -> dict[str, str | None]:
    """Source and hash of what distances between items are of, for the record."""
    if config is None:
        return {"source": "categories", "hash": None}
    # In half precision, since sums of floats differ a little between machines.
    return {"source": config.name, "hash": digest(_of_backbone(prepared, config).half().tolist())}


@lru_cache(maxsize=2)
def _of_backbone(prepared: Prepared, config: BackboneConfig) -> Tensor:
    with torch.random.fork_rng(), torch.inference_mode():  # a run's own draws do not depend on how it is measured
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
