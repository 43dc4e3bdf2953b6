"""Two stages: a cheap first stage proposes items from the whole catalogue, and another formulation ranks them.

Covington et al. 2016, "Deep neural networks for YouTube recommendations". Lists hold only items that the first stage
proposes, so metrics measure both stages together, over the evaluation's candidates; ``evaluation.candidates: {kind:
first_stage}`` measures only the second stage. The module is the second stage's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import PositiveInt, SerializeAsAny, field_validator, model_validator

from datamodules._prompts import Form
from lightning_modules._formulation import FormulationConfig
from rankers._base import RankerConfig
from recpeft import plugins
from recpeft.config import Config as BaseConfig
from recpeft.validation import build_plugin

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from torch import nn
    from transformers import PreTrainedModel

    from datamodules._assembler import PromptAssembler
    from lightning_modules._backbone import Backbone
    from lightning_modules._rec_module import RecModule
    from lightning_modules.losses._base import LevelLogits


class SavedRun(BaseConfig):
    """A finished run as the first stage, such as a trained two_tower."""

    run: Path
    """Folder of the run, ``runs/<study>/<run_id>``; it must have the same data and split."""


class Config(FormulationConfig):
    name: str = "two_stage"
    first: SerializeAsAny[RankerConfig] | SavedRun
    """First stage: a ranker, as {name: ease}, or {run: FOLDER} of a finished run."""
    size: PositiveInt = 100
    """Number of items that the first stage proposes to a user."""
    second: SerializeAsAny[FormulationConfig]
    """Second stage: the formulation that ranks them, as {name: verbalizer}."""

    @field_validator("first", mode="before")
    @classmethod
    def _first_is_a_ranker_or_a_run(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "run" in value:
            return value
        return build_plugin("rankers", "name", value, "formulation.first")

    @field_validator("second", mode="before")
    @classmethod
    def _second_is_a_formulation(cls, value: Any) -> Any:
        return build_plugin("lightning_modules", "name", value, "formulation.second")

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        if isinstance(self.second, Config):
            raise ValueError("second is two_stage too; name what ranks, such as verbalizer")
        most = self.second.max_candidates
        if most is not None and self.size > most:
            raise ValueError(f"size is {self.size} but second {self.second.name} ranks at most {most}; lower it")
        return self

    @property
    def form(self) -> Form:
        return self.second.form

    @property
    def list_size(self) -> int | None:
        return self.second.list_size

    @property
    def proposes(self) -> int | None:
        return self.size

    @property
    def starts_at_random(self) -> bool:
        return self.second.starts_at_random

    @property
    def predicts(self) -> Literal["rating", "logit"] | None:
        return self.second.predicts

    @property
    def can_do_without_text(self) -> bool:
        return self.second.can_do_without_text

    @property
    def sequence_length(self) -> int | None:
        return self.second.sequence_length

    @property
    def encoded_per_step(self) -> int | None:
        return self.second.encoded_per_step

    @property
    def rated_sequences(self) -> bool:
        return self.second.rated_sequences

    @property
    def learns_at_each_place(self) -> bool:
        return self.second.learns_at_each_place

    @property
    def item_features(self) -> tuple[str, ...]:
        """Return the second stage's columns."""
        return self.second.item_features

    @property
    def level_logits(self) -> LevelLogits | None:
        return self.second.level_logits


def check(config: Config, skeleton: PreTrainedModel, prompt: PromptAssembler, tokenizer: Any) -> None:
    """Run the second stage's check."""
    of_second = getattr(_second(config), "check", None)
    if of_second is not None:
        of_second(config.second, skeleton, prompt, tokenizer)


def prepare(
    config: Config, backbone: Backbone, prompt: PromptAssembler, items: pl.DataFrame, train_counts: np.ndarray
) -> dict[str, Any]:
    """Return the second stage's arguments for ``build``."""
    of_second = getattr(_second(config), "prepare", None)
    found: dict[str, Any] = (
        of_second(config.second, backbone, prompt, items, train_counts) if of_second is not None else {}
    )
    return found


def labels(config: Config, tokenizer: Any, prompt: PromptAssembler) -> dict[str, int]:
    """Return the second stage's labels; empty if it reads none."""
    of_second = getattr(_second(config), "labels", None)
    found: dict[str, int] = of_second(config.second, tokenizer, prompt) if of_second is not None else {}
    return found


def build(backbone: nn.Module, config: Config, **options: Any) -> RecModule:
    """Build the second stage's module; the data module supplies the proposed items."""
    module: RecModule = _second(config).build(backbone, config.second, **options)
    return module


def _second(config: Config) -> Any:
    return plugins.load("lightning_modules", config.second.name)
