"""Trained models: the backbone with quantisation, one file per formulation, losses, callbacks.

A formulation plug-in holds ``class Config(FormulationConfig)`` (readable without torch or Lightning) and
``build(backbone, config, *, num_items, hidden_size, **training) -> RecModule``. Optional are
``check(config, skeleton, prompt, tokenizer)``, which raises errors before weights are loaded,
``prepare(config, backbone, prompt, items, train_counts) -> dict``, further arguments of ``build`` (``items`` is the
item table, ``train_counts`` the number of train interactions of each item), and
``labels(config, tokenizer, prompt) -> dict``, the checked token id of each answer, for the certificate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recpeft import lazy

if TYPE_CHECKING:
    from lightning_modules._backbone import Backbone, load
    from lightning_modules._callbacks import (
        BestCheckpoint,
        EarlyStop,
        HardNegatives,
        RankingCallback,
        ResumeCheckpoint,
        StopWhenAsked,
    )
    from lightning_modules._rec_module import RecModule
    from lightning_modules._two_tower_impl import TwoTower

__all__ = [
    "Backbone",
    "BestCheckpoint",
    "EarlyStop",
    "HardNegatives",
    "RankingCallback",
    "RecModule",
    "ResumeCheckpoint",
    "StopWhenAsked",
    "TwoTower",
    "load",
]

__getattr__ = lazy.exports(
    __name__,
    {
        "Backbone": "lightning_modules._backbone:Backbone",
        "BestCheckpoint": "lightning_modules._callbacks:BestCheckpoint",
        "EarlyStop": "lightning_modules._callbacks:EarlyStop",
        "HardNegatives": "lightning_modules._callbacks:HardNegatives",
        "RankingCallback": "lightning_modules._callbacks:RankingCallback",
        "RecModule": "lightning_modules._rec_module:RecModule",
        "ResumeCheckpoint": "lightning_modules._callbacks:ResumeCheckpoint",
        "StopWhenAsked": "lightning_modules._callbacks:StopWhenAsked",
        "TwoTower": "lightning_modules._two_tower_impl:TwoTower",
        "load": "lightning_modules._backbone:load",
    },
)
