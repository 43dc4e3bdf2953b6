"""A loss that kills its process, as the system does where memory runs out."""

import os
import signal
from typing import Any

from lightning_modules.losses import listwise_softmax

Config = listwise_softmax.Config


def loss(*batch: Any, **options: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)
