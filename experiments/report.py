"""A study's table, from its records alone."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments._data import warnings
from experiments.config import PLUGIN_SECTIONS, lower_is_better
from experiments.results import RunFolder, find_records
from experiments.statistics import Side, adjust, compare_all, intervals, verdict
from metrics.catalog import Direction, find
from recpeft.config import canonical_json
from recpeft.errors import RecpeftError
from recpeft.files import write_text

_QUANTISATION = ("width", "double_quantisation", "int8_threshold", "skip_modules")
"""The backbone's options that belong to its width."""

_COSTS = {
    "trainable": ("trainable", 1),
    "adapter MB": ("adapter_bytes", 2**20),
    "optimiser MB": ("optimizer_bytes", 2**20),
    "backbone MB": ("backbone_bytes", 2**20),
    "peak MB": ("peak_memory_bytes", 2**20),
    "steps": ("steps", 1),
    "best step": ("best_step", 1),
    "tokens": ("tokens_seen", 1),
    "train s": ("train_seconds", 1),
    "train tokens/s": ("train_tokens_per_second", 1),
    "test tokens/s": ("test_tokens_per_second", 1),
    "total s": ("wall_seconds", 1),
}
"""Header in the table for people -> (column of report.csv, unit)."""

_NOT_PRINTED = ("optimiser MB", "steps", "best step", "tokens", "total s")
"""Costs for which a terminal is too narrow."""

SCORE_TOLERANCE = 1e-4
"""How far a score may move with batch, padding or a shared prefix before the report says so."""

FEW_USERS = 30
"""In a group of which a gap is reported: with fewer the report says so."""

_SEEDS = "min–max of seeds"
"""Header of how far the monitored metric moves with the seed."""


@dataclass(frozen=True)
class _Run:
    record: dict[str, Any]
    options: dict[str, Any]
    """What sets it apart from runs of its kind, by the label shown."""
    values: np.ndarray
    """(U,) the monitored metric of each user of the study, NaN where there is none; of a metric over all pairs at once
    (B,) its values over drawn users."""

    @property
    def name(self) -> str:
        chosen = self.record.get("chosen", {})
        name = "control (frozen)" if self.record["method"] == "frozen" else str(self.record["method"])
        name += f" (λ={chosen['l2']:g})" if "l2" in chosen else ""
        options = ", ".join(f"{label}={value}" for label, value in self.options.items())
        return f"{name} [{options}]" if options else name

    @property
    def seed(self) -> int | None:
        """None for a ranker, which draws nothing."""
        return self.record["config"].get("seed")

    @property
    def row(self) -> str:
        """Equal for runs that differ in their seed alone."""
        config = {key: value for key, value in self.record["config"].items() if key != "seed"}
        return canonical_json([config, self.record["data"]["split"]["hash"]])


@dataclass(frozen=True)
class _Pair:
    cell: str
    less: str
    ours: list[_Run]
    theirs: list[_Run]

    @property
    def values(self) -> np.ndarray:
        """(U,) the difference of means over seeds; (B,) as ``_Run.values``."""
        return np.asarray(_mean(self.ours) - _mean(self.theirs))

    @property
    def sides(self) -> tuple[Side, Side]:
        return _side(self.cell, self.ours), _side(self.less, self.theirs)


def write_report(directory: Path) -> None:
    """Print the table of the study in ``directory`` and write ``report.md`` and ``report.csv`` into it.

    Runs that differ in their seed alone are one row of the table and a line each in ``report.csv``.

    Raises:
        RecpeftError: no records, or none of a finished run.
    """
    found = find_records(directory)
    done = [(folder, record) for folder, record in found if record["status"] == "done"]
    failed = [record for _, record in found if record["status"] != "done"]
    if not done:
        raise RecpeftError(
            f"{directory} holds no finished run; {len(failed)} failed, the first with: {failed[0]['error']}"
        )
    monitors = sorted({record["monitor"] for _, record in done})
    if len(monitors) > 1:
        raise RecpeftError(
            f"{directory} holds runs with different evaluation.monitor: {', '.join(monitors)}; give each a study of "
            "its own."
        )
    monitor = monitors[0]
    runs = _runs(done, monitor)
    grouped: dict[str, list[_Run]] = {}
    for run in runs:
        grouped.setdefault(run.row, []).append(run)
    rows = list(grouped.values())
    pairs = [pair for row in rows for pair in _pairs(row, rows)]
    values = [run.values for run in runs] + [_mean(row) for row in rows] + [pair.values for pair in pairs]
    # What is drawn already has its ends; users' values are yet to be drawn.
    bounds = (
        np.nanquantile(values, [0.025, 0.975], axis=1).T if _pooled(monitor) else intervals(np.stack(values, axis=1))
    )
    of_runs, of_rows, of_pairs = np.split(bounds, [len(runs), len(runs) + len(rows)])
    lines = [
        {"run_id": run.record["run_id"], "seed": run.seed} | _line([run], monitor, ends)
        for run, ends in zip(runs, of_runs, strict=True)
    ]
    folded = [_line(row, monitor, ends) for row, ends in zip(rows, of_rows, strict=True)]
    quality, costs = _quality(rows, folded, monitor), _costs(folded)
    notes = _notes([run.record for run in runs], failed)
    if _SEEDS in quality:
        notes.append(
            "a row is the mean over its seeds (of bytes, the largest) and its interval is over users, of each user's "
            f"mean over the seeds; how far {monitor} moves with the seed is in {_SEEDS}; report.csv has every run"
        )
    notes += _sentences(pairs, of_pairs, monitor)
    _print(quality, costs, notes)
    write_text(directory / "report.md", _markdown(quality | costs, notes))
    write_text(directory / "report.csv", _csv(lines))
    print(f"Written: {directory / 'report.md'}, {directory / 'report.csv'}")


def _runs(done: list[tuple[RunFolder, dict[str, Any]]], monitor: str) -> list[_Run]:
    """References first, weakest kind to strongest; then cells by method, options, width and seed."""
    known = ["popularity", "ease", "zero_shot", "frozen"]
    widths = ["none", "int8", "nf4", "fp4"]

    def place(run: _Run) -> tuple[Any, ...]:
        method, width = run.record["method"], run.record["width"]
        return (
            not run.record["reference"],
            known.index(method) if method in known else len(known),
            method,
            [(0, v, "") if isinstance(v, int | float) else (1, 0, str(v)) for v in run.options.values()],
            widths.index(width) if width in widths else -1,
            run.seed or 0,
            run.record["run_id"],
        )

    records = [record for _, record in done]
    values = [_replicates(folder) for folder, _ in done] if _pooled(monitor) else _by_user(done, monitor)
    runs = [_Run(*parts) for parts in zip(records, _options(records), values, strict=True)]
    return sorted(runs, key=place)


def _pooled(monitor: str) -> bool:
    """Whether the metric is of all pairs at once, and so is no mean over users."""
    return monitor.partition("/")[0] == "auc"


def _replicates(folder: RunFolder) -> np.ndarray:
    """(B,) AUC over users drawn with replacement, the same for every run on the same pairs."""
    from experiments._evaluation import auc_replicates

    return auc_replicates(pl.read_parquet(folder.per_pair))


def _by_user(done: list[tuple[RunFolder, dict[str, Any]]], monitor: str) -> np.ndarray:
    """(runs, U)"""
    if any(monitor not in pl.read_parquet_schema(folder.per_user) for folder, _ in done):
        return np.full((len(done), 1), np.nan)  # a value of all users at once
    frames = [
        pl.read_parquet(folder.per_user, columns=["raw_id", monitor]).select(
            pl.col("raw_id").cast(pl.String), pl.col(monitor).alias(str(n))
        )
        for n, (folder, _) in enumerate(done)
    ]
    return np.asarray(pl.concat(frames, how="align").drop("raw_id").to_numpy().T)


def _options(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What of each record's config differs among its peers, under the key's last part where no two are the same."""
    configs = [dict(_leaves(record["config"])) for record in records]
    keys = {key for config in configs for key in config} - {"seed", "adapter.method"}
    found: dict[tuple[Any, ...], set[str]] = {}
    for record, config in zip(records, configs, strict=True):
        for key in keys:
            found.setdefault(_peers(record, key), set()).add(str(config.get(key)))
    differing = [
        {key: value for key, value in config.items() if key in keys and len(found[_peers(record, key)]) > 1}
        for record, config in zip(records, configs, strict=True)
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


def _peers(record: dict[str, Any], key: str) -> tuple[Any, ...]:
    """What a run shares with those whose ``key`` is compared with its own."""
    method = record["method"]
    # Rankers have no training and zero-shot has it at its defaults; the control has that of its cells.
    kind = method if record["reference"] and method != "frozen" else None
    section, _, option = key.partition(".")
    owner = None
    if section == "backbone" and option in _QUANTISATION:
        owner = record["width"]
    elif section in PLUGIN_SECTIONS and option != PLUGIN_SECTIONS[section][1]:
        owner = (record["config"].get(section) or {}).get(PLUGIN_SECTIONS[section][1])
    return key, kind, owner


def _leaves(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(prefix, value)]
    return [leaf for key, part in value.items() for leaf in _leaves(part, f"{prefix}.{key}" if prefix else key)]


def _mean(runs: list[_Run]) -> np.ndarray:
    """(U,) over seeds."""
    return np.mean([run.values for run in runs], axis=0)


def _pairs(cell: list[_Run], rows: list[list[_Run]]) -> list[_Pair]:
    """``cell`` less EASE, less its control and less itself at full width: those of them that there are."""
    record = cell[0].record
    reordered = record.get("reordered", {}).get("run_id")
    if (record["reference"] and not reordered) or np.isnan(cell[0].values).all():
        return []
    pairs = []
    for row in rows:
        other = row[0].record
        itself = other["width"] == "none" and other["config"].get("adapter") == record["config"].get("adapter")
        if reordered:  # against what it was made of, and nothing else
            itself = True
            if all(run.record["run_id"] != reordered for run in row):
                continue
        elif row is cell or not (itself or other["method"] in ("ease", "frozen")) or not _belong(other, record):
            continue
        ours, theirs = {run.seed for run in cell}, {run.seed for run in row} - {None}
        common = ours & theirs if theirs else ours
        if common:
            less = "its lists as they were" if reordered else "width none" if itself else row[0].name
            less += "" if common == ours | theirs else f", over {_name_seeds(common)} alone"
            own, others = ([run for run in runs if run.seed in {*common, None}] for runs in (cell, row))
            pair = _Pair(f"{cell[0].name}, width {record['width']}", less, own, others)
            if np.isfinite(pair.values).sum() > 1:  # of one user nothing can be said
                pairs.append(pair)
    return pairs


def _side(name: str, runs: list[_Run]) -> Side:
    """Runs that differ in their seed alone, as one side of a comparison."""
    seeds = tuple(run.seed for run in runs if run.seed is not None)
    record = runs[0].record
    split, candidates = record["data"]["split"]["hash"], record["candidates"]["hash"]
    return Side(name, np.stack([run.values for run in runs]), seeds, split, candidates)


def _belong(reference: dict[str, Any], cell: dict[str, Any]) -> bool:
    """Whether both have the same split and candidates, and what ``reference`` has of a config, but for adapter, width
    and seed."""
    apart = ("seed", "variant", *(f"backbone.{option}" for option in _QUANTISATION))
    ours, theirs = dict(_leaves(cell["config"])), dict(_leaves(reference["config"]))
    same = reference["data"]["split"]["hash"] == cell["data"]["split"]["hash"]
    return (
        same
        and reference["candidates"]["hash"] == cell["candidates"]["hash"]
        and all(
            ours.get(key) == value
            for key, value in theirs.items()
            if key not in apart and not key.startswith(("adapter.", "ranker."))
        )
    )


def _sentences(pairs: list[_Pair], bounds: np.ndarray, monitor: str) -> list[str]:
    """A sentence a pair.

    Args:
        bounds: (pairs, 2) intervals of differences that are of all pairs at once.
    """
    if not pairs:
        return []
    sentences = []
    if _pooled(monitor):
        for pair, (low, high) in zip(pairs, bounds, strict=True):
            ours, theirs = (
                statistics.mean(run.record["test"][monitor] for run in runs) for runs in (pair.ours, pair.theirs)
            )
            sentences.append(f"{_head(pair, monitor, ours - theirs, low, high)}")
        return [
            *sentences,
            "differences are over the same users; their 95% intervals are not corrected for their number",
        ]
    found = compare_all([pair.sides for pair in pairs])
    direction: Direction = "-" if lower_is_better(monitor) else "+"
    for pair, one, p in zip(pairs, found, adjust([one.p for one in found]), strict=True):
        said = verdict(one, p, len(found), direction=direction, digits=4)
        sentences.append(f"{_head(pair, monitor, one.difference, one.low, one.high)}: {said}")
    note = (
        "differences are over the same users, by a randomisation test, corrected over all that stand here (Holm); "
        "their 95% intervals are not corrected"
    )
    if any(len(one.seeds) == 1 for one in found):
        note += "; one seed on either side tells of these trained models, and not of the methods"
    return [*sentences, note]


def _head(pair: _Pair, monitor: str, value: float, low: float, high: float) -> str:
    value, low, high = (round(number, 4) + 0.0 for number in (value, low, high))  # and no -0.0000
    return f"{monitor} of {pair.cell}, less {pair.less}: {value:+.4f} [{low:+.4f}, {high:+.4f}]"


def _line(runs: list[_Run], monitor: str, ends: np.ndarray) -> dict[str, Any]:
    """One run's numbers, or those of runs that differ in their seed alone: means, and of bytes the largest."""
    every = [_numbers(run.record) for run in runs]
    folded = {key: _fold(key, [numbers.get(key) for numbers in every]) for key in every[0]}
    low, high = ends.tolist()
    first = {"method": runs[0].name, "width": runs[0].record["width"], monitor: folded[monitor]}
    return first | {f"{monitor} 95% low": low, f"{monitor} 95% high": high} | folded


def _fold(key: str, values: list[Any]) -> Any:
    if None in values:
        return None
    return max(values) if key.endswith("bytes") else statistics.mean(values)


def _numbers(record: dict[str, Any]) -> dict[str, Any]:
    parts = ("costs", "parameters", "training", "backbone")
    costs, parameters, training, backbone = (record.get(part, {}) for part in parts)
    return {
        **dict(sorted(record["test"].items(), key=_metric_order)),
        "trainable": parameters.get("trainable"),
        "adapter_parameters": parameters.get("adapter"),
        "total_parameters": parameters.get("total"),
        **{key: training.get(key) for key in ("steps", "best_step", "tokens_seen")},
        "linear_bytes": backbone.get("linear_bytes"),
        "backbone_bytes": backbone.get("bytes"),
        **{key: value for key, value in costs.items() if key != "finished"},
    }


def _cut(monitor: str, config: dict[str, Any]) -> str:
    """Where the table's lists are cut, with the stamp of their candidates: ``10``, ``10/uniform100``."""
    found = re.search(r"@(\d+)", monitor)  # of a weighted sum the first
    _, slash, stamp = monitor.partition("/")
    return f"{found[1] if found else max(config['evaluation']['k'])}{slash}{stamp}"


def _metric_order(item: tuple[str, Any]) -> tuple[int, str]:
    name, _, k = item[0].rpartition("@")
    cut = k.partition("/")[0]
    return (int(cut) if cut.isdigit() else 0, name or item[0])


def _notes(done: list[dict[str, Any]], failed: list[dict[str, Any]]) -> list[str]:
    """What a reader must know to read the table."""
    notes = []
    splits = {record["data"]["split"]["hash"] for record in done}
    data = done[0]["data"]
    split = data["split"]
    notes.append(
        f"{data['name']}: {data['users']:,} users, {data['items']:,} items, {data['interactions']:,} interactions; "
        f"{split['kind']}: {split['train']:,} train, {split['validation']:,} validation, {split['test']:,} test; "
        f"split {split['hash']}"
    )
    tests = {record["data"]["split"].get("test_hash", record["data"]["split"]["hash"]) for record in done}
    if len(tests) > 1:
        notes.append(f"NOT COMPARABLE: the runs have {len(splits)} different splits: {', '.join(sorted(splits))}")
    elif len(splits) > 1:
        notes.append(
            f"the runs are tested on the same interactions but learn from {len(splits)} different parts of train"
        )
    for what, values in (
        ("data", {record["data"]["hash"] for record in done}),
        ("versions", {canonical_json(record["versions"]) for record in done}),
        ("devices", {record["device"] for record in done}),
        ("candidate sets", {record["candidates"]["hash"] for record in done}),
        ("evaluations", {canonical_json(record["config"]["evaluation"]) for record in done}),
    ):
        if len(values) > 1:
            notes.append(f"CAREFUL: the runs have {len(values)} different {what}; see their result.json")
    notes += warnings(data)
    # Zero-shot validates once; a cell that was trained says how often.
    texts = sorted((record for record in done if "training" in record), key=lambda record: len(record["trace"]))
    for record in texts[-1:]:
        config = record["config"]
        seeds = sorted({other["config"]["seed"] for other in texts if other["method"] == record["method"]})
        taught = dict.fromkeys(
            f"{_named(other['config']['formulation'])}, {_named(other['config']['loss'])}"
            for other in texts
            if not other["reference"] or other is record
        )
        notes.append(
            f"{'; '.join(taught)}; backbone {config['backbone']['name']} in {record['backbone']['compute_dtype']}, "
            f"{config['threads']} threads, {_name_seeds(seeds)}"
        )
        if record["backbone"].get("dequantised_from"):
            file = record["backbone"]["dequantised_from"].partition(",")[0]
            notes.append(f"the backbone's weights are dequantised from {file}, at width none too")
        cut = _cut(record["monitor"], config).partition("/")[0]
        stamp = record["monitor"].partition("/")[2]
        candidates = config["evaluation"]["candidates"]
        among = (
            "the whole catalogue"
            if candidates["kind"] == "full"
            else f"each one's held-out items alone, {record['test'][f'pairs/{stamp}']:,.0f} pairs liked or not"
            if candidates["kind"] == "rated"
            else f"{candidates['size']} frozen candidates ({stamp}, "
            f"{record['candidates']['hash']}), which is easier than the catalogue and may order models otherwise"
        )
        seen = "seen items masked" if config["evaluation"]["mask_seen"] else "seen items not masked"
        notes.append(
            f"metrics at {cut}; test once, on {record['test']['users']:,.0f} users, over {among}, "
            f"{seen}, from the best of {len(record['trace'])} validations by {config['evaluation']['monitor']} on "
            f"{record['training']['validation_users']:,} users; 95% interval by bootstrap over users"
        )
    notes += _group_sizes(done[0], _cut(done[0]["monitor"], done[0]["config"]))
    notes += [note for record in texts for note in _diagnosed(record)]
    notes += [
        f"failed: {record['run_id']} {record['method']}, width {record['width']}: {record['error']}"
        for record in failed
    ]
    return notes


def _diagnosed(record: dict[str, Any]) -> list[str]:
    """What of a run's diagnostics a reader of the table must know."""
    found, notes = record.get("diagnostics", {}), []
    run = f"{record['run_id']} ({record['method']}, width {record['width']})"
    moved = {cause: found.get(cause, 0.0) for cause in ("batch", "padding", "whole_text")}
    if max(moved.values()) > SCORE_TOLERANCE:
        causes = ", ".join(f"{cause} {value:.1e}" for cause, value in moved.items())
        notes.append(
            f"CAREFUL: scores of {run} move with what they should not: {causes}; their standard deviation is "
            f"{found['standard_deviation']:.2g}"
        )
    lost = record.get("certificate", {}).get("reload", {}).get("largest_difference_in_score_sd") or 0.0
    if lost > SCORE_TOLERANCE:
        notes.append(
            f"CAREFUL: what {run} has saved is not what was tested: loaded again, its scores are up to {lost:.1e} of "
            "their standard deviation off"
        )
    if "order" in found:
        order = found["order"]
        notes.append(
            f"in another order of the letters the best item of {run} changes in {order['best_changes']:.0%} of "
            f"{order['lists']} lists; Kendall's tau {order['kendall_tau']:.2f}"
        )
    return notes


def _named(section: dict[str, Any]) -> str:
    """A formulation or loss with its options: ``bpr (rating_weight False)``, of a weighted sum each part's."""
    if section["name"] == "weighted_sum":
        parts = (f"{part['weight']:g} × {_named(part['loss'])}" for part in section["parts"])
        return f"weighted_sum ({' + '.join(parts)})"
    options = (
        f"{key} {_named(value) if isinstance(value, dict) and 'name' in value else value}"
        for key, value in section.items()
        if key != "name"
    )
    return f"{section['name']} ({', '.join(options)})"


def _name_seeds(seeds: Iterable[Any]) -> str:
    ordered = sorted(seeds)
    return f"seed{'s' if len(ordered) > 1 else ''} {', '.join(map(str, ordered))}"


def _quality(rows: list[list[_Run]], lines: list[dict[str, Any]], monitor: str) -> dict[str, list[str]]:
    """Columns of the table for people: the rows' names and how good they are."""
    k = _cut(monitor, rows[0][0].record["config"])
    names = ["ndcg", "recall", "hit_rate", "mrr", "item_coverage", "gini", "novelty", "ild_jaccard"]
    ends = {f"{name}@{k}": name for name in names}
    for name in rows[0][0].record["config"]["evaluation"].get("metrics", ()):
        ends |= {key: key.partition("@")[0].partition("/")[0] for key in _keys(name, k, lines[0])}
    ends |= {
        key: key.rpartition("@")[0] for key in sorted(lines[0]) if re.fullmatch(rf"ndcg_gap_[^=]*@{re.escape(k)}", key)
    }
    columns = {
        "method": [line["method"] for line in lines],
        "width": [line["width"] for line in lines],
        f"{monitor} [95%]": [_with_interval(line, monitor) for line in lines],
    }
    seeds = [{run.seed for run in row} - {None} for row in rows]
    if any(len(own) > 1 for own in seeds):
        columns["seeds"] = [str(len(own)) if own else "–" for own in seeds]
        columns[_SEEDS] = [_spread([run.record["test"][monitor] for run in row]) for row in rows]
    for key, name in ends.items():
        if key != monitor:
            columns[name] = [
                _number(line.get(key)) + _gap_ends(row, key) for line, row in zip(lines, rows, strict=True)
            ]
    return columns


def _keys(name: str, cut: str, line: dict[str, Any]) -> list[str]:
    """Under which keys a metric stands: at the cut, of each attribute, or of no list at all."""
    stamp = cut.partition("/")[2]
    plain = (f"{name}@{cut}", f"{name}/{stamp}" if stamp else name)
    info = find(name)
    of_groups = info is not None and info.kind in ("user_groups", "item_groups", "scores")
    spread = re.compile(rf"{name}_[^=@]*(@{re.escape(cut)})?")
    return [key for key in line if key in plain or (of_groups and spread.fullmatch(key))]


def _with_interval(line: dict[str, Any], monitor: str) -> str:
    """The monitored value, and its interval where it is a mean over users."""
    low, high = line[f"{monitor} 95% low"], line[f"{monitor} 95% high"]
    value = "–" if line[monitor] is None else f"{line[monitor]:.4f}"
    return value if np.isnan(low) else f"{value} [{low:.3f}, {high:.3f}]"


def _gap_ends(row: list[_Run], key: str) -> str:
    """The interval of a gap, of rows that are one run."""
    found = row[0].record.get("intervals", {}).get(key) if len(row) == 1 else None
    return "" if found is None or found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]"


def _group_sizes(record: dict[str, Any], cut: str) -> list[str]:
    """A sentence for each attribute whose groups are compared."""
    found = record.get("intervals", {})
    sizes = {
        name.rpartition("@")[0].removeprefix("ndcg_gap_"): part["users"]
        for name, part in found.items()
        if name.startswith("ndcg_gap_") and name.endswith(f"@{cut}")
    }
    if not sizes:
        return []
    groups = "; ".join(
        f"{name}: {', '.join(f'{label} {n:,}' for label, n in of.items())}" for name, of in sizes.items()
    )
    least = min((n for of in sizes.values() for n in of.values() if n), default=0)
    few = f"; with {least} users in a group, a gap says little" if least < FEW_USERS else ""
    return [f"test users behind each gap between groups, whose 95% interval is by bootstrap over users: {groups}{few}"]


def _costs(lines: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {header: [_amount(line.get(key), unit) for line in lines] for header, (key, unit) in _COSTS.items()}


def _spread(values: list[float]) -> str:
    return f"{min(values):.4f}–{max(values):.4f}" if len(values) > 1 else "–"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _amount(value: float | None, unit: int) -> str:
    """Whole numbers, but three digits of what is small in its unit."""
    if value is None:
        return "–"
    return f"{value / unit:,.0f}" if unit == 1 or value >= 100 * unit else f"{value / unit:.3g}"


def _print(quality: dict[str, list[str]], costs: dict[str, list[str]], notes: list[str]) -> None:
    """Two tables, quality and cost, since one is wider than most terminals."""
    # A pipe or a log file has no width of its own; nothing may be cut there.
    console = Console(width=None if Console().is_terminal else 250)
    names = {header: quality[header] for header in ("method", "width")}
    printed = {header: cells for header, cells in costs.items() if header not in _NOT_PRINTED}
    for columns in (quality, names | printed):
        table = Table(*[header.replace("_", " ") for header in columns])
        for line in zip(*columns.values(), strict=True):
            table.add_row(*map(Text, line))
        console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False)


def _markdown(columns: dict[str, list[str]], notes: list[str]) -> str:
    def line(values: Iterable[str]) -> str:
        return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"

    table = [line(columns), line(["---"] * len(columns)), *map(line, zip(*columns.values(), strict=True))]
    return "\n".join([*table, "", *[f"- {note}" for note in notes]]) + "\n"


def _csv(lines: list[dict[str, Any]]) -> str:
    """Every number in full, one line a run."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
