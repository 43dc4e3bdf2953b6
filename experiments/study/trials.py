"""Trials of a search: read their journal, and take, run and report a trial.

The journal is Optuna's, which needs no file-system locks. Every process started with the same command takes trials
from it until there are as many as the file asks for, and takes over trials whose process has died: such a trial keeps
its number and values, and resumes from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from experiments.config.run import HOW_RUN, TextRun
from experiments.config.search import RangeConfig, Search, SearchConfig
from experiments.records.record import RunFolder, run_folder
from experiments.study import workers as pool
from experiments.study.claims import claim, is_running
from experiments.study.same_study import REMEDY, differences
from experiments.study.serial import sentence_of
from recpeft import stopping
from recpeft.config import digest, plain
from recpeft.errors import DiskError, RecpeftError, cut, shown
from recpeft.files import disk_errors, locked, write_text
from recpeft.terminal import say

JOURNAL = "search.journal"
"""File in the study's folder through which the processes of a search share all their state."""

SUMMARY = "search.json"
"""File in the study's folder that holds the winner and all trials, once there is a winner."""

NAMES = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "begun",
    TrialState.WAITING: "waiting",
}

ENDED = ("done", "pruned", "failed")


class Trials:
    """The trials of a search, read from its journal.

    Args:
        read_only: create no journal if there is none.

    Raises:
        RecpeftError: the folder holds another search, or an unreadable journal.
    """

    def __init__(self, search: Search, out: Path, read_only: bool = False) -> None:
        base = search.base
        self.search = search
        self.out = out
        self.folder = out / base.study
        self.monitor = base.evaluation.monitored
        self.lower_is_better = base.evaluation.lower_is_better
        self._study: optuna.Study | None = None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if not read_only:
            with locked(self._path):
                self._study = self._open(new=True)
                self._check_same(base)
        elif self._path.exists():
            self._study = self._open(new=False)
            if self._study is not None and "search" in self._study.user_attrs:  # absent while it is being created
                self._check_same(base)

    @property
    def _path(self) -> Path:
        return self.folder / JOURNAL

    @property
    def study(self) -> optuna.Study:
        assert self._study is not None
        return self._study

    @property
    def over(self) -> bool:
        """Return whether all trials exist and have ended."""
        frozen = self._frozen()
        return len(frozen) >= self.search.config.most_trials and all(trial.state.is_finished() for trial in frozen)

    def take(self, held: contextlib.ExitStack) -> tuple[Trial, TextRun] | None:
        """Return a trial to run, claimed until ``held`` is closed: one whose process has died, or else a new one.

        None if there is nothing to take, for example while others run the last ones.
        """
        with locked(self._path):
            for frozen in self._frozen():
                run_id = frozen.user_attrs.get("run_id")
                if frozen.state == TrialState.RUNNING and not (run_id and is_running(RunFolder(self.folder / run_id))):
                    taken = self._claimed(frozen.number, frozen, held)
                    if taken is not None:
                        return taken
            while len(self._frozen()) < self.search.config.most_trials:
                taken = self._claimed(len(self._frozen()), None, held)
                if taken is not None:
                    return taken
        return None

    def run(self, trial: Trial, config: TextRun, debug: bool) -> None:
        """Train and validate a trial, and report its end.

        Raises:
            DiskError: the disk is full.
            Interrupted: a stop was requested; the trial can be resumed later.
        """
        frozen = self._frozen()[trial.number]
        twin = next(
            (t for t in self._frozen() if t.state.is_finished() and t.user_attrs.get("run_id") == config.run_id), None
        )
        if twin is not None:
            self._end_as(trial, twin)
            return
        folder = self._run_folder(config)
        starts = [*frozen.user_attrs.get("starts", []), pool.last_saved(folder)]
        if starts[-pool.MOST_DEATHS - 1 :].count(starts[-1]) > pool.MOST_DEATHS:
            self._fail(
                trial,
                f"its process ended {pool.MOST_DEATHS} times in a row at the same step; where memory runs out, "
                "search lower training.users_per_step or training.max_bucket_tokens",
            )
            return
        trial.set_user_attr("starts", starts)
        told = _Told(trial, frozen, self.monitor)
        say(f"trial {trial.number}: {_values(self._values(frozen))}")
        begin = time.perf_counter()
        try:
            from experiments.cell.train import run_trial

            found = run_trial(config, self.out, told)
        except optuna.TrialPruned:
            state, value = TrialState.PRUNED, None
        except (DiskError, stopping.Interrupted):
            trial.set_user_attr("starts", starts[:-1])  # an interruption is not counted as a death
            raise
        except Exception as error:  # one trial's failure must not end the others
            if debug:
                say("".join(traceback.format_exception(error)), error=True)
            self._fail(trial, sentence_of(error))
            return
        else:
            told(found["trace"], False)
            state, value = TrialState.COMPLETE, found["best"]["validation"][self.monitor]
        trial.set_user_attr("steps", told.steps)
        trial.set_user_attr("seconds", round(time.perf_counter() - begin, 3))
        if value is not None and math.isnan(value):
            self._fail(trial, f"{self.monitor} is not a number on validation")
            return
        self._end(trial, state, value)

    def rows(self) -> list[dict[str, Any]]:
        """Return the trials, in order, in the format of ``search.json``."""
        return [self._row(frozen) for frozen in self._frozen()]

    def best(self) -> dict[str, Any] | None:
        """Return the trial with the best value among those trained to their end; of equal ones, the first."""
        return self._best(self.rows())

    def _best(self, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
        done = [row for row in rows if row["state"] == "done" and row["validation"] is not None]
        if not done:
            return None
        return (min if self.lower_is_better else max)(done, key=lambda row: float(row["validation"]))

    def name_winner(self) -> dict[str, Any]:
        """Write the winner to ``search.json`` and return it; afterwards no trials can be added.

        Raises:
            RecpeftError: no trial succeeded.
        """
        rows = self.rows()
        winner = self._best(rows)
        if winner is None:
            errors = [row["error"] for row in rows if row["error"]]
            raise RecpeftError(
                f"none of {len(rows)} trials has ended well, the last: {errors[-1] if errors else 'pruned'}; "
                f"mend the space, and give the file another study or move {self.folder} away."
            )
        summary = {
            "monitor": self.monitor,
            "lower_is_better": self.lower_is_better,
            "search": self.search.config.model_dump(mode="json"),
            "winner": winner,
            "trials": rows,
        }
        path = self.folder / SUMMARY
        text = json.dumps(plain(summary), indent=1, ensure_ascii=False) + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # a finished search may be kept read-only
            write_text(path, text)
        return winner

    def drop_checkpoints(self, but_best: bool = True) -> None:
        """Remove the checkpoints of ended trials, except the best one's, from which the winner is tested."""
        rows = self.rows()  # read once, since a later reading could have another best trial than the one kept
        best = self._best(rows) if but_best else None
        kept = {None, best["run_id"] if best else None}
        for row in rows:
            if row["state"] in ENDED and row["run_id"] not in kept:
                folder = RunFolder(self.folder / row["run_id"])
                if not is_running(folder):
                    shutil.rmtree(folder.checkpoints, ignore_errors=True)
                    if folder.progress.exists():
                        folder.progress.unlink(missing_ok=True)

    # The journal -----------------------------------------------------------------------------------

    def _open(self, new: bool) -> optuna.Study | None:
        """Return the journal's study, created if ``new``; otherwise write nothing, and return None if none exists."""
        config = self.search.config
        with disk_errors(self._path), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            try:
                storage = JournalStorage(JournalFileBackend(str(self._path)))
                if not new and not optuna.get_all_study_names(storage):
                    return None
                study = (
                    optuna.create_study(
                        storage=storage,
                        study_name="search",
                        direction="minimize" if self.lower_is_better else "maximize",
                        pruner=_pruner(config),
                        load_if_exists=True,
                    )
                    if new
                    else optuna.load_study(storage=storage, study_name="search")
                )
                for frozen in study.get_trials(deepcopy=False):
                    line_of(self._row(frozen), self.monitor)
            except OSError:
                raise
            except Exception as error:  # Optuna replays a journal, and may raise anything if it is malformed
                problem = cut(" ".join(str(error).split()))
                raise RecpeftError(f"{self._path} cannot be read ({problem}); move the study's folder away.") from None
            return study

    def _check_same(self, base: TextRun) -> None:
        """Refuse to continue a search with another config; ``HOW_RUN`` keys may differ, ``trials`` until the winner."""
        ours = plain({"run": {key: part for key, part in base.asked_for().items() if key not in HOW_RUN}})
        ours["search"] = {key: part for key, part in self.search.config.asked_for().items() if key != "trials"}
        if base.evaluation.candidates.version is not None:
            ours["version of drawn candidates"] = base.evaluation.candidates.version
        theirs = self.study.user_attrs.get("search")
        if theirs is None:
            self.study.set_user_attr("search", ours)
            return
        found = differences(theirs, ours)
        trials = len(self._frozen())
        if (self.folder / SUMMARY).exists() and self.search.config.most_trials > trials:
            found = {"search.trials": (trials, self.search.config.most_trials)}  # its winner has been tested
        for key, (old, new) in found.items():
            raise RecpeftError(
                f"{self.folder} holds a search in which {key} was {shown(old)} and not {shown(new)}; {REMEDY}."
            )

    def _frozen(self) -> list[FrozenTrial]:
        return [] if self._study is None else self._study.get_trials(deepcopy=False)

    def _claimed(
        self, number: int, frozen: FrozenTrial | None, held: contextlib.ExitStack
    ) -> tuple[Trial, TextRun] | None:
        """Claim trial ``number`` and draw its missing values; None if another process holds it or it cannot run."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # A new sampler for each trial: a sampler that continued its own sequence would repeat its draws after an
            # interruption, and in each of several processes.
            self.study.sampler = _sampler(self.search.config, number)
            trial = self.study.ask() if frozen is None else Trial(self.study, frozen._trial_id)
            for key in self.search.config.space:
                _suggest(trial, key, _distribution(self.search.config, key))
        try:
            config = self.search.trial(self._values(self._frozen()[number]))
        except RecpeftError as error:
            self._fail(trial, str(error))
            return None
        if trial.user_attrs.get("run_id") != config.run_id:
            trial.set_user_attr("run_id", config.run_id)
        folder = self._run_folder(config)
        if not is_running(folder) and held.enter_context(claim(folder)):
            return trial, config
        return None

    def _run_folder(self, config: TextRun) -> RunFolder:
        return run_folder(self.out, config.study, config.run_id)

    def _values(self, frozen: FrozenTrial) -> dict[str, Any]:
        """Return a trial's values as the file spells and orders them; fewer if its process died while drawing them."""
        config = self.search.config
        return {key: config.value(key, frozen.params[key]) for key in config.space if key in frozen.params}

    def _end_as(self, trial: Trial, twin: FrozenTrial) -> None:
        """End a trial like its ``twin``, which has the same values, without training it again."""
        trial.set_user_attr("same_as", twin.number)
        for name in ("steps", "seconds", "error"):
            if name in twin.user_attrs:
                trial.set_user_attr(name, twin.user_attrs[name])
        for place, value in twin.intermediate_values.items():
            trial.report(value, place)
        self._end(trial, twin.state, twin.value if twin.state == TrialState.COMPLETE else None)

    def _fail(self, trial: Trial, error: str) -> None:
        trial.set_user_attr("error", error)
        self._end(trial, TrialState.FAIL)

    def _end(self, trial: Trial, state: TrialState, value: float | None = None) -> None:
        self.study.tell(trial, value, state)
        row = self._row(self._frozen()[trial.number])
        say(f"    {line_of(row, self.monitor)}")
        if row["run_id"] and row["same_as"] is None:
            path = self.folder / row["run_id"] / "trial.json"
            write_text(path, json.dumps(plain(row), indent=1, ensure_ascii=False) + "\n")
        self.drop_checkpoints()

    def _row(self, frozen: FrozenTrial) -> dict[str, Any]:
        reported = [value for value in frozen.intermediate_values.values() if math.isfinite(value)]
        best = (min if self.lower_is_better else max)(reported) if reported else None
        said = frozen.user_attrs
        return {
            "number": frozen.number,
            "run_id": said.get("run_id"),
            "state": NAMES[frozen.state],
            "values": self._values(frozen),
            "validation": best,
            "epochs": [frozen.intermediate_values[place] for place in sorted(frozen.intermediate_values)],
            "steps": said.get("steps"),
            "seconds": said.get("seconds"),
            "same_as": said.get("same_as"),
            "error": said.get("error"),
        }


class _Told:
    """Callback that reports a trial to the journal after each validation."""

    def __init__(self, trial: Trial, frozen: FrozenTrial, monitor: str) -> None:
        self._trial = trial
        self._monitor = monitor
        self._worst = math.inf if trial.study.direction == StudyDirection.MINIMIZE else -math.inf
        self._reported = set(frozen.intermediate_values)
        self.steps = 0

    def __call__(self, trace: list[dict[str, Any]], goes_on: bool) -> None:
        """Report new epochs, and prune an unpromising trial.

        Raises:
            TrialPruned: the pruner ends the trial.
        """
        # Pruners count places from 0; epochs that cannot be the best (AdaLoRA's with too many ranks) are not reported.
        for place, row in enumerate(trace):
            if place not in self._reported and row.get("may_be_best", True):
                value = row["validation"][self._monitor]
                self._trial.report(self._worst if math.isnan(value) else value, place)  # Optuna prunes at NaN
                self._reported.add(place)
        self.steps = trace[-1]["step"]
        with np.errstate(invalid="ignore"):  # the median of infinite worst values
            if goes_on and self._trial.should_prune():
                raise optuna.TrialPruned


def work(trials: Trials, debug: bool, to_the_end: bool = True) -> None:
    """Run trials until no more are left.

    Args:
        to_the_end: wait for other processes' trials, to take them over if a process dies.
    Raises:
        DiskError: the disk is full.
        Interrupted: a stop was requested.
    """
    while not trials.over:
        if stopping.asked():
            stopping.stop("what was tried is kept")
        with disk_errors(trials.folder / JOURNAL), contextlib.ExitStack() as held:
            taken = trials.take(held)
            if taken is not None:
                trials.run(*taken, debug)
                continue
        if not to_the_end:
            return
        time.sleep(0.5)


# What Optuna is asked for -------------------------------------------------------------------------


def _distribution(config: SearchConfig, key: str) -> BaseDistribution:
    values = config.space[key]
    if not isinstance(values, RangeConfig):
        return CategoricalDistribution(config.choices(key))
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), values.log, int(values.step or 1))
    return FloatDistribution(float(values.low), float(values.high), values.log, values.step)


def _suggest(trial: Trial, key: str, values: BaseDistribution) -> None:
    """Draw a value, unless the trial has one."""
    if isinstance(values, CategoricalDistribution):
        trial.suggest_categorical(key, values.choices)
    elif isinstance(values, IntDistribution):
        trial.suggest_int(key, values.low, values.high, step=values.step, log=values.log)
    elif isinstance(values, FloatDistribution):
        trial.suggest_float(key, values.low, values.high, step=values.step, log=values.log)


def _sampler(config: SearchConfig, number: int) -> optuna.samplers.BaseSampler:
    """Return the sampler that draws the values of trial ``number``."""
    seed = int(digest([config.seed, number], 8), 16)
    if config.sampler == "tpe":
        # The constant liar counts running trials as bad ones, so that several processes try different values.
        return optuna.samplers.TPESampler(n_startup_trials=config.random_trials, constant_liar=True, seed=seed)
    random = optuna.samplers.RandomSampler(seed)
    # Optuna's GridSampler stops Optuna's own loop, which is not used here.
    return random if config.sampler == "random" else optuna.samplers.PartialFixedSampler(config.cell(number), random)


def _pruner(config: SearchConfig) -> optuna.pruners.BasePruner:
    if config.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=config.unpruned_trials)
    return optuna.pruners.HyperbandPruner() if config.pruner == "hyperband" else optuna.pruners.NopPruner()


# For a reader -------------------------------------------------------------------------------------


def line_of(row: dict[str, Any], monitor: str) -> str:
    value = "" if row["validation"] is None else f", validation {monitor} {number_text(row['validation'])}"
    same = "" if row["same_as"] is None else f", as trial {row['same_as']}"
    error = f": {row['error']}" if row["error"] else ""
    return f"trial {row['number']} ({_values(row['values'])}): {row['state']}{same}{value}{error}"


def count_alike(rows: list[dict[str, Any]]) -> int:
    """Return the number of trials trained to their end if there are several and all have the same value; else 0."""
    values = [row["validation"] for row in rows if row["state"] == "done" and row["same_as"] is None]
    return len(values) if len(values) > 1 and len(set(values)) == 1 else 0


def _values(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )


def number_text(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
