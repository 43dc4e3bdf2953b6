"""Report a study's finished, running and remaining runs, and their expected cost, from records alone."""

from __future__ import annotations

import contextlib
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from experiments.config.run import RunConfig, TextRun, build_recorded
from experiments.records.layout import FailedRecord, FinishedRecord, Record
from experiments.records.record import RunFolder, read_record, run_folder
from experiments.study.claims import is_running
from recpeft import terminal
from recpeft.errors import RecpeftError, printable
from recpeft.files import write_text
from recpeft.reading import read_json

PLAN_FILE = "plan.json"

State = Literal["done", "failed", "left out", "running", "waiting", "unreadable"]


@dataclass(frozen=True)
class Cell:
    """A run of an experiment file, with its state."""

    config: RunConfig
    state: State
    seconds: float | None
    """Seconds that it took, or an estimate from finished runs of its kind; None if there are none."""
    error: str = ""
    progress: str = ""
    """Progress of a run that has begun and not ended."""


def remember(configs: Sequence[RunConfig], out: Path) -> None:
    """Write each study's planned runs into its folder, so that its state can be shown without the experiment file."""
    for study in {config.study for config in configs}:
        own = [config for config in configs if config.study == study]
        runs = [config.model_dump(mode="json", exclude={"trackers"}) for config in own]
        plan = {"run_ids": [config.run_id for config in own], "runs": runs}
        write_text(out / study / PLAN_FILE, json.dumps(plan, indent=1) + "\n")


def recall(directory: Path) -> list[RunConfig]:
    """Return a study's runs as planned when it was last started.

    Raises:
        RecpeftError: no study was started there, its plan is unreadable or of another version, or its folder was
            renamed.
    """
    path = directory / PLAN_FILE
    try:
        configs = [build_recorded(run, path) for run in read_json(path)["runs"]]
        study = configs[0].study
    except (FileNotFoundError, NotADirectoryError):
        raise RecpeftError(
            f"there is no {path}; give a study's folder, such as runs/quickstart, or ask recpeft plan of its file."
        ) from None
    except (ValueError, LookupError, TypeError) as error:
        if isinstance(error, RecpeftError):
            raise
        raise RecpeftError(f"{path} cannot be read; recpeft run or recpeft plan of its file tells instead.") from None
    if study != directory.resolve().name:
        raise RecpeftError(f"{directory} was {study} when its runs were made; give it its name back.")
    return configs


def order(directory: Path) -> list[str]:
    """Return the ids of a study's runs in its file's order, without loading their plug-ins; empty without a plan."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        plan = read_json(directory / PLAN_FILE)
        return list(map(str, plan["run_ids"] if "run_ids" in plan else [run.run_id for run in recall(directory)]))
    return []


def is_study(directory: Path) -> bool:
    """Return whether runs were begun or submitted there; each way to begin leaves one of these files at once."""
    # Left by: a runner, a search (trials.JOURNAL, whose module imports Optuna), a submission, a run's claim, a record.
    patterns = (PLAN_FILE, "search.journal", "slurm/*/job.sh", ".*.lock", "*/result.json")
    return any(any(directory.glob(pattern)) for pattern in patterns)


def cells(configs: list[RunConfig], out: Path) -> list[Cell]:
    """Return each run with its state; an unreadable record is reported and left alone."""
    found: list[tuple[RunConfig, State, Record | None, str]] = []
    for config in configs:
        folder = run_folder(out, config.study, config.run_id)
        try:
            record = read_record(folder)
        except RecpeftError as error:
            found.append((config, "unreadable", None, str(error)))
            continue
        state: State = record.status if record is not None else "running" if is_running(folder) else "waiting"
        told = ""
        if isinstance(record, FailedRecord):
            state = "running" if is_running(folder) else "left out" if record.left_out else "failed"
            told = "" if state == "running" else record.error
        found.append((config, state, record, told))
    took: dict[tuple[Any, ...], list[float]] = {}
    for config, _, record, _ in found:
        seconds = record.costs.wall_seconds if isinstance(record, FinishedRecord) else None
        if seconds is not None and config.diversify is None:
            for kind in _kinds(config):
                took.setdefault(kind, []).append(seconds)
    return [
        Cell(
            config,
            state,
            _seconds(config, record, took),
            error,
            _progress(run_folder(out, config.study, config.run_id)) if state in ("running", "waiting") else "",
        )
        for config, state, record, error in found
    ]


def _progress(folder: RunFolder) -> str:
    try:
        found = read_json(folder.progress)
        step, of = int(found.pop("step")), int(found.pop("of"))
        return ", ".join([f"step {step} of {of}", *(f"{name} {value:.4f}" for name, value in found.items() if value)])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # truncated, or not written by recpeft
        return ""


def _kinds(config: RunConfig) -> list[tuple[Any, ...]]:
    """Return the keys under which runs of similar cost are grouped, the most similar first."""
    if not isinstance(config, TextRun):
        return [(config.method,)]
    size = (config.backbone.name, config.training.max_steps)
    return [(config.method, config.width, *size), (config.width, *size), size]


def _seconds(config: RunConfig, record: Record | None, took: dict[tuple[Any, ...], list[float]]) -> float | None:
    if isinstance(record, FinishedRecord):
        own = record.costs.reorder_seconds if config.diversify else record.costs.wall_seconds
        return None if own is None else float(own)
    if config.diversify is not None:
        return None  # reordering takes seconds, so no estimate is needed
    return next((statistics.mean(took[kind]) for kind in _kinds(config) if kind in took), None)


def show(found: list[Cell], title: str) -> None:
    """Print a line for each run, and a summary of the remaining ones."""
    console = terminal.console(piped=160)
    table = Table("run", "method", "width", "seed", "state", "seconds", "progress", title=title, title_justify="left")
    for cell in found:
        seconds = "–" if cell.seconds is None else f"{'' if cell.state == 'done' else '~'}{cell.seconds:,.0f}"
        seed = getattr(cell.config, "seed", None)
        name = cell.config.method + (f" [{cell.config.variant}]" if cell.config.variant else "")
        if cell.config.diversify is not None:
            name += f" [{cell.config.diversify.method} {cell.config.diversify.strength:g}]"
        row = (
            cell.config.run_id,
            name,
            cell.config.width,
            "–" if seed is None else str(seed),
            cell.state,
            seconds,
            cell.progress,
        )
        table.add_row(*(Text(printable(part)) for part in row))
    console.print(table)
    for cell in found:
        if cell.error:
            line = f"{cell.state}: {cell.config.run_id} {cell.config.method}, width {cell.config.width}: {cell.error}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    left = [cell for cell in found if cell.state not in ("done", "left out")]
    known = [cell.seconds for cell in left if cell.seconds is not None]
    states = Counter(cell.state for cell in found)
    counts = ", ".join(f"{number} {state}" for state, number in states.items())
    text = f"{len(found)} runs: {counts}"
    if left:
        text += f"; left: about {sum(known):,.0f} s by those of their kind that are done" if known else ""
        unknown = len(left) - len(known)
        text += f"; of {unknown} nothing is known yet" if unknown else ""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
