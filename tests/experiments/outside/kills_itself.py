"""The listwise softmax as a plug-in from outside, which kills its process once, at a given call."""

import os
import signal
from pathlib import Path
from typing import Any

from lightning_modules.losses import listwise_softmax


class Config(listwise_softmax.Config):
    marker: str
    """File that is there once the process has been killed."""
    at_call: int
    """Which call of the first process does it."""


calls = 0


def loss(*batch: Any, marker: str, at_call: int, **options: Any) -> Any:
    global calls
    calls += 1
    if calls == at_call and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return listwise_softmax.loss(*batch, **options)
