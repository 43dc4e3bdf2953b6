"""The base of formulations that read user and item as one text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from datamodules._batching import ItemBatch, PairBatch, TextBatch, UserBatch
from lightning_modules._backbone import has_int8
from lightning_modules._rec_module import LossFunction, RecModule
from lightning_modules._shared_prefix import Texts, base, last_states, whole_texts
from lightning_modules.losses._base import ScoredPairs
from recpeft.errors import RecpeftError

PROVEN = 1e-3
"""Maximum difference between float32 states and those of whole texts, in standard deviations, before a run is refused:
Gemma 3 270M differs by 1e-5, and the wrong attention of MPT and GPT-Neo by 0.2 and more."""


class PairModule(RecModule):
    """A backbone that reads an item's text after a user's, and a head that scores one state of both.

    That state is the last token's state in a causal decoder, unless a formulation overrides ``states``.

    Args:
        backbone: a model without its language-model head, adapted or not.
        head: (R, H) states to (R,) float32 scores.
        num_items: size of the catalogue.
        loss: see ``LossFunction``.
        max_pair_tokens: maximum number of tokens of item texts computed at once.
        training: as for ``RecModule``.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        *,
        num_items: int,
        loss: LossFunction,
        max_pair_tokens: int = 8192,
        **training: Any,
    ) -> None:
        super().__init__(backbone, head, num_items=num_items, **training)
        self._loss_function = loss
        self._max_pair_tokens = max_pair_tokens
        self._parts: list[ItemBatch] = []
        self._catalogue: tuple[Texts, Tensor] | None = None

    def states(self, users: TextBatch, items: Texts, row: Tensor, text: Tensor) -> Tensor:
        """Return the head's input (R, H) for pairs of user text ``row`` (R,) and item text ``text`` (R,)."""
        found, num_tokens = last_states(self.backbone, users, items, row, text, self._max_pair_tokens)
        self.tokens_read += num_tokens
        return found

    def scored(self, states: Tensor, row: Tensor, item: Tensor, batch: PairBatch) -> ScoredPairs:
        """Return the loss's input from the states (R, H) of pairs: ``row`` (R,) and ``item`` (R,) of the batch."""
        found = self.head(states)
        return ScoredPairs.of(found.new_zeros(batch.excluded.shape).index_put((row, item), found), batch)

    def _states(self, users: TextBatch, items: Texts, row: Tensor, text: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.backbone_is_trained):
            return self.states(users, items, row, text)

    def loss(self, batch: PairBatch) -> Tensor:
        row, item = (~batch.excluded).nonzero(as_tuple=True)  # scores of excluded pairs are not used
        states = self._states(batch.users, Texts(batch.items), row, item)
        return self._loss_function(self.scored(states, row, item, batch))

    def encode_catalogue(self, batch: ItemBatch) -> None:
        if sum(len(part.item) for part in self._parts) == self.num_items:  # complete: a new epoch begins
            self._parts, self._catalogue = [], None
        self._parts.append(batch)

    def score(self, users: UserBatch, candidates: Tensor | None = None) -> Tensor:
        if self._catalogue is None:
            self._catalogue = self._of_parts()
        items, place = self._catalogue
        if candidates is None:
            candidates = torch.arange(self.num_items, device=self.device)
        candidates = candidates.expand(users.texts.size, -1)
        row, column = (candidates >= 0).nonzero(as_tuple=True)
        found = self.head(self._states(users.texts, items, row, place[candidates[row, column]]))
        scores: Tensor = found.new_zeros(candidates.shape).index_put((row, column), found)
        return scores

    def score_items(self, users: UserBatch, items: ItemBatch) -> Tensor:
        texts, number = users.texts.size, len(items.item)
        row = torch.arange(texts, device=self.device).repeat_interleave(number)
        text = torch.arange(number, device=self.device).repeat(texts)
        scores: Tensor = self.head(self._states(users.texts, Texts(items.texts), row, text))
        return scores.view(texts, number)

    def prove(self, users: TextBatch, items: TextBatch) -> None:
        """Raise ``RecpeftError`` if item texts read after a user's cached text differ from whole texts.

        Key indices are not text positions here, so attention that counts keys (ALiBi, GPT-Neo's windows) would be
        wrong, and models without keys and values (Mamba) fail. In half precision and LLM.int8 a different order of
        summation changes states as much as wrong attention does (by at most 0.2 and 1 standard deviations on Gemma 3
        270M), so there only models that fail are refused, and the record's diagnostics report the difference.
        """
        if not is_causal(self.backbone):
            return
        device = next(self.backbone.parameters()).device
        users, behind = users.to(device), Texts(items.to(device))
        # All items after the first user, and one item after each of the others.
        row = torch.tensor([0] * items.size + list(range(1, users.size)), device=device)
        text = torch.tensor([*range(items.size)] + [0] * (users.size - 1), device=device)
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                whole = whole_texts(self.backbone, users, behind, row, text)
                found = last_states(self.backbone, users, behind, row, text)[0]
            off = float((found - whole).abs().max() / whole.std())
            exact = whole.dtype == torch.float32 and not has_int8(self.backbone)
            problem = f"states differ by {off:.1e} of their standard deviation" if exact and not off <= PROVEN else None
        except (RecpeftError, torch.OutOfMemoryError):
            raise
        except (TypeError, ValueError, IndexError, AttributeError, KeyError, RuntimeError) as error:
            problem = f"{type(error).__name__}: {error}"
        finally:
            self.train(training)
        if problem is not None:
            raise RecpeftError(
                f"{type(base(self.backbone)).__name__} does not read an item's text behind a user's keys and values as "
                f"it reads the whole text ({problem}); use formulation two_tower, or another backbone."
            )

    def diagnose(self, users: UserBatch) -> dict[str, Any]:
        """Return ``whole_text``: the largest change of a score when each pair's whole text is read at once."""
        if not is_causal(self.backbone) or self._catalogue is None:
            return {}
        items, place = self._catalogue
        text = place[:5] if users.candidates is None else place[users.candidates[0][users.candidates[0] >= 0][:5]]
        row = torch.zeros_like(text)
        found = self.head(self._states(users.texts, items, row, text))
        whole = self.head(whole_texts(self.backbone, users.texts, items, row, text))
        return {"whole_text": float((found - whole).abs().max())}

    def _of_parts(self) -> tuple[Texts, Tensor]:
        """Return the catalogue's texts, and the position of each item's text among them."""
        encoded = torch.cat([part.item for part in self._parts]) if self._parts else torch.empty(0)
        if len(encoded) != self.num_items:
            raise RuntimeError("score() needs the catalogue: call encode_catalogue with every ItemBatch first")
        return Texts(_joined([part.texts for part in self._parts])), encoded.argsort()


def _joined(texts: list[TextBatch]) -> TextBatch:
    """Return the texts of several batches as one batch."""
    buckets, start = [], 0
    for part in texts:
        buckets += [type(b)(b.input_ids, b.attention_mask, b.row + start) for b in part.buckets]
        start += part.size
    return TextBatch(buckets, start, sum(part.num_tokens for part in texts))


def check_causal(model: nn.Module, formulation: str) -> None:
    """Raise ``RecpeftError`` if the backbone's tokens attend to later ones."""
    if not is_causal(model):
        raise RecpeftError(
            f"formulation.name is {formulation}, which needs a decoder, but {type(model).__name__} reads its text in "
            "both directions; name a causal language model, or use two_tower or cross_encoder."
        )


def is_causal(model: nn.Module) -> bool:
    """Return whether each token of the backbone attends only to itself and earlier tokens."""
    attention = [module.is_causal for module in model.modules() if hasattr(module, "is_causal")]
    if attention:
        return all(attention)
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    # Bloom, MPT and Mamba among others do not declare it; BERT-like models that do not are in both mappings.
    config = type(getattr(model, "config", None))
    return config in MODEL_FOR_CAUSAL_LM_MAPPING and config not in MODEL_FOR_MASKED_LM_MAPPING
