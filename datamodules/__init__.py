"""Sources of user and item text, one file per source; also splits, prompts and batches.

A source plug-in holds ``class Config(SourceConfig)`` (readable without polars or torch) and
``load(config) -> RecDataset``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recpeft import lazy

if TYPE_CHECKING:
    from datamodules._dataset import RecDataset
    from datamodules._module import TextPairDataModule
    from datamodules._splits import Split, split

__all__ = ["RecDataset", "Split", "TextPairDataModule", "split"]

__getattr__ = lazy.exports(
    __name__,
    {
        "RecDataset": "datamodules._dataset:RecDataset",
        "Split": "datamodules._splits:Split",
        "TextPairDataModule": "datamodules._module:TextPairDataModule",
        "split": "datamodules._splits:split",
    },
)
