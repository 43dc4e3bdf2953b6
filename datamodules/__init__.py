"""Where user and item text comes from: one file a source; splits, prompts and batches beside them.

A source plug-in holds ``class Config(SourceConfig)`` (readable without polars or torch) and
``load(config) -> RecDataset``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules._dataset import RecDataset
    from datamodules._module import TextPairDataModule
    from datamodules._splits import Split, split

__all__ = ["RecDataset", "Split", "TextPairDataModule", "split"]

_WHERE = {
    "RecDataset": "datamodules._dataset",
    "Split": "datamodules._splits",
    "TextPairDataModule": "datamodules._module",
    "split": "datamodules._splits",
}


def __getattr__(name: str) -> Any:
    # Imported when used: reading a source's Config must not import polars, torch and Lightning.
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_WHERE[name]), name)
