"""The base of all configs."""

from __future__ import annotations

import hashlib
import json
import math
import operator
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from recpeft.errors import RecpeftError

MOST = 2**31 - 1
"""Largest whole number in a field without its own bound; a larger one is a typing error."""

Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""Seed of a draw; torch takes no larger one."""

Dimension = Annotated[int, Field(gt=0, le=2**16)]
"""Rank, number of virtual tokens or layer width: Llama 3.1 405B's widest layers have 53,248 units."""

Processes = Annotated[int, Field(gt=0, le=1024)]
"""Number of threads or processes on a machine."""

Drawn = Annotated[int, Field(ge=0, le=2**16)]
"""Number of items drawn for one user at a time."""


def _strict(node: Any, cls: type[BaseModel]) -> Any:
    """Make the numbers and booleans of a core schema strict; a float field still accepts a whole number.

    Pydantic's ``strict`` for a whole model would refuse YAML's lists for tuple fields.
    """
    if isinstance(node, list):
        return [_strict(part, cls) for part in node]
    if not isinstance(node, dict) or (node.get("type") == "model" and node["cls"] is not cls):
        return node  # another config within this one is strict already
    kind = node.get("type")
    if kind == "bool":
        return node | {"strict": True}
    if kind == "float":
        return core_schema.no_info_before_validator_function(_with_exponent, node | {"strict": True})
    if kind == "int":
        bounds = {} if {"lt", "le"} & node.keys() else {"le": MOST}
        return core_schema.no_info_before_validator_function(_as_int, node | bounds | {"strict": True})
    return {key: part if key == "default" else _strict(part, cls) for key, part in node.items()}


def _with_exponent(value: object) -> object:
    """Return text such as 1e-3 as a float: YAML 1.1 reads it as text, since it has no decimal point."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]+[eE][+-]?[0-9]+", value):
        return float(value)
    return value


def _as_int(value: object) -> object:
    """Return NumPy's and other whole numbers as ``int``, everything else unchanged."""
    return operator.index(value) if hasattr(value, "__index__") and not isinstance(value, bool) else value


class Config(BaseModel):
    """Base of all configs: frozen; an unknown key is an error, and so is a boolean or text in a number field.

    A plug-in's ``Config`` inherits from this. The docstring under each field explains it and gives the source
    of its default. ``None`` means off, never "guess".
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    ADDED: ClassVar[Mapping[str, Any]] = {}
    """Fields that a later version added to this class, each with the JSON value of its first default. Listing a new
    field here keeps the ids of runs that do not use it. Never change an entry, even if the default changes later."""

    HOW: ClassVar[frozenset[str]] = frozenset()
    """Fields that control how a result is computed, not what is computed; no id includes them."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for name in cls.model_fields:
            owner = next((base for base in cls.__mro__[1:] if isinstance(vars(base).get(name), property)), None)
            if owner is not None:  # pydantic would take it, and never read it
                raise RecpeftError(
                    f"{cls.__module__}.{cls.__name__} has a field {name}, but {owner.__name__}.{name} is a property; "
                    f"give it as one (@property def {name}(self): return …)."
                )

    def asked_for(self) -> dict[str, Any]:
        """Return the config as JSON values, without fields in ``HOW`` and fields in ``ADDED`` at their first default.

        Run ids and names of shared files hash this, so a new field renames nothing that does not use it.
        """
        values: dict[str, Any] = _asked_for(self, self.model_dump(mode="json"))
        return values

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        strict: CoreSchema = _strict(handler(source), cls)
        return strict

    def __hash__(self) -> int:
        # pydantic's own would fail on a field that is a mapping.
        return hash(canonical_json(self.model_dump(mode="json")))


def _asked_for(value: Any, dumped: Any) -> Any:
    """Drop the fields of ``HOW`` and the added fields at their first default from ``dumped``, the JSON of ``value``."""
    if isinstance(value, Config):
        dumped = {name: part for name, part in dumped.items() if name not in value.HOW}
        fields = {name: _asked_for(getattr(value, name), part) for name, part in dumped.items()}
        added: dict[str, Any] = {}  # a class's own entries beside those of the classes that it inherits from
        for cls in reversed(type(value).__mro__):
            added |= vars(cls).get("ADDED", {})
        return {name: part for name, part in fields.items() if name not in added or part != added[name]}
    if isinstance(value, tuple | list):
        return [_asked_for(*pair) for pair in zip(value, dumped, strict=True)]
    if isinstance(value, Mapping):
        return {key: _asked_for(part, dumped[str(key)]) for key, part in value.items()}
    return dumped


def canonical_json(value: object) -> str:
    """Return ``value`` as JSON that is the same for equal values: keys sorted, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: object, length: int = 16) -> str:
    """Return the first ``length`` hex digits of the SHA-256 of ``value``'s canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


def plain(value: Any) -> Any:
    """Return ``value`` as a JSON round trip would: NaN and infinity become None, tuples become lists."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
