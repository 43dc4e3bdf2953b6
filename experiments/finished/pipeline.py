"""Rank items for any person with a finished run: propose, score and reorder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from scipy.sparse import csr_array
from torch import Tensor

from datamodules._histories import Histories
from datamodules._module import evaluated_users, pad
from datamodules._sampled import outside
from datamodules._sparse import interaction_matrix, pairs
from experiments.cell.candidates import frozen_candidates, with_proposals
from experiments.cell.data import Prepared
from experiments.cell.ranker import fit_ranker, ranker_of_study
from experiments.cell.reorder import stage_inputs
from experiments.cell.saved_ranker import saved_ranker
from experiments.cell.saved_run import finished_any
from experiments.cell.scorers import RankerScorer, Scorer, TextScorer
from experiments.config.run import RankerRun, RunConfig, TextRun
from experiments.records.layout import FinishedRecord
from experiments.records.record import RunFolder
from metrics import History
from metrics._listing import Allowed, Relevant, best_lists
from metrics.calibration import category_profile
from rankers._base import Ranker, RankerConfig
from rankers.diversify._base import Given
from recpeft import plugins
from recpeft.errors import RecpeftError


class Pipeline:
    """Rank the items that people have not met, in the way the run ranks.

    A formulation that can rank only a few items at once gets the proposals of its first stage; if it has none, those
    of ``evaluation.candidates.ranker``, or of popularity.

    Args:
        run: a finished run's folder.
        prepared: the run's data and split.
        histories: row u is the history of user u; rows after the last user belong to people outside the data.
        as_tested: rank and mask the same items as the test did, instead of ranking all items not yet met.
    Raises:
        RecpeftError: files cannot be loaded, or the test used a separate history for each item.
    """

    def __init__(self, run: Path, prepared: Prepared, histories: Histories, as_tested: bool = False) -> None:
        _, record, config = finished_any(run)
        if as_tested:  # for bit-identical scores; otherwise all cores may be used
            torch.set_num_threads(config.threads)
        self._config, self._prepared, self._histories = config, prepared, histories
        self._masks = config.evaluation.mask_seen or not as_tested
        self._candidates = _tested(run, config, prepared) if as_tested else None
        self.first: Any = None
        """Config of the first stage; None if the whole catalogue is ranked."""
        self.size = prepared.dataset.num_items
        """Maximum number of items in a list."""
        if isinstance(config, TextRun) and not as_tested:
            self._propose_by(config, run.parent)
        # Reordered lists use the scores of another run of the same study.
        base = run.parent / record.reordered.run_id if record.reordered else run
        self._scorer: Scorer = (
            TextScorer(base, prepared, to_the_bit=as_tested)
            if isinstance(config, TextRun)
            else RankerScorer(_ranker_of(RunFolder(base), config, record, prepared), prepared)
        )
        self._given = None if config.diversify is None else stage_inputs(config, prepared)

    def _propose_by(self, config: TextRun, study: Path) -> None:
        formulation: Any = config.formulation
        if formulation.proposes is not None:
            self.first, self.size = formulation.first, formulation.size
        elif formulation.max_candidates is not None:
            popularity = plugins.config_class("rankers", "popularity").model_validate({"name": "popularity"})
            self.first, self.size = config.evaluation.candidates.ranker or popularity, formulation.max_candidates
        if isinstance(self.first, RankerConfig):
            ranker = ranker_of_study(self.first, self._prepared, config.evaluation, study, keep=False)
            self._first: Scorer = RankerScorer(ranker, self._prepared)
        elif self.first is not None:
            self._first = TextScorer(self.first.run, self._prepared)

    @property
    def note(self) -> str:
        """Return a line that says what is ranked."""
        if self._candidates is not None:
            return "ranked is what the test ranked"
        if self.first is None:
            return f"ranked is the whole catalogue, {self.size:,} items"
        return f"ranked are the {self.size} items that {_name(self.first)} proposes for each"

    def lists(self, rows: np.ndarray, k: int) -> tuple[Tensor, Tensor]:
        """Return the ``k`` best items of people (n,), best first, -1 padding if fewer are left, and scores; (n, k).

        Raises:
            RecpeftError: ``k`` exceeds ``size``.
        """
        if k > self.size:
            raise RecpeftError(f"-k is {k} but {_name(self.first)} proposes {self.size} items; lower it.")
        user = torch.from_numpy(np.minimum(rows, self._prepared.dataset.num_users)).long()
        allowed = self._allowed(rows)
        candidates = self._candidates_of(rows, user, allowed)
        scores = self._scorer.score(self._histories, rows, candidates)
        stage = self._config.diversify
        if stage is None:
            item = _best(scores, user, allowed, k)
        else:
            longest = _best(scores, user, allowed, min(max(k, stage.depth), scores.shape[1]))
            # People outside the data have a profile too, so each list gets its own.
            own = torch.arange(len(rows))
            reorder = plugins.load("rankers.diversify", stage.method).reorder
            item = reorder(longest, scores.gather(1, longest.clamp(min=0)), own, k, stage, self._given_of(rows))
        return item, scores.gather(1, item.clamp(min=0)).masked_fill(item < 0, torch.nan)

    def _allowed(self, rows: np.ndarray) -> Allowed:
        """Return the items allowed in the lists of people (n,)."""
        dataset = self._prepared.dataset
        row, place = self._histories.rows(rows)
        seen = (torch.from_numpy(row), torch.from_numpy(self._histories.item[place])) if self._masks else None
        of_domain = "domain" in dataset.items.columns
        elsewhere = torch.from_numpy(outside(dataset, self._domains(rows))) if of_domain else None
        return Allowed.of((len(rows), dataset.num_items), seen, elsewhere)

    def _domains(self, rows: np.ndarray) -> pl.Series:
        """Return each person's domain (n,): a user's own; for people outside the data, that of the items they met."""
        dataset = self._prepared.dataset
        of_users, of_items = dataset.users["domain"], dataset.items["domain"]
        known = [of_users[row] if row < dataset.num_users else of_items[self._first_item(row)] for row in rows.tolist()]
        return pl.Series(known, dtype=pl.String)

    def _first_item(self, row: int) -> int:
        return int(self._histories.items(row)[0])

    def _candidates_of(self, rows: np.ndarray, user: Tensor, allowed: Allowed) -> Tensor | None:
        """Return the items to rank (n, C), -1 padding; None is the whole catalogue."""
        if self._candidates is not None:
            return pad(*pairs(self._candidates[user.numpy()]), len(rows), -1)
        if self.first is None:
            return None
        return _best(self._first.score(self._histories, rows, None), user, allowed, self.size)

    def _given_of(self, rows: np.ndarray) -> Given:
        """Return the stage's inputs with a profile for each of n people; for non-users, from the items they met."""
        assert self._given is not None
        row, place = (torch.from_numpy(part) for part in self._histories.rows(rows))
        met = History.of(row, torch.from_numpy(self._histories.item)[place], len(rows), len(self._given.categories))
        profile = category_profile(met, self._given.categories)
        is_user = torch.from_numpy(rows < len(self._given.profile))
        profile[is_user] = self._given.profile[torch.from_numpy(rows)[is_user]]
        return replace(self._given, profile=profile)


def tested_users(config: RunConfig, prepared: Prepared) -> np.ndarray:
    """Return the users (U,) on whom the run was tested."""
    rows = prepared.split.test
    if config.evaluation.candidates.kind != "rated":
        rows = prepared.split.liked(rows)
    return evaluated_users(rows, config.evaluation.test_users, at_test=True)


def _best(scores: Tensor, user: Tensor, allowed: Allowed, k: int) -> Tensor:
    return best_lists(scores, user, allowed, Relevant.nothing(), k).item


def _tested(run: Path, config: RunConfig, prepared: Prepared) -> csr_array | None:
    """Return (U, I): 1 if the test ranked the item for the user; None is the whole catalogue.

    Raises:
        RecpeftError: the test was rolling, with a separate history for each item.
    """
    evaluation = config.evaluation
    if evaluation.candidates.rolling:
        raise RecpeftError(
            f"{run} was tested with evaluation.candidates.rolling, where each item has a history of its own; leave "
            "--as-tested out."
        )
    ranked = frozen_candidates(prepared, evaluation, run.parent)
    if isinstance(config, TextRun):
        ranked = with_proposals(config, prepared, ranked, run.parent)
    frame = None if ranked is None else ranked.test
    if evaluation.candidates.kind == "rated":
        frame = prepared.split.test
    if frame is None:
        return None
    return interaction_matrix(prepared.dataset.num_users, prepared.dataset.num_items, frame)


def _ranker_of(folder: RunFolder, config: RankerRun, record: FinishedRecord, prepared: Prepared) -> Ranker:
    """Load the ranker of a run; fit it again if the run's version did not save one."""
    ranker = saved_ranker(folder, config.ranker)
    if ranker is None:
        chosen = _chosen(config.ranker, record.chosen)
        ranker = fit_ranker(chosen, prepared, config.evaluation, getattr(config, "seed", 0))
    return ranker


def _chosen(config: RankerConfig, chosen: Mapping[str, float | None]) -> RankerConfig:
    """Return the config with only the value that validation selected, for each key with several values."""
    several = {key: (value,) for key, value in chosen.items() if isinstance(getattr(config, key, None), tuple)}
    return config.model_copy(update=several)


def _name(first: Any) -> str:
    return first.name if isinstance(first, RankerConfig) else str(first.run)
