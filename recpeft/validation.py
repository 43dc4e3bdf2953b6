"""Build configs from plain values, with errors as sentences."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from recpeft import plugins
from recpeft.config import Config
from recpeft.errors import RecpeftError, cut, shortened, shown

AnyConfig = TypeVar("AnyConfig", bound=Config)

_UNQUOTED = {
    "int_type": "; write the digits alone, such as 1000, and without quotes",
    "float_type": "; write it as 0.001 or 1e-3, and without quotes",
    "bool_type": "; write true or false, and without quotes",
}
"""Hint for text in a number or boolean field, by pydantic error type."""


def build_plugin(folder: str, key: str, value: Any, section: str) -> Config:
    """Build the config of the plug-in of ``folder`` that ``value[key]`` names; a config is returned unchanged.

    Raises:
        RecpeftError: the problem in ``section``, and what is allowed.
    """
    if isinstance(value, Config):
        return value
    if not isinstance(value, Mapping):
        raise RecpeftError(f"{section} is {shown(value)}; give a mapping, such as {{{key}: …}}.")
    if not isinstance(value.get(key), str):
        raise RecpeftError(f"{section}.{key} is missing or no text; choose one of {', '.join(plugins.names(folder))}.")
    try:
        cls = plugins.config_class(folder, value[key])
    except RecpeftError as error:
        raise RecpeftError(f"{section}.{key}: {error}") from None
    return validate(cls, value, prefix=f"{section}.")


def validate(cls: type[AnyConfig], value: Mapping[str, Any], prefix: str = "") -> AnyConfig:
    """Build a ``cls`` from ``value``.

    Raises:
        RecpeftError: the first three mistakes, each with its key below ``prefix``.
    """
    try:
        return cls.model_validate(value)
    except ValidationError as error:
        details = error.errors()
        # A list with an invalid entry is reported as too short as well, which is no separate mistake.
        inner = {detail["loc"][:length] for detail in details for length in range(len(detail["loc"]))}
        details = [detail for detail in details if detail["type"] != "too_short" or detail["loc"] not in inner]
        raise RecpeftError("; ".join(_sentence(cls, detail, prefix) for detail in details[:3])) from None


def _sentence(cls: type[Config], detail: ErrorDetails, prefix: str) -> str:
    """Return one pydantic error as a sentence: key, value got, what is allowed."""
    # For a union, pydantic names the branch after the validator function that recpeft.config added.
    location = [str(part) for part in detail["loc"] if not str(part).startswith("function-")]
    key = cut(prefix + ".".join(location))
    if detail["type"] == "extra_forbidden":
        owner = cls
        for part in location[:-1]:
            if part in owner.model_fields:  # else a position in a list
                owner = _config_in(owner.model_fields[part].annotation) or owner
        valid = list(owner.model_fields)
        close = difflib.get_close_matches(location[-1], valid, 1)
        hint = f"did you mean {close[0]}? Allowed: " if close else "allowed: "
        return f"unknown key {key}; {hint}{', '.join(valid)}"
    if detail["type"] == "missing":
        return f"{key} is missing; add it"
    message = shortened(detail["msg"].removeprefix("Value error, "), detail["input"])
    if detail["type"] == "value_error":
        # A plug-in within a section names its keys itself.
        if isinstance(detail.get("ctx", {}).get("error"), RecpeftError):
            return message
        return f"{key.rstrip('.')}: {message}" if key else message
    hint = _UNQUOTED.get(detail["type"], "") if isinstance(detail["input"], str) else ""
    return f"{key} is {shown(detail['input'])}: {message[0].lower()}{message[1:]}{hint}"


def _config_in(annotation: Any) -> type[Config] | None:
    """Return the config class that ``annotation`` is or contains, as in ``tuple[Filter, ...]``; else None."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Config):
            return candidate
    return None
