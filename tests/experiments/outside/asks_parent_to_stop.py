"""The listwise softmax as a plug-in from outside; one process of two once tells the one that started it to stop."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from lightning_modules.losses import listwise_softmax
from recpeft import stopping


class Config(listwise_softmax.Config):
    marker: str
    """File that is there once the signal has been sent."""
    at_call: int
    """Which call of the second process does it."""


calls = 0


def loss(*batch: Any, marker: str, at_call: int, **options: Any) -> Any:
    global calls
    calls += 1
    if calls == at_call and os.environ.get("RANK") == "1" and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getppid(), signal.SIGTERM)
        while stopping.asked() is None:  # the first process may hear of it later
            time.sleep(0.02)
    return listwise_softmax.loss(*batch, **options)
