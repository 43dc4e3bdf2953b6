"""Load results as a data frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from experiments.records.layout import FinishedRecord
from experiments.records.record import find_records
from experiments.reporting._runs import leaves
from experiments.reporting._table import numbers
from experiments.study.plan import order
from recpeft.errors import RecpeftError

_SHOWN_ANYWAY = {"seed", "adapter.method", "ranker.name", "backbone.width"}


def load_results(*directories: Path | str, columns: Sequence[str] = ()) -> pl.DataFrame:
    """Return one row per finished run below ``directories``, in the experiment file's order; failed runs have none.

    Columns:
        - ``run_id``, ``method``, ``width``, ``reference``, ``seed`` (null for a ranker);
        - each config key whose value differs between runs that are no references, dotted, such as ``adapter.rank``;
          null for runs without it. Lists are text: ``query, value``;
        - each test metric, such as ``ndcg@10``; null if undefined;
        - sizes and costs, such as ``trainable``, ``adapter_bytes``, ``train_seconds``, ``peak_memory_bytes``.

    Args:
        columns: columns to include in any case, also config keys that do not differ; null if no run has one.
    Raises:
        RecpeftError: a folder has no records, a record has another schema, or no run is finished.
    """
    found = {folder.path.resolve(): record for path in directories for folder, record in find_records(Path(path))}
    records = [record for record in found.values() if isinstance(record, FinishedRecord)]
    if not records:
        raise RecpeftError(
            f"{', '.join(map(str, directories))}: no run is finished, {len(found)} failed; recpeft report says why."
        )
    configs = [dict(leaves(record.config.json_values)) for record in records]
    keys = _differing(
        [config for config, record in zip(configs, records, strict=True) if not record.reference] or configs
    )
    shown = [*keys, *(key for key in columns if key not in keys and any(key in config for config in configs))]
    rows = [
        {
            **{key: getattr(record, key) for key in ("run_id", "method", "width", "reference")},
            "seed": config.get("seed"),
            **{key: config.get(key) for key in shown},
        }
        for record, config in zip(records, configs, strict=True)
    ]
    for key in shown:
        _give_one_type(rows, key)
    frame = pl.DataFrame(
        [row | numbers(record) for row, record in zip(rows, records, strict=True)], infer_schema_length=None
    )
    absent = [pl.lit(None).alias(key) for key in columns if key not in frame.columns]
    places = _places({path.parent for path in found})
    # The second sort is stable, so that runs that no plan names keep the first sort's order.
    return (
        frame.with_columns(absent)
        .sort(~pl.col("reference"), "method", *map(pl.col, keys), "width", "seed")
        .sort(pl.col("run_id").replace_strict(places, default=len(places), return_dtype=pl.Int64), maintain_order=True)
    )


def _places(studies: set[Path]) -> dict[str, int]:
    """Map each run's id to its place in the file that its study was started from."""
    run_ids = [run_id for study in sorted(studies) for run_id in order(study)]
    return {run_id: place for place, run_id in enumerate(run_ids)}


def _differing(configs: list[dict[str, Any]]) -> list[str]:
    """Return the keys under which ``configs`` have more than one value, in the file's order."""
    every = dict.fromkeys(key for config in configs for key in config if key not in _SHOWN_ANYWAY)
    return [key for key in every if len({str(config.get(key)) for config in configs}) > 1]


def _give_one_type(rows: list[dict[str, Any]], key: str) -> None:
    """Convert a column's lists to text, and all its values if their types differ."""
    for row in rows:
        if isinstance(row[key], list):
            row[key] = ", ".join(map(str, row[key]))
    if len({type(row[key]) for row in rows if row[key] is not None}) > 1:
        for row in rows:
            row[key] = None if row[key] is None else str(row[key])
