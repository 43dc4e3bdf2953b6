"""Score items for any person with a finished run: a trained text model or a fitted ranker, behind one method."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor

from datamodules._batching import UserBatch
from datamodules._histories import Histories
from datamodules._sparse import binary
from experiments.cell.data import Prepared
from experiments.cell.encodings import keep, kept
from experiments.cell.saved_run import load_trained
from experiments.records.record import RunFolder
from metrics._judged import among
from rankers._base import Ranker

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Lightning's names of mixed precisions -> dtype of the forward pass."""


class Scorer(Protocol):
    """Interface of objects that score items for people."""

    def score(self, histories: Histories, rows: np.ndarray, candidates: Tensor | None) -> Tensor:
        """Return scores (n, I) float32, higher is better; -inf for items that are no candidates.

        Args:
            histories: row u is the history of user u; rows after the last user belong to people outside the data.
            rows: (n,) rows of ``histories`` to score.
            candidates: (n, C) items, -1 padding; None is the whole catalogue.
        """


class TextScorer:
    """The trained module of a finished run, with the catalogue encoded, on its backbone's device.

    Args:
        run: the run's folder.
        prepared: the data and split it was trained on.
        to_the_bit: reproduce the test's scores exactly, given the same number of threads.
    Raises:
        RecpeftError: see ``load_trained``.
    """

    def __init__(self, run: Path, prepared: Prepared, to_the_bit: bool = False) -> None:
        self._module, self.data, config = load_trained(run, prepared)
        self._device = next(self._module.parameters()).device
        self._precision = _AUTOCAST.get(config.training.precision)
        self._module.to(self._device)
        folder = RunFolder(run)
        encodings = kept(folder, config, self._device, to_the_bit)
        if encodings is not None:
            self._module.take_encodings(encodings.to(self._device))
            return
        with torch.no_grad(), self._autocast():
            for items in self.data.catalogue():
                self._module.encode_catalogue(move_data_to_device(items, self._device))
        keep(folder, config, self._module, self._device)

    def score(self, histories: Histories, rows: np.ndarray, candidates: Tensor | None) -> Tensor:
        found = self.of_batch(self.data.people(histories, rows, candidates))
        if candidates is None:
            return found
        return among(found, candidates, torch.arange(len(rows)), len(rows), self._module.num_items)

    @torch.no_grad()
    def of_batch(self, batch: UserBatch) -> Tensor:
        """Return scores (T, C) of the batch's candidates, or of the catalogue, from ``RecModule.score``."""
        batch = move_data_to_device(batch, self._device)
        with self._autocast():
            return self._module.score(batch, batch.candidates).cpu()

    def _autocast(self) -> torch.autocast:
        """Return the autocast context that training and testing used."""
        return torch.autocast(self._device.type, self._precision, enabled=self._precision is not None)


class RankerScorer:
    """A fitted ranker that scores from the liked items of people's histories.

    Args:
        prepared: the data and split it was fitted on.
    """

    def __init__(self, ranker: Ranker, prepared: Prepared) -> None:
        self._ranker = ranker
        self._num_users, self._num_items = prepared.dataset.num_users, prepared.dataset.num_items
        liked_from = prepared.split.liked_from
        self._liked_from = -np.inf if liked_from is None else liked_from

    def score(self, histories: Histories, rows: np.ndarray, candidates: Tensor | None) -> Tensor:
        row, place = histories.rows(rows)
        liked = ~(histories.rating[place] < self._liked_from)  # a missing rating is no dislike
        history = binary(row[liked], histories.item[place[liked]], (len(rows), self._num_items))
        scores = self._ranker.score(np.where(rows < self._num_users, rows, -1), history)
        if candidates is None:
            return scores
        chosen = scores.gather(1, candidates.clamp(min=0))
        return among(chosen, candidates, torch.arange(len(rows)), len(rows), self._num_items)
