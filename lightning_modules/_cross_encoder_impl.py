"""The cross-encoder module; its config is in ``cross_encoder``."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datamodules._batching import PairBatch, TextBatch
from lightning_modules._formulation import Output, Pooling
from lightning_modules._pair_module import PairModule, is_causal
from lightning_modules._pooling import POOLINGS
from lightning_modules._shared_prefix import Texts
from lightning_modules.losses._base import ScoredPairs
from recpeft.errors import RecpeftError


class PairHead(nn.Module):
    """One linear layer on a pair's state, and the score that its outputs give.

    It is initialised like transformers' classification heads: weights from N(0, ``initializer_range``²), bias 0. With
    output rating the bias starts at the middle of the scale, so that training need not learn it first.

    Args:
        hidden_size: H.
        output: score and rating are one logit, unchanged; classes give ``sum_k softmax(z)_k levels_k`` from one logit
            per level, labels ``sum_k sigmoid(z_k)`` from one logit per level except the lowest.
        levels: levels of the ratings, ascending.
        dropout: dropout of the state in training.
    """

    levels: Tensor

    def __init__(
        self,
        hidden_size: int,
        output: Output = "score",
        levels: Sequence[float] = (1.0, 2.0, 3.0, 4.0, 5.0),
        dropout: float = 0.1,
        initializer_range: float = 0.02,
    ) -> None:
        super().__init__()
        self.output = output
        self.has_level_logits = output in ("classes", "labels")
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.float32), persistent=False)
        size = {"classes": len(levels), "labels": len(levels) - 1}.get(output, 1)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden_size, size)
        nn.init.normal_(self.linear.weight, std=initializer_range)
        nn.init.constant_(self.linear.bias, (levels[0] + levels[-1]) / 2 if output == "rating" else 0.0)

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits (R, O) float32 of states (R, H)."""
        # Half precision gives many items equal scores, so autocast is off from here.
        with torch.autocast(states.device.type, enabled=False):
            logits: Tensor = self.linear(self.dropout(states.float()))
        return logits

    def score(self, logits: Tensor) -> Tensor:
        """Return the scores (R,) of logits (R, O), higher is better."""
        if self.output == "classes":
            return (logits.softmax(dim=-1) * self.levels).sum(dim=-1)
        if self.output == "labels":
            return logits.sigmoid().sum(dim=-1)
        return logits.squeeze(-1)

    def forward(self, states: Tensor) -> Tensor:
        """Return the scores (R,) float32 of states (R, H)."""
        return self.score(self.logits(states))


class CrossEncoder(PairModule):
    """Score a pair by a linear head on one state of the joined text of user and item.

    Args:
        backbone: as for ``PairModule``; an encoder reads each pair's whole text, a causal decoder each user's once.
        pooling: see ``Config``; ``self.pooling`` holds it with auto resolved.
        num_separators: number of tokens at the start of an item's text that get the user's ``token_type_ids``: BERT
            counts [SEP] as part of the text that it ends.
        max_pair_tokens: maximum number of tokens computed at once: with padding in an encoder, of items only in a
            decoder.
        training: as for ``PairModule``.
    Raises:
        RecpeftError: as ``resolve_pooling``.
    """

    head: PairHead

    def __init__(
        self,
        backbone: nn.Module,
        head: PairHead,
        *,
        num_items: int,
        pooling: Pooling = "auto",
        num_separators: int = 0,
        **training: Any,
    ) -> None:
        super().__init__(backbone, head, num_items=num_items, **training)
        self.pooling = resolve_pooling(pooling, backbone)
        self._num_separators = num_separators

    def extra_repr(self) -> str:
        return f"pooling={self.pooling}"

    def states(self, users: TextBatch, items: Texts, row: Tensor, text: Tensor) -> Tensor:
        if self.pooling == "last":
            return super().states(users, items, row, text)
        fronts = Texts(users)
        lengths = fronts.lengths[row] + items.lengths[text]
        self.tokens_read += int(lengths.sum())
        order = lengths.argsort(stable=True)
        found = [
            self._read(fronts, items, row[part], text[part])
            for part in _blocks(order, lengths[order].tolist(), self._max_pair_tokens)
        ]
        return torch.cat(found)[order.argsort()]

    def _read(self, users: Texts, items: Texts, row: Tensor, text: Tensor) -> Tensor:
        """Return the state (n, H) float32 of each pair's whole text."""
        of_user = users.lengths[row].unsqueeze(1)  # (n, 1)
        of_both = of_user + items.lengths[text].unsqueeze(1)
        places = torch.arange(int(of_both.max()), device=row.device)  # (L,)
        front = users.ids[row][:, places.clamp(max=users.ids.shape[1] - 1)]
        back = items.ids[text].gather(1, (places - of_user).clamp(0, items.ids.shape[1] - 1))
        mask = places < of_both  # (n, L), padding on the right: on the left it would shift BERT's absolute positions
        ids = torch.where(places < of_user, front, back).masked_fill(~mask, 0)  # padding is masked: any token will do
        segments = (places >= of_user + self._num_separators) & mask
        return POOLINGS[self.pooling](_run(self.backbone, ids, mask.long(), segments.long()), mask)

    def scored(self, states: Tensor, row: Tensor, item: Tensor, batch: PairBatch) -> ScoredPairs:
        if not self.head.has_level_logits:
            return super().scored(states, row, item, batch)
        found = self.head.logits(states)
        logits = found.new_zeros((*batch.excluded.shape, found.shape[1])).index_put((row, item), found)
        return ScoredPairs.of(self.head.score(logits), batch, logits, self.head.levels)


def resolve_pooling(pooling: Pooling, backbone: nn.Module) -> str:
    """Return a key of ``POOLINGS``: ``pooling``, with auto resolved for this backbone.

    Raises:
        RecpeftError: with the backbone's attention, the state at that position does not represent both texts.
    """
    if is_causal(backbone):
        if pooling in ("auto", "last"):
            return "last"
        raise RecpeftError(
            f"formulation.pooling is {pooling} but the backbone is causal: its last token alone has seen both texts; "
            "use formulation.pooling: last or auto."
        )
    if pooling == "last":
        raise RecpeftError(
            "formulation.pooling is last but the backbone reads its text in both directions, and its last token is "
            "none that sums it up; use formulation.pooling: first, mean or auto."
        )
    return "first" if pooling == "auto" else pooling


def _blocks(order: Tensor, ascending: list[int], max_tokens: int) -> Iterator[Tensor]:
    """Yield parts of ``order`` (R,) with texts of similar length, each of at most ``max_tokens`` including padding.

    Args:
        ascending: (R,) lengths in that order, ascending.
    """
    start = 0
    while start < len(ascending):
        # Lengths up to a quarter above the shortest, and as many texts as max_tokens allows.
        stop = bisect_right(ascending, ascending[start] * 5 // 4, lo=start)
        stop = min(stop, start + max(1, max_tokens // ascending[start]))
        while stop > start + 1 and ascending[stop - 1] * (stop - start) > max_tokens:
            stop -= 1
        yield order[start:stop]
        start = stop


def _run(backbone: nn.Module, ids: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
    """Return the last states (n, L, H) of texts (n, L), without the virtual tokens of prompt tuning before them."""
    inputs = {"input_ids": ids, "attention_mask": mask}
    base: Any = backbone.get_base_model() if hasattr(backbone, "get_base_model") else backbone  # type: ignore[operator]
    if getattr(base.config, "type_vocab_size", 0) < 2:
        states: Tensor = backbone(**inputs).last_hidden_state
    elif not getattr(getattr(backbone, "active_peft_config", None), "is_prompt_learning", False):
        states = backbone(**inputs, token_type_ids=segments).last_hidden_state
    else:
        # PEFT calls the model without token types when it puts virtual tokens before the text.
        def add(_: nn.Module, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            given = options["input_ids"] if options.get("input_ids") is not None else options["inputs_embeds"]
            padded = nn.functional.pad(segments, (given.shape[1] - segments.shape[1], 0))
            return args, {**options, "token_type_ids": padded}

        with base.register_forward_pre_hook(add, with_kwargs=True):
            states = backbone(**inputs).last_hidden_state
    return states[:, -ids.shape[1] :]
