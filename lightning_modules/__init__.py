"""What is learnt: the backbone with quantisation, one file a formulation, losses, callbacks.

A formulation plug-in holds ``class Config(FormulationConfig)`` (readable without torch or Lightning) and
``build(backbone, config, *, num_items, hidden_size, **training) -> RecModule``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_modules._backbone import Backbone, load
    from lightning_modules._callbacks import RankingCallback, ResumeCheckpoint
    from lightning_modules._rec_module import RecModule
    from lightning_modules._two_tower_impl import TwoTower

__all__ = ["Backbone", "RankingCallback", "RecModule", "ResumeCheckpoint", "TwoTower", "load"]

_WHERE = {
    "Backbone": "lightning_modules._backbone",
    "RankingCallback": "lightning_modules._callbacks",
    "RecModule": "lightning_modules._rec_module",
    "ResumeCheckpoint": "lightning_modules._callbacks",
    "TwoTower": "lightning_modules._two_tower_impl",
    "load": "lightning_modules._backbone",
}


def __getattr__(name: str) -> Any:
    # Imported when used: reading a formulation's Config must not import torch and Lightning.
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_WHERE[name]), name)
