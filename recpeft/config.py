"""The base of all configs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Frozen, and a key it does not know is an error.

    A plug-in's ``Config`` inherits from this; the docstring under each field says what it means,
    and a default stands there once, with its source. ``None`` means off, never "guess".
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    ADDED: ClassVar[Mapping[str, Any]] = {}
    """Each field that a later version added to this class, with the JSON value of its first default. Name a new field
    here, and the ids of runs that do not use it stay. Never change an entry, even where the default changes later."""

    def asked_for(self) -> dict[str, Any]:
        """Return the config as JSON values without the fields of ``ADDED`` that have their first default.

        Ids of runs and names of shared files hash this, so that a new field renames nothing that does not use it.
        """
        values: dict[str, Any] = _asked_for(self, self.model_dump(mode="json"))
        return values

    def __hash__(self) -> int:
        # pydantic's own would fail on a field that is a mapping.
        return hash(canonical_json(self.model_dump(mode="json")))


def _asked_for(value: Any, dumped: Any) -> Any:
    """Take the fields at their first default out of ``dumped``, which is ``value`` as JSON."""
    if isinstance(value, Config):
        fields = {name: _asked_for(getattr(value, name), part) for name, part in dumped.items()}
        return {name: part for name, part in fields.items() if name not in value.ADDED or part != value.ADDED[name]}
    if isinstance(value, tuple | list):
        return [_asked_for(*pair) for pair in zip(value, dumped, strict=True)]
    if isinstance(value, Mapping):
        return {key: _asked_for(part, dumped[str(key)]) for key, part in value.items()}
    return dumped


def canonical_json(value: object) -> str:
    """``value`` as JSON that is the same for equal values: keys sorted, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: object, length: int = 16) -> str:
    """First ``length`` hex digits of the SHA-256 of ``value``'s canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


def plain(value: Any) -> Any:
    """``value`` as JSON gives it back: NaN and infinity are None, tuples lists."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
