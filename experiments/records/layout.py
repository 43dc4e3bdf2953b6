"""Types of the record in ``result.json``, on which readers rely and which ``recpeft schema record`` prints.

A file is invalid if a part without a default is missing or has another type. Parts that are not listed here are
allowed. Parts with a default were added by later versions, or exist only for some kinds of runs.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import models_json_schema

from experiments.config.run import PLUGIN_SECTIONS
from recpeft.errors import cut, shortened, shown

SCHEMA: Literal[2] = 2
"""Version of the record's layout."""


def _fits_a_table(value: Any) -> Any:
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise ValueError("a whole number of more than 64 bits")
    return value


Whole = Annotated[int, BeforeValidator(_fits_a_table)]
Number = Annotated[int | float, BeforeValidator(_fits_a_table)]
Value = Number | None
"""Number, or None if there is nothing to measure."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
"""Name of a sibling folder."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    _json: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _keep_json(cls, value: Any, handler: ModelWrapValidatorHandler[_Part]) -> _Part:
        part = handler(value)
        if isinstance(value, dict):
            part._json = value
        return part

    @property
    def json_values(self) -> dict[str, Any]:
        """Return the part as the file has it, including unlisted keys; integers stay integers."""
        return self._json


class CandidatesPart(_Part):
    kind: str
    size: Whole


class EvaluationPart(_Part):
    monitor: str
    mask_seen: bool
    candidates: CandidatesPart
    metrics: list[str] = []
    k: list[Whole] = Field(default=[0], min_length=1)


class DistributedPart(_Part):
    devices: Whole
    num_nodes: Whole


class RecordedConfig(_Part):
    """A run's config as requested; only ``build_run`` checks whether this version accepts it."""

    study: str = ""
    threads: Whole
    seed: Whole | None = None
    """Seed; None for a reference that draws nothing."""
    evaluation: EvaluationPart
    distributed: DistributedPart | None = None

    @model_validator(mode="after")
    def _sections_are_mappings(self) -> RecordedConfig:
        extra = self.model_extra or {}
        for section in (*PLUGIN_SECTIONS, "prompt", "backbone", "training"):
            found = extra.get(section)
            name = PLUGIN_SECTIONS.get(section, ("", ""))[1]
            if found is not None and not isinstance(found, dict):
                raise ValueError(f"{section} is no mapping")
            if found and not isinstance(found.get(name, ""), str):
                raise ValueError(f"{section}.{name} is no text")
        return self


class NamedPart(_Part):
    name: str


class TermPart(_Part):
    weight: Number
    loss: LossPart


class LossPart(NamedPart):
    parts: list[TermPart] = []

    @model_validator(mode="after")
    def _a_sum_has_parts(self) -> LossPart:
        if self.name == "weighted_sum" and not self.parts:
            raise ValueError("parts are missing")
        return self


class TextConfig(RecordedConfig):
    """The config of a run with a text model."""

    seed: Whole
    backbone: NamedPart
    formulation: NamedPart
    loss: LossPart


class AuditPart(_Part):
    """Counts that would reveal a leak."""

    test_rows_before_train_end: Whole
    users_out_of_order: Whole
    duplicates_across_splits: Whole


class SplitPart(_Part):
    """Numbers of interactions in each part, and hashes of all parts and of test alone."""

    kind: str
    train: Whole
    validation: Whole
    test: Whole
    hash: str
    test_hash: str | None = None
    audit: AuditPart


class DataPart(_Part):
    """Data set and split."""

    name: str
    users: Whole
    items: Whole
    interactions: Whole
    hash: str
    split: SplitPart


class HashedPart(_Part):
    hash: str | None = None


class BackbonePart(_Part):
    compute_dtype: str
    identity: str | None = None
    """Hash of its files."""
    dequantised_from: str | None = None
    bytes: Value = None
    """Size in memory."""
    linear_bytes: Value = None
    """Size of its linear layers, which the width quantises."""


class EpochPart(_Part):
    """Values measured at a validation."""

    step: Whole
    train_loss: Value = None
    validation: dict[str, Value]


class IntervalPart(_Part):
    """95% bootstrap interval of a test value over users."""

    low: Value
    high: Value


class GapPart(IntervalPart):
    """Interval of a gap between groups of users, with each group's number of users."""

    users: dict[str, Whole]


class ParametersPart(_Part):
    """Numbers of parameters; a quantised weight counts its dequantised number of elements."""

    adapter: Value = None
    head: Value = None
    trainable: Value = None
    total: Value = None


class TrainingPart(_Part):
    steps: Value = None
    best_step: Value = None
    tokens_seen: Value = None


class TextTrainingPart(TrainingPart):
    validation_users: Whole


class OrderPart(_Part):
    """Change of a list when its candidates are read in another order."""

    best_changes: Number
    lists: Whole
    kendall_tau: Number


class DiagnosticsPart(_Part):
    """Largest change of a score under changes that must not affect it."""

    error: str | None = None
    """Reason why it could not be measured."""
    batch: Number = 0.0
    padding: Number = 0.0
    whole_text: Number = 0.0
    standard_deviation: Number = 0.0
    order: OrderPart | None = None


class CostsPart(_Part):
    """Times in seconds, sizes in bytes, and the time at which the run ended."""

    __pydantic_extra__: dict[str, Value]

    finished: str | None = None
    """Time at which the run ended, in UTC, such as 2026-01-31T12:00:00Z."""
    wall_seconds: Value = None
    train_seconds: Value = None
    test_seconds: Value = None
    reorder_seconds: Value = None
    head_seconds: Value = None
    """Training time of the head phase, which cells share."""
    certificate_seconds: Value = None
    train_tokens_per_second: Value = None
    test_tokens_per_second: Value = None
    steps_run: Value = None
    adapter_bytes: Value = None
    optimizer_bytes: Value = None
    peak_memory_bytes: Value = None
    """Peak memory of the process, or of the GPU if there is one."""
    added_memory_bytes: Value = None


class ReloadPart(_Part):
    """Change of scores after reloading the model."""

    error: str | None = None
    """Reason why it could not be measured."""
    largest_difference_in_score_sd: Value = None


class InvariancePart(_Part):
    """Largest change of a score under changes that must not affect it, in standard deviations of the scores."""

    error: str | None = None
    """Reason why it could not be measured."""
    users: Value = None
    padding_largest_change_in_score_sd: Value = None
    batch_size_largest_change_in_score_sd: Value = None
    whole_text_largest_change_in_score_sd: Value = None


class CertificatePart(_Part):
    """Evidence for the numbers, which ``recpeft certify`` checks (docs/certificate.md)."""

    hashes: dict[str, Any] = {}
    invariance: InvariancePart = InvariancePart()
    reload: ReloadPart = ReloadPart()


class ReorderedPart(_Part):
    run_id: Name
    """Id of the run whose lists were reordered."""


class _Record(_Part):
    schema_version: Literal[2] = Field(alias="schema")
    """Version of the record's layout."""
    run_id: Name
    method: str
    width: str


class FailedRecord(_Record):
    """Record of a run that an error ended."""

    status: Literal["failed"]
    config: dict[str, Any]
    left_out: bool = False
    """Whether the machine cannot hold the run, so that the study is complete without it."""
    error: str


class FinishedRecord(_Record):
    """Record of a tested run, or of judged lists."""

    status: Literal["done"]
    reference: bool
    """Whether other runs are compared with it."""
    config: RecordedConfig
    monitor: str
    """Metric that selected the best epoch, with its candidates' stamp."""
    data: DataPart
    candidates: HashedPart
    versions: dict[str, str]
    device: str
    trace: list[EpochPart]
    test: dict[str, Value]
    """Test metrics -> their values."""
    costs: CostsPart
    intervals: dict[str, IntervalPart] = {}
    chosen: dict[str, Value] = {}
    """Hyper-parameters that validation selected, such as EASE's l2."""
    prompt: HashedPart | None = None
    backbone: BackbonePart | None = None
    parameters: ParametersPart = ParametersPart()
    training: TrainingPart | None = None
    diagnostics: DiagnosticsPart = DiagnosticsPart()
    certificate: CertificatePart | None = None
    reordered: ReorderedPart | None = None

    @model_validator(mode="after")
    def _parts_go_together(self) -> FinishedRecord:
        if self.monitor not in self.test:
            raise ValueError(f"test has no {shown(self.monitor)}, which is the monitor")
        for name, interval in self.intervals.items():
            if name.startswith("ndcg_gap_"):
                GapPart.model_validate(interval.json_values)
        return self


class TextRecord(FinishedRecord):
    """Record of a run with a text model, or of its reordered lists."""

    config: TextConfig
    backbone: BackbonePart
    training: TextTrainingPart

    @model_validator(mode="after")
    def _the_notes_have_their_numbers(self) -> TextRecord:
        of_pairs = self.config.evaluation.candidates.kind == "rated"
        stamp = self.monitor.partition("/")[2]
        for name in ("users", *([f"pairs/{stamp}"] if of_pairs else [])):
            if self.test.get(name) is None:
                raise ValueError(f"test has no {name}")
        return self


Record = FinishedRecord | FailedRecord


def parse(values: dict[str, Any]) -> Record:
    """Parse ``values`` into a record of this version's schema.

    Raises:
        ValueError: they are no record; the message is a clause that says why.
    """
    layout: type[Record] = FailedRecord
    if values["status"] == "done":
        config = values.get("config")
        of_text = "training" in values and isinstance(config, dict) and "backbone" in config
        layout = TextRecord if of_text else FinishedRecord
    try:
        return layout.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(shortened(f"{cut(where)}: {message}" if where else message, first["input"])) from None


def record_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of ``result.json``.

    Reading a record, not the schema, checks whether its numbers are consistent.
    """
    kinds = (FailedRecord, TextRecord, FinishedRecord)
    references, whole = models_json_schema([(kind, "validation") for kind in kinds])
    failed, of_text, finished = (references[kind, "validation"] for kind in kinds)
    text_model = {"required": ["training"], "properties": {"config": {"required": ["backbone"]}}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "recpeft record",
        "type": "object",
        "if": {"properties": {"status": {"const": "failed"}}},
        "then": failed,
        "else": {"if": text_model, "then": of_text, "else": finished},
        "$defs": whole["$defs"],
    }
