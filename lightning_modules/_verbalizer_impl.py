"""The verbalizer module; its config is in ``verbalizer``."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_modules._answers import DifferenceHead
from lightning_modules._pair_module import PairModule


class Verbalizer(PairModule):
    """Score items by the answer to a question about each; the user's text is computed once for all items.

    Args:
        backbone: as for ``PairModule``.
        num_items: size of the catalogue.
        answer_rows, answer_bias, softcap: as for ``AnswerHead``, for the two answers.
        training: as for ``PairModule``.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        num_items: int,
        answer_rows: Tensor,
        answer_bias: Tensor | None = None,
        softcap: float | None = None,
        **training: Any,
    ) -> None:
        super().__init__(backbone, DifferenceHead(answer_rows, softcap, answer_bias), num_items=num_items, **training)
