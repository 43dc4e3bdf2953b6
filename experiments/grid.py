"""An experiment file becomes a list of runs, all of them validated before the first one starts."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.config import RankerRun, RunConfig, TextRun, build_run
from recpeft.errors import RecpeftError

REFERENCES = ("popularity", "ease", "zero_shot", "frozen")
"""Rows that stand in every table unless ``references:`` names fewer: two rankers, the backbone as it is (but for
formulations whose head is drawn at random, of which it would be a random order), and the control."""

_RANKERS = ("popularity", "ease")
_FILE_KEYS = ("grid", "include", "references")


def load_runs(path: Path, overrides: Sequence[str] = ()) -> list[RunConfig]:
    """Every run of an experiment file: the references first, then the grid's cells in order.

    Args:
        path: YAML: a base config, ``grid:`` of dotted keys to lists, ``include:`` of further cells (dotted keys to
            values), and ``references:``.
        overrides: ``key=value`` with a dotted key and a YAML value; a grid over the key gives way to it.
    Raises:
        RecpeftError: names the file, the key, the value and what is allowed.
    """
    base = _read(path)
    try:
        return expand(base, overrides)
    except RecpeftError as error:
        raise RecpeftError(f"{path}: {error}") from None


def expand(base: dict[str, Any], overrides: Sequence[str] = ()) -> list[RunConfig]:
    """As ``load_runs``, from the file's content."""
    base = copy.deepcopy(base)
    for override in overrides:
        _override(base, override)
    grid = base.pop("grid", None) or {}
    by_default = "references" not in base
    references = base.pop("references", REFERENCES)
    include = base.pop("include", None) or []
    _check_grid(grid)
    _check_include(include)
    _check_references(references)
    crossed = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    cells: list[RunConfig] = []
    # Where cells are included and nothing is crossed, the base alone is no cell.
    for values in [*(crossed if grid or not include else []), *include]:
        raw = copy.deepcopy(base)
        for key, value in values.items():
            _set(raw, key, copy.deepcopy(value))
        where = ", ".join(f"{key}={value}" for key, value in values.items())
        try:
            run = build_run(raw)
            _check_untrained_means_something(run, () if by_default else references)
        except RecpeftError as error:
            raise RecpeftError(f"in the cell {where}: {error}" if values else str(error)) from None
        if run in cells:
            raise RecpeftError(f"the cell {where} stands twice in grid and include; name it once.")
        cells.append(run)
    monitors = sorted({cell.evaluation.monitored for cell in cells})
    if len(monitors) > 1:
        raise RecpeftError(
            f"the cells have different evaluation.monitor: {', '.join(monitors)}; a study's table has one, so give "
            "each a study of its own."
        )
    found: dict[str, RunConfig] = {}
    for name, cell in itertools.product(references, cells):
        if isinstance(cell, TextRun):
            there = name != "zero_shot" or not cell.formulation.starts_at_random
        else:
            there = name in _RANKERS
        if there:
            run = reference(cell, name)
            found.setdefault(run.run_id, run)
    for cell in cells:
        for run in (cell.undiversified, cell):
            found.setdefault(run.run_id, run)
    return list(found.values())


def reference(cell: RunConfig, name: str) -> RunConfig:
    """The reference ``name`` that ``cell`` is to be read against: same data, prompt and evaluation.

    The control (``frozen``) keeps seed, steps, learning rates, head and loss; both text references have the
    backbone at full width.
    """
    shared = cell.model_dump(include={"study", "threads", "data", "evaluation"})
    if name in _RANKERS or isinstance(cell, RankerRun):
        return build_run({**shared, "ranker": {"name": name}})
    raw = cell.model_dump()
    raw["adapter"] = {"method": name}
    raw["backbone"] |= {"width": "none", "double_quantisation": False, "int8_threshold": 6.0, "skip_modules": ()}
    if name == "zero_shot":
        # Nothing is learnt, so cells that differ in how they learn share one row, under a loss that asks for nothing.
        for key in ("training", "seed"):
            del raw[key]
        raw["loss"] = {"name": "listwise_softmax"}
    return build_run(raw)


def is_reference(run: RunConfig) -> bool:
    """Whether the run is there to be compared with."""
    return isinstance(run, RankerRun) or not run.adapter.trains_backbone


class _NoKeyTwice(yaml.SafeLoader):
    """YAML's safe loader, which would otherwise drop the first of two values of a key without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value} stands there a second time", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecpeftError(f"there is no file {path}; give an experiment YAML.") from None
    except (OSError, UnicodeDecodeError):
        raise RecpeftError(f"{path} is no readable text file; give an experiment YAML.") from None
    try:
        content = yaml.load(text, _NoKeyTwice)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise RecpeftError(f"{path}: {problem}{where}; mend the YAML.") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise RecpeftError(f"{path} holds no mapping of keys to values; see experiments/configs/quickstart.yaml.")
    allowed = {*TextRun.model_fields, *RankerRun.model_fields, *_FILE_KEYS}
    unknown = sorted(set(content) - allowed)
    if unknown:
        raise RecpeftError(
            f"{path}: unknown key {unknown[0]}; allowed: {', '.join([*TextRun.model_fields, *_FILE_KEYS])}."
        )
    return content


def _check_grid(grid: Any) -> None:
    if not isinstance(grid, dict):
        raise RecpeftError(f"grid is {grid!r}; give a mapping of dotted keys to lists.")
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise RecpeftError(f"grid.{key} is {values!r}; give a list with at least one value.")


def _check_include(include: Any) -> None:
    if not isinstance(include, list) or not all(isinstance(cell, dict) and cell for cell in include):
        raise RecpeftError(f"include is {include!r}; give a list of cells, each a mapping of dotted keys to values.")


def _check_references(references: Any) -> None:
    if not isinstance(references, list | tuple) or not all(name in REFERENCES for name in references):
        raise RecpeftError(f"references is {references!r}; give a list out of {', '.join(REFERENCES)}.")


def _check_untrained_means_something(run: RunConfig, asked: Sequence[str]) -> None:
    """Raise ``RecpeftError`` where a head is to rank as it was drawn.

    Args:
        asked: references that the file names.
    """
    if not isinstance(run, TextRun) or not run.formulation.starts_at_random:
        return
    if not (run.adapter.trains_head or run.adapter.trains_backbone):
        where, remedy = f"adapter.method is {run.method}", "use frozen, which trains the head alone"
    elif "zero_shot" in asked:
        where, remedy = "references names zero_shot", "leave it out (without references, cells that can have it do)"
    else:
        return
    raise RecpeftError(
        f"{where} but the head of formulation {run.formulation.name} is drawn at random here, so that untrained it "
        f"ranks at random; {remedy}."
    )


def _override(base: dict[str, Any], override: str) -> None:
    """Apply one ``key=value``."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecpeftError(f"--set {override!r} is not key=value; write for example --set adapter.rank=16.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise RecpeftError(f"--set {override!r}: {text!r} is not YAML; quote it.") from None
    if isinstance(base.get("grid"), dict):
        base["grid"].pop(key, None)
    included = base.get("include") if isinstance(base.get("include"), list) else []
    taken = {
        "grid": list(base["grid"]) if isinstance(base.get("grid"), dict) else [],
        "include": [other for cell in included or [] if isinstance(cell, dict) for other in cell],
    }
    for part, others in taken.items():
        for other in others:
            if f"{other}.".startswith(f"{key}.") or f"{key}.".startswith(f"{other}."):
                raise RecpeftError(
                    f"--set {override!r} and {other} under {part} set the same values; set {other} instead, or "
                    f"--set {part}=null to leave {part} out."
                )
    _set(base, key, value)


def _set(target: dict[str, Any], dotted: str, value: Any) -> None:
    """Put ``value`` at a dotted key; the section must be a mapping or absent."""
    *sections, last = dotted.split(".")
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise RecpeftError(f"{dotted} cannot be set: {section} is no mapping; name the whole section.")
    target[last] = value
