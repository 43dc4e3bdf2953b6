"""What every ranker must do, a new one too."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from rankers._base import Ranker, RankerConfig
from recpeft import plugins

NAMES = plugins.names("rankers")
GENERATOR = torch.Generator().manual_seed(0)
TRAIN = (torch.rand(40, 15, generator=GENERATOR) < 0.3).float()


def fitted(name: str) -> Ranker:
    module = plugins.load("rankers", name)
    ranker: Ranker = module.fit(TRAIN, module.Config(name=name), lambda ranker: 0.5)
    return ranker


@pytest.mark.parametrize("name", NAMES)
def test_config_is_readable_without_torch(name: str) -> None:
    script = (
        "import sys; from recpeft import plugins; "
        f"plugins.config_class('rankers', '{name}')(name='{name}'); "
        "assert not {'torch', 'scipy', 'lightning', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("name", NAMES)
def test_config_is_documented_and_survives_json(name: str) -> None:
    config_class = plugins.config_class("rankers", name)
    assert issubclass(config_class, RankerConfig)
    config = config_class.model_validate({"name": name})
    assert config_class.model_validate_json(config.model_dump_json()) == config
    assert all(field.description for field in config_class.model_fields.values())


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_finite_float32_over_the_catalogue(name: str) -> None:
    history = TRAIN[:7].clone()
    history[3] = 0  # a user without history
    scores = fitted(name).score(history)
    assert scores.shape == (7, 15)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_scores_depend_on_the_user_alone_not_on_the_batch(name: str) -> None:
    ranker = fitted(name)
    whole = ranker.score(TRAIN)
    for part in (slice(0, 1), slice(1, 6), slice(6, 40)):
        torch.testing.assert_close(ranker.score(TRAIN[part]), whole[part])


@pytest.mark.parametrize("name", NAMES)
def test_scores_may_be_masked_in_place(name: str) -> None:
    ranker = fitted(name)
    before = ranker.score(TRAIN).clone()
    scores = ranker.score(TRAIN)
    scores[0] = -torch.inf
    assert torch.equal(scores[1:], before[1:])
    assert torch.equal(ranker.score(TRAIN), before)


@pytest.mark.parametrize("name", NAMES)
def test_fit_is_repeatable_and_leaves_its_input_alone(name: str) -> None:
    before = TRAIN.clone()
    assert torch.equal(fitted(name).score(TRAIN), fitted(name).score(TRAIN))
    assert torch.equal(TRAIN, before)


@pytest.mark.parametrize("name", NAMES)
def test_details_are_plain_numbers_for_the_record(name: str) -> None:
    details = fitted(name).details
    assert json.loads(json.dumps(details, allow_nan=False)) == details
