"""The record's type and its JSON Schema."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from records import record_of

from experiments.config.grid import load_runs
from experiments.records.layout import SCHEMA, FailedRecord, FinishedRecord, TextRecord, record_schema
from experiments.records.record import CorruptRecord, RunFolder, find_records, read_record, write_record
from experiments.study.serial import record_failure, run_study
from recpeft.errors import RecpeftError

Values = dict[str, Any]


@pytest.fixture(scope="module")
def study(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of a ranker, a text model, its lists reordered, and a run that has failed."""
    out = tmp_path_factory.mktemp("runs")
    shorter = ["references=[popularity]", "training.max_steps=3"]
    reordered = "grid={diversify: [null, {method: mmr, strength: 0.3, depth: 10}]}"
    assert run_study(load_runs(study_file, [*shorter, reordered]), out) == 0
    (failing,) = load_runs(study_file, ["training.learning_rate=1.0"])
    record_failure(failing, out, ArithmeticError("the loss is not a number"))
    return out / "tiny"


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    validator = Draft202012Validator(record_schema())
    validator.check_schema(validator.schema)
    return validator


def test_every_record_of_a_study_has_its_type_and_fits_the_schema(study: Path, validator: Draft202012Validator) -> None:
    found = [(record, json.loads(folder.record.read_text())) for folder, record in find_records(study)]
    kinds = sorted(type(record).__name__ for record, _ in found)
    assert kinds == ["FailedRecord", "FinishedRecord", "TextRecord", "TextRecord"]
    for record, values in found:
        assert record.json_values == values
        assert list(validator.iter_errors(values)) == []
    texts = [record for record, _ in found if isinstance(record, TextRecord)]
    (reordered,) = [record for record in texts if record.reordered is not None]
    (trained,) = [record for record in texts if record.reordered is None]
    assert reordered.reordered is not None
    assert reordered.reordered.run_id == trained.run_id
    assert trained.training.steps == 3
    assert trained.costs.wall_seconds is not None
    assert reordered.costs.reorder_seconds is not None
    (failed,) = [record for record, _ in found if isinstance(record, FailedRecord)]
    assert failed.error == "ArithmeticError: the loss is not a number"


DAMAGES: dict[str, tuple[list[str | int], Any]] = {
    "no test": (["test"], None),
    "no test values but text": (["test"], {"ndcg@5": "good", "users": 4}),
    "no config": (["config"], None),
    "no evaluation": (["config", "evaluation"], None),
    "threads are text": (["config", "threads"], "two"),
    "no seed": (["config", "seed"], None),
    "no hash of the data": (["data", "hash"], None),
    "the split's hash is a number": (["data", "split", "hash"], 3),
    "a trace of numbers": (["trace"], [1]),
    "a cost is text": (["costs", "train_seconds"], "long"),
    "a cost that later versions may add is text": (["costs", "energy_joules"], "much"),
    "no compute_dtype": (["backbone", "compute_dtype"], None),
    "no validation_users": (["training", "validation_users"], None),
    "a run_id that leaves the folder": (["run_id"], "../elsewhere"),
    "a change of scores is text": (["certificate"], {"invariance": {"padding_largest_change_in_score_sd": "much"}}),
    "another status": (["status"], "fine"),
    "no version": (["schema"], "two"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_neither_fits_the_schema_nor_is_read(
    damage: str, study_file: Path, tmp_path: Path, validator: Draft202012Validator
) -> None:
    values: Values = record_of(load_runs(study_file)[0])
    assert validator.is_valid(values)
    write_record(RunFolder(tmp_path), values)
    assert isinstance(read_record(RunFolder(tmp_path)), FinishedRecord)
    (*places, last), value = DAMAGES[damage]
    damaged = copy.deepcopy(values)
    part = damaged
    for place in places:
        part = part[place]
    part[last] = value
    if value is None:
        del part[last]
    assert not validator.is_valid(damaged)
    write_record(RunFolder(tmp_path), damaged)
    with pytest.raises(CorruptRecord, match="is no record of a run"):
        read_record(RunFolder(tmp_path))


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (SCHEMA + 1, "newer than schema 2, which this recpeft .* reads; use the version that wrote it or a later one"),
        (
            SCHEMA - 1,
            "older than schema 2, which this recpeft .* reads; use the version that wrote it, or move it away",
        ),
    ],
)
def test_newer_and_older_records_are_told_apart(schema: int, said: str, study_file: Path, tmp_path: Path) -> None:
    write_record(RunFolder(tmp_path), record_of(load_runs(study_file)[0], schema=schema))
    with pytest.raises(RecpeftError, match=rf"is of schema {schema} \(recpeft .*\), {said}"):
        read_record(RunFolder(tmp_path))


def test_a_run_whose_scores_could_not_be_measured_again_has_a_record(
    study_file: Path, tmp_path: Path, validator: Draft202012Validator
) -> None:
    error = {"error": "OutOfMemoryError: no memory is left"}
    certificate = {"hashes": {}, "invariance": error, "reload": error}
    values = record_of(load_runs(study_file)[0], diagnostics=error, certificate=certificate)
    assert validator.is_valid(values)
    write_record(RunFolder(tmp_path), values)
    record = read_record(RunFolder(tmp_path))
    assert isinstance(record, TextRecord)
    assert record.certificate is not None
    assert record.certificate.reload.error == error["error"]
