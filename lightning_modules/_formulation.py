"""What all formulations' configs share."""

from __future__ import annotations

from recpeft.config import Config


class FormulationConfig(Config):
    """Base of every formulation's ``Config``."""

    name: str
    """Which formulation: the name of a file in lightning_modules/, or a dotted module name."""
