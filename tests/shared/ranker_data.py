"""Train data and options for rankers, without a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules._sparse import binary
from rankers._base import Ranker, TrainingOptions
from rankers._data import TrainData
from recpeft import plugins


def train_data(matrix: Any) -> TrainData:
    """From a (U, I) 0/1 matrix; each user's items ascend in time."""
    user, item = np.nonzero(np.asarray(matrix))
    ratings = np.full(len(user), 5.0, np.float32)
    return TrainData(user, item, ratings, np.arange(len(user)), np.ones(len(user), bool), *np.asarray(matrix).shape)


def options(validate: Any = lambda ranker: 0.5, **more: Any) -> TrainingOptions:
    return TrainingOptions(**{"validate": validate, "folder": Path("nowhere"), **more})


def scores(ranker: Ranker, matrix: Any, users: Any = None) -> torch.Tensor:
    """Of the rows of a (B, I) 0/1 matrix of histories, which are users 0, 1, …; or of ``users``."""
    row, item = np.nonzero(np.asarray(matrix))
    users = np.arange(len(matrix)) if users is None else np.asarray(users)
    return ranker.score(users, binary(row, item, np.asarray(matrix).shape))


def again(name: str, config: Any, ranker: Ranker) -> Ranker:
    """The ranker that is made of what a run would save."""
    tensors = {key: tensor.clone() for key, tensor in ranker.tensors().items()}
    found: Ranker = plugins.load("rankers", name).load(config, tensors, dict(ranker.details))
    return found
