"""Measure how much a trained model's scores depend on batch and padding, which should not change them."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import pad

from datamodules import TextPairDataModule
from datamodules._batching import Bucket, TextBatch, UserBatch
from lightning_modules._backbone import longest_text
from lightning_modules._rec_module import RecModule
from lightning_modules._shared_prefix import base, virtual_tokens

USERS, ITEMS, PADDING = 4, 20, 9
"""Numbers of users and items that are scored again, and number of tokens by which their texts are padded."""


class Diagnostics(Callback):
    """Measure at the end of test the largest change of a score for some users and items; ``found`` holds it.

    ``batch``: users scored one at a time instead of together; LLM.int8's outlier columns depend on the batch (Dettmers
    et al. 2022). ``padding``: texts with more padding, if the backbone has positions left. ``standard_deviation`` of
    the scores is given for comparison. ``RecModule.diagnose`` adds the formulation's own values. If the measurement
    fails, ``found`` holds only ``error``, the reason; the test itself stays valid.
    """

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self.sample: Tensor | None = None
        """Result of ``sample_scores`` for the tested model; None if its formulation has no ``score_items``."""
        self.seconds = 0.0
        """Seconds the diagnostics took, not counted as test time."""

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, TextPairDataModule)
        assert isinstance(pl_module, RecModule)
        tokens, start = pl_module.tokens_read, time.perf_counter()
        with trainer.precision_plugin.test_step_context():  # in the precision that was tested
            try:
                self.sample = sample_scores(pl_module, data)
                self.found = diagnose(pl_module, data)
            except Exception as error:  # a failure here, out of memory included, must not cost hours of training
                self.found = {"error": failure(error)}
        pl_module.tokens_read = tokens
        self.seconds = time.perf_counter() - start


def failure(error: Exception) -> str:
    """Return an error as one line for the record."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def diagnose(module: RecModule, data: TextPairDataModule) -> dict[str, Any]:
    """Return the values that ``Diagnostics`` measures; the catalogue must be encoded already."""

    def batch(users: Any) -> UserBatch:
        (made,) = data.test_batches(users)
        moved: UserBatch = move_data_to_device(made, module.device)
        return moved

    def score(users: UserBatch) -> Tensor:
        items = torch.arange(min(ITEMS, module.num_items), device=module.device)
        listed = items.expand(users.texts.size, -1) if users.candidates is None else users.candidates
        return module.score(users, listed).masked_fill(listed < 0, 0.0)

    users = data.test_users[:USERS]
    together = batch(users)
    scores = score(together)
    alone = [score(batch(users[place : place + 1])) for place in range(len(users))]
    apart = torch.cat([pad(part, (0, scores.shape[1] - part.shape[1])) for part in alone])
    found = {"users": len(users), "batch": float((scores - apart).abs().max())}
    limit = longest_text(base(module.backbone))
    room = None if limit is None else limit - virtual_tokens(module.backbone)
    padded = _padded(together.texts, data.padding_side, room)
    if padded is not None:
        found["padding"] = float((scores - score(replace(together, texts=padded))).abs().max())
    return found | {"standard_deviation": float(scores.std()), **module.diagnose(together)}


def sample_scores(module: RecModule, data: TextPairDataModule) -> Tensor | None:
    """Return scores (T, I) of some test users for some items, which the reloaded model must reproduce.

    None if the formulation has no ``score_items``.
    """
    (users,) = data.test_batches(data.test_users[:USERS])
    items = data.items_around(users, ITEMS)
    try:
        scores = module.score_items(*(move_data_to_device(batch, module.device) for batch in (users, items)))
    except NotImplementedError:
        return None
    return scores.cpu()


def _padded(texts: TextBatch, side: str, room: int | None) -> TextBatch | None:
    """Return the texts with ``PADDING`` more tokens of padding, up to length ``room``; None if there is no room."""
    longer = []
    for part in texts.buckets:
        length = part.input_ids.shape[1]
        count = PADDING if room is None else max(0, min(PADDING, room - length))
        width = (count, 0) if side == "left" else (0, count)
        # Masked tokens may have any id.
        longer.append(Bucket(pad(part.input_ids, width), pad(part.attention_mask, width), part.row))
    if all(new.input_ids.shape == old.input_ids.shape for new, old in zip(longer, texts.buckets, strict=True)):
        return None
    return TextBatch(longer, texts.size, texts.num_tokens)
