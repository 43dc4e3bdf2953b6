"""What all losses' configs share."""

from __future__ import annotations

from recpeft.config import Config


class LossConfig(Config):
    """Base of every loss's ``Config``."""

    name: str
    """Which loss: the name of a file in lightning_modules/losses/, or a dotted module name."""
