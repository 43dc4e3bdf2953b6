"""What of a record its readers rely on: one that lacks it, or has something else in its place, is no record.

Keys that are not named here may be there, and hold what they like. Parts with a default came with later versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from experiments.config.run import PLUGIN_SECTIONS
from recpeft.errors import cut, shortened, shown


def _fits_a_table(value: Any) -> Any:
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise ValueError("a whole number of more than 64 bits")
    return value


Whole = Annotated[int, BeforeValidator(_fits_a_table)]
Number = Annotated[float, BeforeValidator(_fits_a_table)]
Value = Number | None
"""None where there is nothing to measure."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
"""Of a folder beside others."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _Candidates(_Part):
    kind: str
    size: Whole


class _Evaluation(_Part):
    monitor: str
    mask_seen: bool
    candidates: _Candidates
    metrics: list[str] = []
    k: list[Whole] = Field(default=[0], min_length=1)


class _Distributed(_Part):
    devices: Whole
    num_nodes: Whole


class _Config(_Part):
    """A run's config as it was asked for; ``build_run`` alone knows what this version takes."""

    study: str = ""
    threads: Whole
    seed: Whole | None = None
    evaluation: _Evaluation
    distributed: _Distributed | None = None

    @model_validator(mode="after")
    def _sections_are_mappings(self) -> _Config:
        extra = self.model_extra or {}
        for section in (*PLUGIN_SECTIONS, "prompt", "backbone", "training"):
            found = extra.get(section)
            name = PLUGIN_SECTIONS.get(section, ("", ""))[1]
            if found is not None and not isinstance(found, dict):
                raise ValueError(f"{section} is no mapping")
            if found and not isinstance(found.get(name, ""), str):
                raise ValueError(f"{section}.{name} is no text")
        return self


class _Named(_Part):
    name: str


class _Term(_Part):
    weight: Number
    loss: _Loss


class _Loss(_Named):
    parts: list[_Term] = []

    @model_validator(mode="after")
    def _a_sum_has_parts(self) -> _Loss:
        if self.name == "weighted_sum" and not self.parts:
            raise ValueError("parts are missing")
        return self


class _TextConfig(_Config):
    seed: Whole
    backbone: _Named
    formulation: _Named
    loss: _Loss


class _Audit(_Part):
    test_rows_before_train_end: Whole
    users_out_of_order: Whole
    duplicates_across_splits: Whole


class _Split(_Part):
    kind: str
    train: Whole
    validation: Whole
    test: Whole
    hash: str
    test_hash: str | None = None
    audit: _Audit


class _Data(_Part):
    name: str
    users: Whole
    items: Whole
    interactions: Whole
    hash: str
    split: _Split


class _Hash(_Part):
    hash: str | None = None


class _Backbone(_Part):
    compute_dtype: str
    identity: str | None = None
    dequantised_from: str | None = None
    bytes: Value = None
    linear_bytes: Value = None


class _Epoch(_Part):
    step: Whole
    train_loss: Value = None
    validation: dict[str, Value]


class _Interval(_Part):
    low: Value
    high: Value


class _Training(_Part):
    steps: Value = None
    best_step: Value = None
    tokens_seen: Value = None


class _OfText(_Training):
    validation_users: Whole


class _Order(_Part):
    best_changes: Number
    lists: Whole
    kendall_tau: Number


class _Diagnostics(_Part):
    batch: Number = 0.0
    padding: Number = 0.0
    whole_text: Number = 0.0
    standard_deviation: Number = 0.0
    order: _Order | None = None


class _Certificate(_Part):
    hashes: dict[str, Any] = {}
    invariance: dict[str, Value] = {}
    reload: dict[str, Value] = {}


class _Reordered(_Part):
    run_id: Name


class _Failed(_Part):
    run_id: Name
    method: str
    width: str
    config: dict[str, Any]
    error: str


class _Done(_Part):
    run_id: Name
    method: str
    width: str
    reference: bool
    config: _Config
    monitor: str
    data: _Data
    candidates: _Hash
    versions: dict[str, str]
    device: str
    trace: list[_Epoch]
    test: dict[str, Value]
    costs: dict[str, Value | str]
    intervals: dict[str, _Interval] = {}
    chosen: dict[str, Value] = {}
    prompt: _Hash | None = None
    backbone: _Backbone | None = None
    parameters: dict[str, Value] = {}
    training: _Training | None = None
    diagnostics: _Diagnostics = _Diagnostics()
    certificate: _Certificate | None = None
    reordered: _Reordered | None = None

    @model_validator(mode="after")
    def _parts_go_together(self) -> _Done:
        if self.monitor not in self.test:
            raise ValueError(f"test has no {shown(self.monitor)}, which is the monitor")
        for name, value in self.costs.items():
            if name != "finished" and isinstance(value, str):
                raise ValueError(f"costs.{name} is no number")
        for name, interval in self.intervals.items():
            if name.startswith("ndcg_gap_"):
                _Gap.model_validate(interval.model_dump())
        return self


class _Gap(_Interval):
    users: dict[str, Whole]


class _Text(_Done):
    """A run with a text model, which is told of in the report's notes."""

    config: _TextConfig
    backbone: _Backbone
    training: _OfText

    @model_validator(mode="after")
    def _the_notes_have_their_numbers(self) -> _Text:
        of_pairs = self.config.evaluation.candidates.kind == "rated"
        stamp = self.monitor.partition("/")[2]
        for name in ("users", *([f"pairs/{stamp}"] if of_pairs else [])):
            if self.test.get(name) is None:
                raise ValueError(f"test has no {name}")
        return self


def refusal(record: Mapping[str, Any]) -> str | None:
    """What is wrong with a record of this version's schema, as a clause; None where nothing is."""
    layout: type[_Part] = _Failed
    if record["status"] == "done":
        config = record.get("config")
        of_text = "training" in record and isinstance(config, dict) and "backbone" in config
        layout = _Text if of_text else _Done
    try:
        layout.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        return shortened(f"{cut(where)}: {message}" if where else message, first["input"])
    return None
