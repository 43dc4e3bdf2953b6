"""The listwise softmax, which counts the steps of all processes in a file."""

import os
from typing import Any

from lightning_modules.losses import listwise_softmax

Config = listwise_softmax.Config


def loss(*batch: Any, **options: Any) -> Any:
    with open(os.environ["STEPS_FILE"], "ab") as file:  # appending a byte is whole or not at all
        file.write(b".")
    return listwise_softmax.loss(*batch, **options)
