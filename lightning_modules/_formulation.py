"""What all formulations' configs share."""

from __future__ import annotations

from typing import ClassVar

from recpeft.config import Config


class FormulationConfig(Config):
    """Base of every formulation's ``Config``."""

    PAIRS: ClassVar[bool] = False
    """Whether user and item are read as one text, the item's behind the user's."""

    name: str
    """Which formulation: the name of a file in lightning_modules/, or a dotted module name."""
