"""The verbalizer module; its config is in ``verbalizer``."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_modules._answers import DifferenceHead
from lightning_modules._pair_module import PairModule


class Verbalizer(PairModule):
    """Scores by the answer to a question on each item, the user's text being computed once for all of them.

    Args:
        backbone: as for ``PairModule``.
        num_items: size of the catalogue.
        answer_rows, answer_bias, softcap: as for ``AnswerHead``, of the two answers.
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
