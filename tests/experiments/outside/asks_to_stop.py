"""The listwise softmax as a plug-in from outside, which signals its own process once, at a given call."""

import os
import signal
from pathlib import Path
from typing import Any

from lightning_modules.losses import listwise_softmax


class Config(listwise_softmax.Config):
    marker: str
    """File that is there once the signal has been sent."""
    at_call: int
    """Which call of the first process does it."""
    signal: str
    """Name of the signal."""


calls = 0


def loss(*batch: Any, marker: str, at_call: int, **options: Any) -> Any:
    global calls
    calls += 1
    number = getattr(signal, options.pop("signal"))
    if calls == at_call and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), number)
    return listwise_softmax.loss(*batch, **options)
