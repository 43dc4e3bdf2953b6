"""A loss that fails in the second process alone, for which the first then waits."""

import os
from typing import Any

from lightning_modules.losses import listwise_softmax


class Config(listwise_softmax.Config):
    pass


def loss(*batch: Any, **options: Any) -> Any:
    if os.environ.get("RANK") == "1":
        raise ArithmeticError("the loss is not a number")
    return listwise_softmax.loss(*batch, **options)
