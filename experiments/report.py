"""A study's table, from its records alone."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.results import RunFolder, find_records
from recpeft.config import canonical_json
from recpeft.errors import RecpeftError
from recpeft.files import write_text

RESAMPLES = 10_000
"""Of the bootstrap over users."""


def write_report(directory: Path) -> None:
    """Print the table of the study in ``directory`` and write ``report.md`` and ``report.csv`` into it.

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
    monitors = sorted({record["config"]["evaluation"]["monitor"] for _, record in done})
    if len(monitors) > 1:
        raise RecpeftError(
            f"{directory} holds runs with different evaluation.monitor: {', '.join(monitors)}; give each a study of "
            "its own."
        )
    done.sort(key=_order)
    varying = _varying([record for _, record in done])
    rows = [_row(folder, record, varying) for folder, record in done]
    notes = [*_notes([record for _, record in done], failed), *_differences(done, rows)]
    _print(rows, notes)
    write_text(directory / "report.md", _markdown(rows, notes))
    write_text(directory / "report.csv", _csv(rows))
    print(f"Written: {directory / 'report.md'}, {directory / 'report.csv'}")


def interval(values: np.ndarray, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over users (Efron 1979); NaN users are left out.

    Args:
        values: (U,) one value a user.
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    draw = np.random.default_rng(seed)
    means = np.concatenate(
        [values[draw.integers(0, len(values), (500, len(values)))].mean(axis=1) for _ in range(RESAMPLES // 500)]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _differences(done: list[tuple[RunFolder, dict[str, Any]]], rows: list[dict[str, Any]]) -> list[str]:
    """Each cell less EASE and less the control, over the same users: a sentence each."""
    if len({record["data"]["split"]["hash"] for _, record in done}) > 1:
        return []
    monitor = done[0][1]["config"]["evaluation"]["monitor"]
    values = [
        pl.read_parquet(folder.per_user, columns=["raw_id", monitor]).sort("raw_id")[monitor].to_numpy()
        for folder, _ in done
    ]
    sentences = []
    for cell, (_, record) in enumerate(done):
        for other, (_, reference) in enumerate(done):
            if record["reference"] or reference["method"] not in ("ease", "frozen"):
                continue
            difference = values[cell] - values[other]
            low, high = interval(difference)
            names = [f"{rows[n]['method']}, width {rows[n]['width']}" for n in (cell, other)]
            sentences.append(
                f"{monitor} of {names[0]}, less {names[1].removesuffix(', width –')}: "
                f"{np.nanmean(difference):+.4f} [{low:+.4f}, {high:+.4f}] over the same users"
            )
    return [*sentences, "these intervals are not corrected for their number"] if sentences else []


def _order(pair: tuple[RunFolder, dict[str, Any]]) -> tuple[Any, ...]:
    """References first, weakest kind to strongest; then cells by method and width."""
    record = pair[1]
    known = ["popularity", "ease", "zero_shot", "frozen"]
    widths = ["none", "int8", "nf4"]
    method, width = record["method"], record["width"]
    return (
        not record["reference"],
        known.index(method) if method in known else len(known),
        method,
        widths.index(width) if width in widths else -1,
        record["run_id"],
    )


def _row(folder: RunFolder, record: dict[str, Any], varying: list[str]) -> dict[str, Any]:
    evaluation = record["config"]["evaluation"]
    monitor, test = evaluation["monitor"], record["test"]
    k = monitor.rpartition("@")[2]
    low, high = interval(pl.read_parquet(folder.per_user)[monitor].to_numpy())
    row: dict[str, Any] = {
        "run_id": record["run_id"],
        "method": _name(record) + _suffix(record, varying),
        "width": record["width"],
        monitor: test[monitor],
        f"{monitor} 95% low": low,
        f"{monitor} 95% high": high,
    }
    row |= {name: value for name, value in sorted(test.items(), key=_metric_order) if name != monitor}
    row |= {
        "monitor_k": k,
        "trainable": record.get("parameters", {}).get("trainable"),
        "steps": record.get("training", {}).get("steps"),
        "best_step": record.get("training", {}).get("best_step"),
        "tokens_seen": record.get("training", {}).get("tokens_seen"),
        "linear_bytes": record.get("backbone", {}).get("linear_bytes"),
        "train_seconds": record["costs"].get("train_seconds"),
        "wall_seconds": record["costs"]["wall_seconds"],
        "peak_memory_bytes": record["costs"]["peak_memory_bytes"],
    }
    return row


def _name(record: dict[str, Any]) -> str:
    if record["method"] == "frozen":
        return "control (frozen)"
    chosen = record.get("chosen", {})
    return f"{record['method']} (λ={chosen['l2']:g})" if "l2" in chosen else str(record["method"])


def _metric_order(item: tuple[str, Any]) -> tuple[int, str]:
    name, _, k = item[0].rpartition("@")
    return (int(k) if k.isdigit() else 0, name or item[0])


def _varying(records: list[dict[str, Any]]) -> list[str]:
    """Dotted keys, method and width aside, in which runs of one method differ."""
    known: dict[str, dict[str, set[str]]] = {}
    for record in records:
        for key, value in _leaves(record["config"]):
            known.setdefault(record["method"], {}).setdefault(key, set()).add(str(value))
    varying = {key for keys in known.values() for key, values in keys.items() if len(values) > 1}
    return sorted(varying - {"backbone.width"})


def _suffix(record: dict[str, Any], varying: list[str]) -> str:
    values = dict(_leaves(record["config"]))
    own = [f"{key.rpartition('.')[2]}={values[key]}" for key in varying if key in values]
    return f" [{', '.join(own)}]" if own and "adapter" in record["config"] else ""


def _leaves(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(prefix, value)]
    return [leaf for key, part in value.items() for leaf in _leaves(part, f"{prefix}.{key}" if prefix else key)]


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
    if len(splits) > 1:
        notes.append(f"NOT COMPARABLE: the runs have {len(splits)} different splits: {', '.join(sorted(splits))}")
    for what, values in (
        ("data", {record["data"]["hash"] for record in done}),
        ("versions", {canonical_json(record["versions"]) for record in done}),
        ("devices", {record["device"] for record in done}),
        ("evaluations", {canonical_json(record["config"]["evaluation"]) for record in done}),
    ):
        if len(values) > 1:
            notes.append(f"CAREFUL: the runs have {len(values)} different {what}; see their result.json")
    ahead = split["audit"]["test_rows_before_train_end"]
    if ahead:
        notes.append(
            f"the split lets the future of other users in: {ahead:,} of {split['test']:,} test rows are older than the "
            "last train row; split: global_temporal is free of that"
        )
    # Zero-shot validates once; a cell that was trained says how often.
    texts = sorted((record for record in done if "training" in record), key=lambda record: len(record["trace"]))
    for record in texts[-1:]:
        config = record["config"]
        formulation, loss = config["formulation"], config["loss"]
        options = ", ".join(f"{key} {value}" for key, value in formulation.items() if key != "name")
        loss_options = ", ".join(f"{key} {value}" for key, value in loss.items() if key != "name")
        notes.append(
            f"{formulation['name']} ({options}), {loss['name']} ({loss_options}), backbone "
            f"{config['backbone']['name']} in {record['backbone']['compute_dtype']}, seed {config['seed']}, "
            f"{config['threads']} threads"
        )
        cut = config["evaluation"]["monitor"].rpartition("@")[2]
        seen = "seen items masked" if config["evaluation"]["mask_seen"] else "seen items not masked"
        notes.append(
            f"metrics at {cut}; test once, on {record['test']['users']:,.0f} users, over the whole catalogue, "
            f"{seen}, from the best of {len(record['trace'])} validations by {config['evaluation']['monitor']} on "
            f"{record['training']['validation_users']:,} users; 95% interval by bootstrap over users"
        )
    notes += [
        f"failed: {record['run_id']} {record['method']}, width {record['width']}: {record['error']}"
        for record in failed
    ]
    return notes


def _shown(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]], int]:
    """Header and cells of the table for people, costs in readable units; the third is where costs begin."""
    k = rows[0]["monitor_k"]
    monitor = next(key for key in rows[0] if key.endswith(" 95% low")).removesuffix(" 95% low")
    names = ["ndcg", "recall", "hit_rate", "mrr", "item_coverage", "gini", "novelty", "ild_jaccard"]
    gaps = sorted(
        name.rpartition("@")[0] for name in rows[0] if name.startswith("ndcg_gap_") and name.endswith(f"@{k}")
    )
    names = [name for name in [*names, *gaps] if f"{name}@{k}" != monitor]
    header = ["method", "width", f"{monitor} [95%]", *names]
    costs = ["trainable", "steps", "best step", "tokens", "train s", "total s", "peak MB"]
    cells = []
    for row in rows:
        line = [row["method"], row["width"]]
        line.append(f"{row[monitor]:.4f} [{row[f'{monitor} 95% low']:.3f}, {row[f'{monitor} 95% high']:.3f}]")
        line += [_number(row.get(f"{name}@{k}")) for name in names]
        line += [_count(row[key]) for key in ("trainable", "steps", "best_step", "tokens_seen")]
        line += [_count(row["train_seconds"]), _count(row["wall_seconds"]), _count(row["peak_memory_bytes"] / 2**20)]
        cells.append(line)
    return [*header, *costs], cells, len(header)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _print(rows: list[dict[str, Any]], notes: list[str]) -> None:
    """Two tables, quality and cost, since one is wider than most terminals."""
    header, cells, first_cost = _shown(rows)
    # A pipe or a log file has no width of its own; nothing may be cut there.
    console = Console(width=None if Console().is_terminal else 250)
    for columns in (range(first_cost), [0, 1, *range(first_cost, len(header))]):
        table = Table(*[header[column].replace("_", " ") for column in columns])
        for line in cells:
            table.add_row(*[Text(line[column]) for column in columns])
        console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False)


def _markdown(rows: list[dict[str, Any]], notes: list[str]) -> str:
    header, cells, _ = _shown(rows)

    def line(values: list[str]) -> str:
        return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"

    table = [line(header), line(["---"] * len(header)), *[line(values) for values in cells]]
    return "\n".join([*table, "", *[f"- {note}" for note in notes]]) + "\n"


def _csv(rows: list[dict[str, Any]]) -> str:
    """Every number in full, one row a run."""
    names = list(dict.fromkeys(key for row in rows for key in row if key != "monitor_k"))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
