"""The base of all configs."""

from __future__ import annotations

import hashlib
import json

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Frozen, and a key it does not know is an error.

    A plug-in's ``Config`` inherits from this; the docstring under each field says what it means,
    and a default stands there once, with its source. ``None`` means off, never "guess".
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def __hash__(self) -> int:
        # pydantic's own would fail on a field that is a mapping.
        return hash(canonical_json(self.model_dump(mode="json")))


def canonical_json(value: object) -> str:
    """``value`` as JSON that is the same for equal values: keys sorted, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: object, length: int = 16) -> str:
    """First ``length`` hex digits of the SHA-256 of ``value``'s canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]
