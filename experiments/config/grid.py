"""Expand an experiment file into a list of runs, all validated before the first one starts."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.config.run import PLUGIN_SECTIONS, DrawnRankerRun, RankerRun, RunConfig, TextRun, build_run
from experiments.config.training import TrainingConfig
from recpeft import plugins
from recpeft.errors import RecpeftError, cut, shown
from recpeft.reading import DEPTH, parse_yaml, read_yaml

REFERENCES = ("popularity", "ease", "zero_shot", "frozen", "none")
"""Default ``references:``, shown in every table: two rankers; the untrained backbone (except for formulations with a
randomly initialised head, which would rank at random); the control; and the formulation without text, if it supports
that."""

SASREC = "sasrec"
"""Name of the reference that uses formulation ``sequence`` over ids alone (Kang & McAuley 2018)."""

_OF_THE_CELL = ("zero_shot", "frozen", "none", SASREC)
"""References derived from the cell itself; every other one is a ranker, given by name or as a section."""

_FILE_KEYS = ("extends", "grid", "include", "exclude", "seeds", "variants", "references", "search")
_OTHER_SEEDS = {"seed": "seeds", "seeds": "seed"}
"""Two keys for one value: key that is set -> key that it replaces."""

MOST_CELLS = 5_000
"""Maximum number of cells of an experiment file; more are taken for a mistake."""

EXTENSIONS = 20
"""Maximum number of files in a chain of ``extends``."""

BASE = "base"
"""Name of the variant without changes."""


def load_runs(source: Path | str | Mapping[str, Any], overrides: Sequence[str] = ()) -> list[RunConfig]:
    """Return every run of an experiment file: the references first, then the grid's cells in order.

    Args:
        source: YAML file with a base config; ``grid:`` maps dotted keys to lists, ``include:`` lists further cells and
            ``exclude:`` crossed ones (dotted keys to values), ``seeds:`` lists seeds, ``variants:`` maps names to
            changes (dotted keys to values), ``references:`` lists references, and ``extends:`` names another file that
            this one changes. Or such a file's content as a mapping, whose ``extends`` is relative to the current
            folder. ``experiments.config.search.load_search`` reads ``search:``.
        overrides: ``key=value`` with a dotted key and a YAML value; it replaces a grid over the key, ``seed`` replaces
            ``seeds``, and ``seeds`` replaces ``seed``.
    Raises:
        RecpeftError: the file is invalid; the message names the file, the key, the value and what is allowed.
    """
    if isinstance(source, Mapping):
        _check_keys(source, "the mapping")
        return expand(_extended(dict(source), Path(), ()), overrides)
    base = read_file(Path(source))
    try:
        return expand(base, overrides)
    except RecpeftError as error:
        raise RecpeftError(f"{source}: {error}") from None


def read_file(path: Path) -> dict[str, Any]:
    """Return an experiment file's content, merged over that of the file it extends."""
    return _extended(_read(path), path.parent, (path.resolve(),))


def overridden(base: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of a file's content with each ``key=value`` set."""
    base = copy.deepcopy(base)
    for override in overrides:
        _override(base, override)
    return base


def expand(base: dict[str, Any], overrides: Sequence[str] = ()) -> list[RunConfig]:
    """Do as ``load_runs``, from the file's content."""
    base = overridden(base, overrides)
    if base.pop("search", None) is not None:
        raise RecpeftError(
            "search finds its runs as it goes, in recpeft run; --set search=null gives the run that it starts from."
        )
    grid = base.pop("grid", None) or {}
    by_default = "references" not in base
    references = base.pop("references", REFERENCES)
    include, exclude = (base.pop(key, None) or [] for key in ("include", "exclude"))
    variants, seeds = base.pop("variants", None) or {}, base.pop("seeds", None)
    _check_grid(grid)
    _check_cells("include", include)
    _check_cells("exclude", exclude)
    _check_number(grid, include, variants, seeds)
    _check_references(references)
    _check_variants(variants, grid, include)
    rankers_alone = not by_default and references and all(map(_is_ranker, references))
    if rankers_alone and _names_no_run(base, [grid, *include, *variants.values()]):
        base["ranker"] = next(filter(_draws, references), references[0])  # prefer one that draws, for the file's seeds
        if not isinstance(base["ranker"], dict):
            base["ranker"] = {"name": base["ranker"]}
    _check_seeds(seeds, base, grid, include, variants)
    crossed = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    # With included cells and no grid, the base alone is not a cell.
    chosen = _without(crossed if grid or not include else [], exclude) + include
    cells: list[RunConfig] = []
    for where, run in _run_of_each(base, chosen, variants, seeds):
        try:
            _check_untrained_means_something(run, () if by_default else references)
        except RecpeftError as error:
            raise RecpeftError(f"in the cell {where}: {error}" if where else str(error)) from None
        cells.append(run)
    monitors = sorted({cell.evaluation.monitored for cell in cells})
    if len(monitors) > 1:
        raise RecpeftError(
            f"the cells have different evaluation.monitor: {', '.join(monitors)}; a study's table has one, so give "
            "each a study of its own."
        )
    found: dict[str, RunConfig] = {}
    for name, cell in itertools.product(references, cells):
        if _has(cell, name):
            run = reference(cell, name)
            found.setdefault(run.run_id, run)
    for cell in cells:
        for run in (cell.undiversified, cell):
            found.setdefault(run.run_id, run)
    return list(found.values())


def _names_no_run(base: dict[str, Any], changes: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a file holds references alone: it sets no key that only text runs have, and no ranker."""
    keys = {*base, *(key.partition(".")[0] for part in changes for key in part)}
    return not keys & (set(TextRun.model_fields) - set(DrawnRankerRun.model_fields) | {"ranker"})


def _run_of_each(
    base: dict[str, Any], cells: list[dict[str, Any]], variants: dict[str, Any], seeds: list[int] | None
) -> list[tuple[str, RunConfig]]:
    """Return a description and the run of each cell, in each variant, with each seed.

    Raises:
        RecpeftError: a cell is invalid, or a duplicate.
    """
    found: list[tuple[str, RunConfig]] = []
    there: dict[str, str] = {}
    named: list[tuple[str | None, dict[str, Any]]] = [(BASE, {}), *variants.items()] if variants else [(None, {})]
    for values, (name, changes), seed in itertools.product(cells, named, [None] if seeds is None else seeds):
        raw = copy.deepcopy(base)
        parts = [*values.items(), *changes.items(), *([("seed", seed)] if seed is not None else [])]
        for key, value in parts:
            set_value(raw, key, copy.deepcopy(value))
        if name is not None:
            raw["variant"] = name
        said = [f"{cut(key)}={cut(value) if isinstance(value, str) else shown(value)}" for key, value in parts]
        where = ", ".join([*([f"variant {cut(str(name))}"] if name else []), *said])
        try:
            run = build_run(raw)
        except RecpeftError as error:
            raise RecpeftError(f"in the cell {where}: {error}" if where else str(error)) from None
        if run.run_id in there:
            other = there[run.run_id]
            what = f"the cell {where} stands twice in grid and include" if where == other else f"{other} is {where} too"
            raise RecpeftError(f"{what}; name it once.")
        there[run.run_id] = where
        found.append((where, run))
    return found


def _without(crossed: list[dict[str, Any]], exclude: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the crossed cells without those that have all values of an excluded cell.

    Raises:
        RecpeftError: an entry of ``exclude`` matches no cell, or no cell remains.
    """

    def is_excluded(values: dict[str, Any], cell: dict[str, Any]) -> bool:
        return all(key in values and values[key] == cell[key] for key in cell)

    kept = crossed
    for cell in exclude:
        if not any(is_excluded(values, cell) for values in crossed):
            raise RecpeftError(f"exclude names {shown(cell)}, which is no cell of grid; mend it, or leave it out.")
        kept = [values for values in kept if not is_excluded(values, cell)]
    if crossed and not kept:
        raise RecpeftError("exclude leaves no cell of grid; leave some in.")
    return kept


def _is_ranker(reference: str | dict[str, Any]) -> bool:
    return reference not in _OF_THE_CELL


def _draws(ranker: str | dict[str, Any]) -> bool:
    """Return whether a ranker, given by name or as a section, is run once for each seed."""
    name = ranker["name"] if isinstance(ranker, dict) else ranker
    config: Any = plugins.config_class("rankers", name)
    return bool(getattr(config, "STOCHASTIC", False))


def _has(cell: RunConfig, name: str | dict[str, Any]) -> bool:
    """Return whether ``cell`` has the reference ``name``."""
    if _is_ranker(name):
        return True
    if not isinstance(cell, TextRun):
        return False
    if name == "none":
        return cell.formulation.can_do_without_text
    if name == SASREC:
        return True
    return cell.adapter.reads_text and not (name == "zero_shot" and cell.formulation.starts_at_random)


def reference(cell: RunConfig, name: str | dict[str, Any]) -> RunConfig:
    """Return the reference ``name`` to compare ``cell`` with: same data, prompt and evaluation.

    A ranker that draws keeps the seed. The control (``frozen``) keeps seed, steps, learning rates, head and loss; both
    text references use the backbone at full width.

    Args:
        name: name of the reference, or a ranker's section such as {name: ease, l2: [100]}.
    """
    shared = cell.model_dump(include={"study", "threads", "data", "evaluation", "trackers"})
    if _is_ranker(name) or isinstance(cell, RankerRun):
        section = name if isinstance(name, dict) else {"name": name}
        return build_run(
            {**shared, "ranker": section, **({"seed": getattr(cell, "seed", 0)} if _draws(section) else {})}
        )
    raw = cell.model_dump(exclude={"variant", "diversify"})
    if name == SASREC:
        return build_run(_sasrec(cell, raw))
    raw["adapter"] = {"method": name}
    raw["backbone"] |= {"width": "none", "double_quantisation": False, "int8_threshold": 6.0, "skip_modules": ()}
    if name == "zero_shot":
        # Nothing is trained, so cells that differ in their training share one row, with a loss without requirements.
        for key in ("training", "seed"):
            del raw[key]
        raw["loss"] = {"name": "listwise_softmax"}
    return build_run(raw)


def _sasrec(cell: TextRun, raw: dict[str, Any]) -> dict[str, Any]:
    """Return the config ``raw`` changed to SASRec, with ``cell``'s seed, steps and head's learning rate."""
    training = cell.training
    kept = ("length", "width", "layers", "heads", "dropout")
    own = raw["formulation"] if cell.formulation.sequence_length is not None else {}
    sequence = {"name": "sequence", "ids": "add"} | {key: own[key] for key in kept if key in own}
    learnt = {
        "examples": "positions",
        "positives_per_user": TrainingConfig.model_fields["positives_per_user"].default,
        "positive_window": None,
        "negatives": {"catalogue": True},
        "learning_rate": training.head_learning_rate or training.learning_rate,
        "head_learning_rate": None,
        "head_steps": 0,
        "gradient_checkpointing": "none",
    }
    return raw | {
        "adapter": {"method": "none"},
        "formulation": sequence,
        "loss": {"name": "listwise_softmax", "logq": False},
        "training": raw["training"] | learnt,
    }


def is_reference(run: RunConfig) -> bool:
    """Return whether the run serves as a reference."""
    return isinstance(run, RankerRun) or not run.adapter.trains_backbone


def _extended(content: dict[str, Any], folder: Path, files: tuple[Path, ...]) -> dict[str, Any]:
    """Return ``content`` merged over that of the file it extends.

    Args:
        folder: folder that the extended file's path is relative to.
        files: the file of ``content``, preceded by those that extend it; empty for a mapping.
    """
    other = content.pop("extends", None)
    if other is None:
        return content
    if not isinstance(other, str | Path):
        where = f"{files[-1]}: " if files else ""
        raise RecpeftError(f"{where}extends is {shown(other)}; give the path of another experiment YAML.")
    path = folder / other
    if len(files) == EXTENSIONS:
        raise RecpeftError(f"{files[0]}: {EXTENSIONS} files extend one another, and {path} is one more; join some.")
    below = _read(path)  # read first, since an invalid path cannot be resolved either
    if path.resolve() in files:
        raise RecpeftError(f"{path} extends itself, by way of {files[-1].name}; take one extends out.")
    return _over(_extended(below, path.parent, (*files, path.resolve())), content)


def _over(below: dict[str, Any], above: dict[str, Any], section: str = "") -> dict[str, Any]:
    """Merge ``above`` over ``below``, mapping by mapping; a section with another plug-in replaces the whole section."""
    _, key = PLUGIN_SECTIONS.get(section, ("", ""))
    if key in above and above[key] != below.get(key):
        return above
    merged = dict(below)
    for name, other in _OTHER_SEEDS.items() if not section else ():
        if above.get(name) is not None:
            merged.pop(other, None)
    for name, value in above.items():
        old = below.get(name)
        both = isinstance(old, dict) and isinstance(value, dict) and name not in ("grid", "variants", "space")
        merged[name] = _over(old, value, name) if both and isinstance(old, dict) else value
    return merged


def _read(path: Path) -> dict[str, Any]:
    content = read_yaml(path, "an experiment YAML")
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise RecpeftError(f"{path} holds no mapping of keys to values; see experiments/configs/quickstart.yaml.")
    _check_keys(content, str(path))
    return content


def _check_keys(content: Mapping[str, Any], where: str) -> None:
    unknown = sorted(set(content) - {*TextRun.model_fields, *RankerRun.model_fields, *_FILE_KEYS})
    if unknown:
        raise RecpeftError(
            f"{where}: unknown key {cut(unknown[0])}; allowed: {', '.join([*TextRun.model_fields, *_FILE_KEYS])}."
        )


def _check_grid(grid: Any) -> None:
    if not isinstance(grid, dict):
        raise RecpeftError(f"grid is {shown(grid)}; give a mapping of dotted keys to lists.")
    _check_dotted("grid", grid)
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise RecpeftError(f"grid.{cut(key)} is {shown(values)}; give a list with at least one value.")


def _check_cells(name: str, cells: Any) -> None:
    if not isinstance(cells, list) or not all(isinstance(cell, dict) and cell for cell in cells):
        raise RecpeftError(f"{name} is {shown(cells)}; give a list of cells, each a mapping of dotted keys to values.")
    for cell in cells:
        _check_dotted(name, cell)


def _check_dotted(where: str, values: Mapping[Any, Any]) -> None:
    for key in values:
        if not isinstance(key, str):
            raise RecpeftError(
                f"{where} has the key {shown(key)}, which is no text; give a dotted key, such as adapter.rank (YAML "
                "reads on, off, yes and no as true or false)."
            )


def _check_seeds(
    seeds: Any, base: dict[str, Any], grid: dict[str, Any], include: list[dict[str, Any]], variants: dict[str, Any]
) -> None:
    if seeds is None:
        return
    whole = isinstance(seeds, list) and all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds)
    if not whole or not seeds:
        raise RecpeftError(f"seeds is {shown(seeds)}; give a list of whole numbers, such as [0, 1, 2].")
    if len(set(seeds)) != len(seeds):
        raise RecpeftError(f"seeds is {shown(seeds)}, with a seed twice; a run that is repeated says nothing new.")
    parts = [("seed", base), ("grid.seed", grid), *(("seed in include", cell) for cell in include)]
    for where, keys in [*parts, *((f"variants.{name}.seed", changes) for name, changes in variants.items())]:
        if "seed" in keys:
            raise RecpeftError(f"seeds and {where} set the same value; leave one out.")
    ranker = base.get("ranker")
    if isinstance(ranker, dict) and isinstance(ranker.get("name"), str) and not _draws(ranker):
        name = cut(ranker["name"])
        raise RecpeftError(f"seeds is for runs that draw, but ranker {name} draws nothing; leave it out.")


def _check_number(grid: dict[str, list[Any]], include: list[Any], variants: Any, seeds: Any) -> None:
    """Raise ``RecpeftError`` if there would be too many cells, before they are built."""
    crossed = math.prod(map(len, grid.values())) if grid or not include else 0
    number = (crossed + len(include)) * (1 + len(variants) if isinstance(variants, dict) else 1)
    number *= len(seeds) if isinstance(seeds, list) else 1
    if number > MOST_CELLS:
        many = f"{number:,}" if number < 10**18 else f"about 10^{math.log10(number):.0f}"
        raise RecpeftError(
            f"grid, include, variants and seeds make {many} cells, and a file has at most {MOST_CELLS:,}; cross fewer "
            "values, or make several files of it."
        )


def _check_variants(variants: Any, grid: dict[str, Any], include: list[dict[str, Any]]) -> None:
    if not isinstance(variants, dict) or not all(isinstance(of, dict) and of for of in variants.values()):
        raise RecpeftError(
            f"variants is {shown(variants)}; give a mapping of names to changes, each a mapping of dotted keys to "
            "values."
        )
    set_by_cells = [("grid", key) for key in grid] + [("include", key) for cell in include for key in cell]
    for name, changes in variants.items():
        _check_dotted(f"variants.{name}", changes)
        if name == BASE:
            raise RecpeftError(f"variants names {BASE}, which is the run without a change; give it another name.")
        for key, (part, other) in itertools.product(changes, set_by_cells):
            if f"{other}.".startswith(f"{key}.") or f"{key}.".startswith(f"{other}."):
                raise RecpeftError(f"variants.{name} and {part} both set {key}; leave it out of one.")


def _check_references(references: Any) -> None:
    rankers = plugins.names("rankers")

    def is_one(reference: Any) -> bool:
        if isinstance(reference, dict):
            return isinstance(reference.get("name"), str)
        return isinstance(reference, str) and (reference in (*_OF_THE_CELL, *rankers) or "." in reference)

    if not isinstance(references, list | tuple) or not all(map(is_one, references)):
        known = dict.fromkeys((*REFERENCES, SASREC, *rankers))
        raise RecpeftError(
            f"references is {shown(references)}; give a list out of {', '.join(known)}, each ranker also as a section "
            "with options, such as {name: ease, l2: [100]}, or by a module's dotted name."
        )


def _check_untrained_means_something(run: RunConfig, asked: Sequence[str]) -> None:
    """Raise ``RecpeftError`` if a randomly initialised head would rank untrained.

    Args:
        asked: references that the file names explicitly.
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
        raise RecpeftError(f"--set {shown(override)} is not key=value; write for example --set adapter.rank=16.")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise RecpeftError(f"--set {shown(override)}: {shown(text)} is not YAML ({error}); quote it.") from None
    if value is not None:
        base.pop(_OTHER_SEEDS.get(key, ""), None)
    if isinstance(base.get("grid"), dict):
        base["grid"].pop(key, None)
    if isinstance(base.get("search"), dict) and isinstance(base["search"].get("space"), dict):
        base["search"]["space"].pop(key, None)
    included = base.get("include") if isinstance(base.get("include"), list) else []
    taken = {
        "grid": list(base["grid"]) if isinstance(base.get("grid"), dict) else [],
        "include": [other for cell in included or [] if isinstance(cell, dict) for other in cell],
    }
    for part, others in taken.items():
        for other in others:
            if f"{other}.".startswith(f"{key}.") or f"{key}.".startswith(f"{other}."):
                raise RecpeftError(
                    f"--set {shown(override)} and {other} under {part} set the same values; set {other} instead, or "
                    f"--set {part}=null to leave {part} out."
                )
    set_value(base, key, value)


def set_value(target: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a dotted key to ``value``; each section on its path must be a mapping or absent."""
    *sections, last = dotted.split(".")
    if len(sections) > DEPTH:
        raise RecpeftError(f"{shown(dotted)} cannot be set: it has {len(sections)} dots; name a key of the config.")
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise RecpeftError(f"{dotted} cannot be set: {section} is no mapping; name the whole section.")
    target[last] = value
