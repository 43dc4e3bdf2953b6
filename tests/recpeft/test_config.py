"""Configs are frozen and their digest depends on what they say alone."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from pydantic import PositiveInt, ValidationError

from recpeft.config import Config, canonical_json, digest
from recpeft.errors import RecpeftError
from recpeft.validation import validate


class Small(Config):
    rank: int = 8
    """The rank."""


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    one = {"a": 1, "b": {"c": [1, 2], "d": None}}
    other = {"b": {"d": None, "c": [1, 2]}, "a": 1}
    assert list(one) != list(other)
    assert digest(one) == digest(other)


@pytest.mark.parametrize(
    "other", [{"a": 2}, {"b": 1}, {"a": None}, {"a": "1"}, {"a": [1]}, {"a": 1.5}, {"a": 1, "b": None}, {}]
)
def test_the_digest_changes_with_any_value(other: dict[str, object]) -> None:
    assert digest({"a": 1}) != digest(other)


def test_the_order_of_a_list_counts() -> None:
    assert digest([1, 2]) != digest([2, 1])


def test_the_digest_is_the_start_of_a_sha256() -> None:
    # by hand: the JSON with sorted keys, without spaces, in UTF-8
    expected = hashlib.sha256('{"a":1,"é":[true,null]}'.encode()).hexdigest()
    assert digest({"é": [True, None], "a": 1}, length=64) == expected
    assert digest({"é": [True, None], "a": 1}) == expected[:16]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_cannot_hold_is_no_canonical_value(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": value})


def test_an_unknown_key_is_an_error() -> None:
    with pytest.raises(ValidationError, match="rnak"):
        Small(rnak=4)  # type: ignore[call-arg]


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Small().rank = 4  # type: ignore[misc]


def test_a_fields_docstring_is_its_description() -> None:
    assert Small.model_fields["rank"].description == "The rank."


class Numbers(Config):
    """As a plug-in outside the project writes one."""

    size: PositiveInt = 1
    rate: float = 0.5
    on: bool = False
    either: int | float | None = None
    several: tuple[PositiveInt, ...] = ()
    inner: Small = Small()
    by_name: dict[str, float] | None = None


@pytest.mark.parametrize(
    "given",
    [
        {"size": True},
        {"size": "8"},
        {"size": 8.0},
        {"size": 10**30},
        {"rate": True},
        {"rate": "0.5"},
        {"rate": 10**400},
        {"on": 1},
        {"on": "no"},
        {"either": True},
        {"several": [1, True]},
        {"inner": {"rank": True}},
        {"by_name": {"a": False}},
    ],
)
def test_nothing_else_passes_as_a_number_or_a_boolean(given: dict[str, object]) -> None:
    (key,) = given
    with pytest.raises(RecpeftError, match=rf"^{key}[a-z0-9.]* is [^;]*: input should be [^;]*"):
        validate(Numbers, given)


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ({"rate": 1}, 1.0),
        ({"rate": "1e-3"}, 0.001),  # YAML 1.1 reads it as text
        ({"size": np.int64(3)}, 3),
        ({"either": 1}, 1),
        ({"either": 0.5}, 0.5),
        ({"several": [1, 2]}, (1, 2)),
    ],
)
def test_a_number_in_another_spelling_passes(given: dict[str, object], value: object) -> None:
    (key,) = given
    found = getattr(validate(Numbers, given), key)
    assert found == value
    assert type(found) is type(value)


def test_text_in_place_of_a_number_is_told_how_to_write_it() -> None:
    with pytest.raises(RecpeftError, match=r"size is '1e3': .*write the digits alone, such as 1000"):
        validate(Numbers, {"size": "1e3"})


def test_a_field_that_a_property_would_hide_is_refused() -> None:
    class Base(Config):
        @property
        def item_features(self) -> tuple[str, ...]:
            return ()

    with pytest.raises(RecpeftError, match=r"has a field item_features, but Base\.item_features is a property"):

        class Hidden(Base):
            item_features: tuple[str, ...] = ("image",)
