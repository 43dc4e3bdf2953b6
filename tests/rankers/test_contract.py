"""What every ranker must do, a new one too."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from ranker_data import again, options, scores, train_data

from rankers._base import Ranker, RankerConfig
from recpeft import plugins

NAMES = plugins.names("rankers")
GENERATOR = torch.Generator().manual_seed(0)
TRAIN = (torch.rand(40, 15, generator=GENERATOR) < 0.3).float()


def fitted(name: str, seed: int = 0) -> Ranker:
    module = plugins.load("rankers", name)
    ranker: Ranker = module.fit(train_data(TRAIN), module.Config(name=name), options(seed=seed))
    return ranker


@pytest.mark.parametrize("name", NAMES)
def test_config_is_readable_without_torch(name: str) -> None:
    script = (
        "import sys; from recpeft import plugins; "
        f"plugins.config_class('rankers', '{name}')(name='{name}'); "
        "assert not {'torch', 'scipy', 'polars', 'lightning', 'transformers'} & set(sys.modules)"
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
def test_scores_are_finite_float32_over_the_catalogue_for_new_people_too(name: str) -> None:
    history = TRAIN[:7].clone()
    history[3] = 0  # a person without history
    for users in (range(7), [-1] * 7):
        found = scores(fitted(name), history, users)
        assert found.shape == (7, 15)
        assert found.dtype == torch.float32
        assert found.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_scores_depend_on_the_user_alone_not_on_the_batch(name: str) -> None:
    ranker = fitted(name)
    whole = scores(ranker, TRAIN)
    for part in (slice(0, 1), slice(1, 6), slice(6, 40)):
        torch.testing.assert_close(scores(ranker, TRAIN[part], np.arange(40)[part]), whole[part])


@pytest.mark.parametrize("name", NAMES)
def test_scores_may_be_masked_in_place(name: str) -> None:
    ranker = fitted(name)
    before = scores(ranker, TRAIN).clone()
    found = scores(ranker, TRAIN)
    found[0] = -torch.inf
    assert torch.equal(found[1:], before[1:])
    assert torch.equal(scores(ranker, TRAIN), before)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_ranker_and_leaves_the_data_alone(name: str) -> None:
    data, module = train_data(TRAIN), plugins.load("rankers", name)
    config = module.Config(name=name)
    one, two = (module.fit(data, config, options(seed=3)) for _ in range(2))
    assert torch.equal(scores(one, TRAIN), scores(two, TRAIN))
    assert (data.matrix.toarray() == TRAIN.numpy()).all()


@pytest.mark.parametrize("name", NAMES)
def test_seeds_matter_where_the_config_says_that_draws_are_made_and_only_there(name: str) -> None:
    one, two = (scores(fitted(name, seed), TRAIN) for seed in (0, 1))
    assert torch.equal(one, two) != plugins.load("rankers", name).Config.STOCHASTIC


@pytest.mark.parametrize("name", NAMES)
def test_a_ranker_made_of_its_tensors_scores_alike(name: str) -> None:
    module = plugins.load("rankers", name)
    ranker = fitted(name)
    loaded = again(name, module.Config(name=name), ranker)
    for users in (None, [-1] * 40):
        torch.testing.assert_close(scores(loaded, TRAIN, users), scores(ranker, TRAIN, users), rtol=1e-6, atol=1e-6)
    assert dict(loaded.details) == dict(ranker.details)


@pytest.mark.parametrize("name", NAMES)
def test_details_are_plain_numbers_for_the_record(name: str) -> None:
    details = fitted(name).details
    assert json.loads(json.dumps(details, allow_nan=False)) == details
