"""Read the finished runs of one or several studies, in the table's order, with their names there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from experiments.config.run import HOW_RUN, PLUGIN_SECTIONS
from experiments.records.layout import FailedRecord, FinishedRecord
from experiments.records.record import RunFolder, damaged, find_records, read_table
from recpeft.config import canonical_json
from recpeft.errors import RecpeftError

QUANTISATION = ("width", "double_quantisation", "int8_threshold", "skip_modules")
"""Options of the backbone that belong to its width."""

_MEASURED = ("evaluation.k", "evaluation.metrics", "evaluation.groups", "evaluation.item_groups")
"""Keys of further measurements, in which studies may differ; they do not distinguish rows."""

LONG = 30
"""Maximum length in characters of a name in plots and narrow tables."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    record: FinishedRecord
    study: str
    """Name of its study, or the study's folder if two share a name; empty if all runs belong to one study."""
    options: dict[str, Any]
    """Displayed label -> value of the options that distinguish it from runs of its kind."""
    values: np.ndarray
    """(U,) monitored metric of each user of the study, NaN if missing; for a metric over all pairs at once, (B,)
    bootstrap replicates over users."""

    @property
    def name(self) -> str:
        chosen = self.record.chosen
        name = "control (frozen)" if self.record.method == "frozen" else self.record.method
        name += f" (λ={chosen['l2']:g})" if "l2" in chosen else ""
        options = ", ".join(f"{label}={value}" for label, value in self.options.items())
        return f"{name} [{options}]" if options else name

    @property
    def title(self) -> str:
        """Return the name, preceded by the study if there are several."""
        return f"{self.study}: {self.name}" if self.study else self.name

    @property
    def label(self) -> str:
        """Return the title with the width, if it has one."""
        return self.title if self.width == "–" else f"{self.title}, {self.width}"

    @property
    def short(self) -> str:
        """Return the label, or if that is too long, the options' values without their names."""
        if len(self.label) <= LONG or not self.options:
            return self.label
        parts = [self.study, self.record.method, *map(str, self.options.values()), self.width]
        return ", ".join(part for part in parts if part not in ("", "–"))

    @property
    def width(self) -> str:
        return self.record.width

    @property
    def seed(self) -> int | None:
        """Return the seed; None for a ranker that draws nothing."""
        return self.record.config.seed

    @property
    def setting(self) -> str:
        """Return a key that runs share if they differ only in seed, study or ``HOW_RUN``."""
        apart = {"seed", "study", *HOW_RUN}
        config = {key: value for key, value in self.record.config.json_values.items() if key not in apart}
        return canonical_json([config, self.record.data.split.hash])


def read(directories: Sequence[Path]) -> tuple[list[Run], list[FailedRecord]]:
    """Return the finished runs below ``directories``, and the records of the failed ones.

    Raises:
        RecpeftError: a folder has no records, a record has another schema, no run is finished, or runs have different
            monitored metrics.
    """
    found = {folder.path.resolve(): (folder, record) for path in directories for folder, record in find_records(path)}
    done = [(folder, record) for folder, record in found.values() if isinstance(record, FinishedRecord)]
    failed = [record for _, record in found.values() if isinstance(record, FailedRecord)]
    where = ", ".join(map(str, directories))
    if not done:
        raise RecpeftError(
            f"{where}: no finished run; {len(failed)} failed, {_count_errors(failed)}: mend that and run recpeft retry."
        )
    monitors = sorted({record.monitor for _, record in done})
    if len(monitors) > 1:
        raise RecpeftError(
            f"{where}: runs with different evaluation.monitor: {', '.join(monitors)}; a table has one: give each a "
            "study of its own, and report them apart."
        )
    return _runs(done, monitors[0]), failed


def _count_errors(failed: list[FailedRecord]) -> str:
    """Return each error once with its count, the most frequent first."""
    errors = Counter(one_line(record.error).rstrip(".") for record in failed)
    return "; ".join(f"{count} with: {error}" for error, count in errors.most_common())


def one_line(text: str) -> str:
    """Join text into one line; libraries' errors may have several."""
    return " ".join(text.split())


def seeds_together(runs: Iterable[Run]) -> list[list[Run]]:
    """Group runs that differ only in their seed into the table's rows."""
    rows: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        rows.setdefault((run.study, run.setting), []).append(run)
    return list(rows.values())


def _studies(done: list[tuple[RunFolder, FinishedRecord]]) -> list[str]:
    """Return the ``Run.study`` of each record."""
    names = [record.config.study for _, record in done]
    places = [(name, folder.path.resolve().parent) for name, (folder, _) in zip(names, done, strict=True)]
    if len(set(places)) == 1:
        return [""] * len(done)
    several = {name for name, count in Counter(name for name, _ in set(places)).items() if count > 1}
    return [str(folder.path.parent) if name in several else name for name, (folder, _) in zip(names, done, strict=True)]


def name_seeds(seeds: Iterable[Any]) -> str:
    ordered = sorted(seeds)
    return f"seed{'s' if len(ordered) > 1 else ''} {', '.join(map(str, ordered))}"


def _runs(done: list[tuple[RunFolder, FinishedRecord]], monitor: str) -> list[Run]:
    """Return the runs sorted by study; in each, references from weakest kind to strongest, then cells.

    Cells are sorted by method, options, width and seed.
    """
    known = ["popularity", "item_knn", "bpr", "lightgcn", "ials", "ease", "zero_shot", "frozen"]
    widths = ["none", "int8", "nf4", "fp4"]

    def place(run: Run) -> tuple[Any, ...]:
        method, width = run.record.method, run.record.width
        return (
            run.study,
            not run.record.reference,
            known.index(method) if method in known else len(known),
            method,
            [(0, v, "") if isinstance(v, int | float) else (1, 0, str(v)) for v in run.options.values()],
            widths.index(width) if width in widths else -1,
            run.seed or 0,
            run.record.run_id,
        )

    records = [record for _, record in done]
    values = [_replicates(folder) for folder, _ in done] if pooled(monitor) else _by_user(done, monitor)
    runs = [Run(*parts) for parts in zip(records, _studies(done), _options(records), values, strict=True)]
    return sorted(runs, key=place)


def pooled(monitor: str) -> bool:
    """Return whether the metric is computed over all pairs at once, and so is no mean over users."""
    return monitor.partition("/")[0] == "auc"


def _replicates(folder: RunFolder) -> np.ndarray:
    """Return (B,) bootstrap AUCs over users drawn with replacement; runs on the same pairs share the draws."""
    from experiments.cell.suite import auc_replicates

    return auc_replicates(read_table(folder, folder.per_pair, ["user", "item"], ["score", "liked"]))


def _by_user(done: list[tuple[RunFolder, FinishedRecord]], monitor: str) -> np.ndarray:
    """Return each run's monitored metric of every user, (runs, U)."""
    tables = [read_table(folder, folder.per_user, ["raw_id"]) for folder, _ in done]
    if any(monitor not in pl.read_parquet_schema(folder.per_user) for folder, _ in done):
        return np.full((len(done), 1), np.nan)  # the metric has no values per user
    tables = [read_table(folder, folder.per_user, ["raw_id"], [monitor]) for folder, _ in done]
    for (folder, _), table in zip(done, tables, strict=True):
        if table["raw_id"].is_duplicated().any():
            raise damaged(folder, folder.per_user, "a user stands there twice")
    frames = [table.rename({monitor: str(n)}) for n, table in enumerate(tables)]
    return np.asarray(pl.concat(frames, how="align").drop("raw_id").to_numpy().T)


def _options(records: list[FinishedRecord]) -> list[dict[str, Any]]:
    """Return each record's options that differ among its peers, labelled by the key's last part if that is unique."""
    configs = [dict(leaves(record.config.json_values)) for record in records]
    unsaid = {"study", "seed", *HOW_RUN} - {"variant"}
    keys = {key for config in configs for key in config if key.partition(".")[0] not in unsaid} - {
        "adapter.method",
        *_MEASURED,
    }
    found: dict[tuple[Any, ...], set[str]] = {}
    for record, config in zip(records, configs, strict=True):
        for key in keys:
            found.setdefault(_peers(record, key), set()).add(str(config.get(key)))
    differing = [
        {key: value for key, value in config.items() if key in keys and len(found[_peers(record, key)]) > 1}
        for record, config in zip(records, configs, strict=True)
    ]
    said = _said_by_variant(configs)
    differing = [
        {key: value for key, value in options.items() if key not in (said if options.get("variant") else {"variant"})}
        for options in differing
    ]
    plugins = {f"{section}.{key}": section for section, (_, key) in PLUGIN_SECTIONS.items()}
    short = {
        key: plugins.get(key) or key.removesuffix(".name").rpartition(".")[2]
        for options in differing
        for key in options
    }
    taken = list(short.values())
    return [
        {short[key] if taken.count(short[key]) == 1 else key: value for key, value in options.items()}
        for options in differing
    ]


def _said_by_variant(configs: list[dict[str, Any]]) -> set[str]:
    """Return the keys with one value per variant, which its name implies; empty with fewer than two variants."""
    named = [config for config in configs if config.get("variant") is not None]
    if len({config["variant"] for config in named}) < 2:
        return set()
    found: dict[str, dict[str, set[str]]] = {}
    for config in named:
        for key in {key for other in named for key in other} - {"variant"}:
            found.setdefault(key, {}).setdefault(config["variant"], set()).add(str(config.get(key)))
    return {key for key, values in found.items() if all(len(of) == 1 for of in values.values())}


def _peers(record: FinishedRecord, key: str) -> tuple[Any, ...]:
    """Return a group key shared by the runs among which ``key`` is compared."""
    method = record.method
    # Rankers have no training section and zero-shot has its defaults; the control has that of its cells.
    kind = method if record.reference and method != "frozen" else None
    section, _, option = key.partition(".")
    owner = None
    if section == "backbone" and option in QUANTISATION:
        owner = record.width
    elif section in PLUGIN_SECTIONS and option != PLUGIN_SECTIONS[section][1]:
        owner = (record.config.json_values.get(section) or {}).get(PLUGIN_SECTIONS[section][1])
    return key, kind, owner


def leaves(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return the leaf values of nested dicts with their dotted keys."""
    if not isinstance(value, dict):
        return [(prefix, value)]
    return [leaf for key, part in value.items() for leaf in leaves(part, f"{prefix}.{key}" if prefix else key)]
