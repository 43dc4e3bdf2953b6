"""What all adapters' configs share."""

from __future__ import annotations

from typing import ClassVar

from recpeft.config import Config


class AdapterConfig(Config):
    """Base of every adapter's ``Config``."""

    trains_backbone: ClassVar[bool] = True
    """Whether any parameter inside the backbone is trained."""
    trains_head: ClassVar[bool] = True
    """Whether the formulation's head (temperature, item bias) is trained."""

    method: str
    """Which adapter: the name of a file in adapters/, or a dotted module name."""
