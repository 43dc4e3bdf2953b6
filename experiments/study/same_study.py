"""Check that new runs may join a study's finished ones, before hours are spent on runs that no table can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.config.evaluation import EvaluationConfig
from experiments.config.run import RunConfig
from experiments.records.layout import FinishedRecord
from experiments.records.record import CorruptRecord, RunFolder, read_record
from experiments.records.versions import versions
from recpeft import trust
from recpeft.errors import RecpeftError, shown
from recpeft.validation import build_plugin, validate

REMEDY = "give the file another study, choose another folder by --out, or move the old runs away"


def check_same_study(configs: Sequence[RunConfig], out: Path, mixed_versions: bool = False) -> None:
    """Refuse a folder whose finished runs have other data, another evaluation, or other versions of libraries.

    Args:
        configs: all runs of a file.
        mixed_versions: allow different versions; the records tell them apart.
    Raises:
        RecpeftError: a run differs; the message names its folder, the keys and both values.
    """
    for study in sorted({config.study for config in configs}):
        ours = [{"data": config.data.asked_for(), "evaluation": config.evaluation.asked_for()} for config in configs]
        run_ids = {config.run_id for config in configs}
        for path in sorted((out / study).glob("*/result.json")):
            try:
                record = read_record(RunFolder(path.parent))
            except CorruptRecord:
                continue  # named when its run is reached, or when a table is made
            if not isinstance(record, FinishedRecord):
                continue
            if path.parent.name not in run_ids:
                theirs = _data_and_evaluation(record.config.json_values, path.parent)
                nearest = min((differences(theirs, own) for own in ours), key=len)
                if nearest:
                    raise RecpeftError(f"{path.parent} was made from another config: {_listed(nearest)}; {REMEDY}.")
            made_by = record.versions
            found = {} if mixed_versions else differences(made_by, versions())
            if found:
                raise RecpeftError(
                    f"{path.parent} was made by other versions: {_listed(found)}; {REMEDY}, or go on with "
                    "--mixed-versions."
                )


def _data_and_evaluation(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a record's data and evaluation as ``asked_for``, or unchanged if this version rejects them."""
    try:
        with trust.data_alone(folder):
            data = build_plugin("datamodules", "source", config["data"], "data")
            evaluation = validate(EvaluationConfig, config["evaluation"])
    except RecpeftError:
        return {name: config[name] for name in ("data", "evaluation")}
    return {"data": data.asked_for(), "evaluation": evaluation.asked_for()}


def differences(old: Any, new: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys of differing leaves, each with its old and new value; None for an absent one."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: dict[str, tuple[Any, Any]] = {}
        for name in dict.fromkeys((*old, *new)):
            found |= differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
        return found
    return {} if old == new else {key: (old, new)}


def _listed(found: Mapping[str, tuple[Any, Any]]) -> str:
    parts = [f"{key} was {shown(old)} and is {shown(new)}" for key, (old, new) in found.items()]
    more = f", and {len(parts) - 4} more" if len(parts) > 4 else ""
    return ", ".join(parts[:4]) + more
