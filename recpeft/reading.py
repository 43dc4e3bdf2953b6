"""Bounded reading of untrusted YAML and JSON: a YAML bomb, a pipe or a truncated file gives an error sentence."""

from __future__ import annotations

import errno
import json
import re
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from recpeft.errors import RecpeftError, cut, shown

YAML_BYTES = 2**18
"""Maximum size of a YAML file, which takes PyYAML about three seconds; an experiment file has a few thousand bytes."""

JSON_BYTES = 2**28
"""Maximum size of a JSON file; a manifest of 10,000 cells has about a quarter of it."""

VALUES = 100_000
"""Maximum number of values in a YAML file, each counted as often as an alias repeats it, a long text as several."""

DEPTH = 100
"""Maximum nesting depth, low enough for Python to recurse through."""

_TOO_DEEP = f"it is nested more than {DEPTH} levels deep"


def read_yaml(path: Path, what: str) -> Any:
    """Read a YAML file; a duplicate key in a mapping is an error.

    Args:
        what: the expected file, for messages, such as ``an experiment YAML``.
    Raises:
        RecpeftError: names the file and the line.
    """
    name = str(path) if str(path).isprintable() else shown(str(path))
    try:
        text = read_text(path, YAML_BYTES)
    except FileNotFoundError:
        raise RecpeftError(f"there is no file {name}; give {what}.") from None
    except (OSError, ValueError) as error:
        problem = reason(error)
        if getattr(error, "errno", None) == errno.ENAMETOOLONG:
            name = cut(name)
        raise RecpeftError(f"{name} is no readable text file ({problem}); give {what}.") from None
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise RecpeftError(f"{name}: {error}; mend the YAML.") from None


def parse_yaml(text: str) -> Any:
    """Parse ``text`` as YAML.

    Raises:
        ValueError: a clause with the problem and its line.
    """
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it is no YAML"
        raise ValueError(f"{problem[:200]}{where}") from None
    finally:
        if loader is not None:
            loader.dispose()


def read_json(path: Path) -> Any:
    """Read a JSON file; NaN, which other tools may write, becomes null.

    Raises:
        OSError: the file cannot be read.
        ValueError: a clause with the problem.
    """
    text = read_text(path, JSON_BYTES)
    try:
        content = json.loads(text, parse_constant=lambda _: None)
        _check_depth(content)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    return content


def read_text(path: Path, most: int) -> str:
    """Read a regular UTF-8 file of at most ``most`` bytes.

    Raises:
        OSError: the file cannot be read.
        ValueError: a clause with the problem.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")  # a pipe would be waited for
    if status.st_size > most:
        raise ValueError(f"it has {status.st_size:,} bytes, and at most {most:,} are read")
    data = path.read_bytes()
    if is_utf16(data):
        raise ValueError("it is UTF-16, not UTF-8")
    return data.decode("utf-8-sig")


def is_utf16(start: bytes) -> bool:
    """Return whether a file that begins with ``start`` is UTF-16, which some editors call Unicode."""
    return start.startswith((b"\xff\xfe", b"\xfe\xff"))


def reason(error: OSError | ValueError) -> str:
    """Return the message of an error from ``read_text`` or ``read_json``, without the path."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return str(getattr(error, "strerror", None) or error)


def _check_depth(value: Any, depth: int = 0) -> None:
    if depth > DEPTH:
        raise RecursionError
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            _check_depth(part, depth + 1)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader with bounds and an error for duplicate keys."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            size, height = self._extent(node, {})
            if size > VALUES:
                self._refuse(node, f"there are more than {VALUES:,} values, aliases written out")
            if height > DEPTH:
                self._refuse(node, _TOO_DEEP)
        return node

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > DEPTH:
            raise yaml.composer.ComposerError(problem=_TOO_DEEP, problem_mark=self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _refuse(self, node: yaml.Node, problem: str) -> NoReturn:
        raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)

    def _extent(self, node: yaml.Node, known: dict[yaml.Node, tuple[int, int]]) -> tuple[int, int]:
        """Return a node's number of values and of nesting levels, with each alias expanded."""
        if node in known:
            return known[node]
        known[node] = VALUES + 1, 0  # an alias inside the node it names never ends
        if isinstance(node, yaml.ScalarNode) and re.search("[\0\ud800-\udfff]", node.value):
            self._refuse(node, "a character that no text can hold (NUL, or half of a pair)")
        parts: list[yaml.Node] = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        extents = [self._extent(part, known) for part in parts]
        size = 1 + len(node.value) // 16 + sum(size for size, _ in extents)
        known[node] = size, 1 + max((height for _, height in extents), default=0)
        return known[node]

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError, OverflowError) as error:
            # Dates such as 2024-02-30, and tags such as !!int on text that does not match them.
            kind = node.tag.rpartition(":")[2]
            problem = f"{shown(node.value)} is no {kind} (quoted, it is text)"
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        # SafeLoader would silently keep the last of two values.
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                self._refuse(key, f"the key {cut(str(key.value))} stands there a second time")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)
