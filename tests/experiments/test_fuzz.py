"""Configs and records that nobody would write: each is answered by a sentence, or taken, and nothing hangs.

``RECPEFT_FUZZ=2000`` draws so many examples, anew each time; without it a few are drawn, always the same.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import shutil
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import polars as pl
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from records import failure_of, record_of

from experiments import load_results, load_runs, recommend
from experiments.config.grid import expand
from experiments.config.run import PLUGIN_SECTIONS, RankerRun, TextRun
from experiments.config.search import SearchConfig, build_search, load_search
from experiments.records.record import run_folder, write_record
from experiments.reporting import write_report
from experiments.study.plan import PLAN_FILE, cells, recall, remember, show
from recpeft import plugins
from recpeft.errors import RecpeftError
from slurm import Options, read_manifest, read_options

EXAMPLES = int(os.environ.get("RECPEFT_FUZZ", "0"))
fuzzed = settings(
    max_examples=EXAMPLES or 40,
    derandomize=not EXAMPLES,
    deadline=None,  # a test among others may have to wait for a core: see SECONDS
    database=None,
    suppress_health_check=list(HealthCheck),
)

fuzzed_files = settings(fuzzed, max_examples=EXAMPLES or 8)
"""Where each example takes a second, for a report or a model."""

SECONDS = 5 if EXAMPLES else 20
"""Most of the processor's time that an answer may take; a page on a busy machine has taken 6."""

# Thousands of examples take longer than any other test may.
pytestmark = [pytest.mark.timeout(0)] if EXAMPLES else []

LONG = "x" * 5000
TEXTS = [
    "",
    " ",
    "\0",
    "a\nb",
    "\x1b[31m",
    "../..",
    LONG,
    "{{ (",
    "{{ title * 9 ** 9 }}",
    "~",
    "ndcg@10",
    "lora",
    "ease",
]
NUMBERS = [0, -1, 1, 2, 10, 2**31, 2**63, 10**30, 10**4000, 0.0, -0.5, 1e-300, 1e300, math.nan, math.inf]
leaf = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.integers(),
    st.floats(),
    st.sampled_from(TEXTS),
    st.text(max_size=20),
    st.dates(),
)
key = st.one_of(
    st.text(max_size=8), st.integers(-1, 9), st.booleans(), st.dates(), st.sampled_from(["name", "a.b", LONG])
)
junk = st.recursive(
    leaf, lambda part: st.lists(part, max_size=3) | st.dictionaries(key, part, max_size=3), max_leaves=6
)
as_json = st.recursive(
    st.none() | st.booleans() | st.sampled_from([n for n in NUMBERS if n != 10**4000]) | st.sampled_from(TEXTS),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.sampled_from([*TEXTS, "name"]), part, max_size=3),
    max_leaves=6,
)


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """What is within may succeed, or raise the user's error with one short sentence, and soon."""
    sentence, begin = "", time.process_time()
    try:
        yield
    except RecpeftError as error:
        sentence = str(error)
    assert time.process_time() - begin < SECONDS
    assert "\n" not in sentence, sentence
    assert len(sentence) < 3000, sentence


# Configs -------------------------------------------------------------------------------------------------


def values_of(annotation: Any, folder: tuple[str, str] | None = None) -> st.SearchStrategy[Any]:
    """What a field of this type may hold, as a file would say it, or anything else."""
    return st.one_of(fitting(annotation, folder), junk)


def fitting(annotation: Any, folder: tuple[str, str] | None = None) -> st.SearchStrategy[Any]:
    if folder is not None:
        names = st.sampled_from(plugins.names(folder[0]))
        return names.flatmap(lambda name: section(plugins.config_class(folder[0], name), {folder[1]: name}))
    origin = get_origin(annotation)
    if origin is Annotated:
        return fitting(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return st.one_of([fitting(part) for part in get_args(annotation)])
    if origin in (tuple, list):
        return st.lists(fitting(get_args(annotation)[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(st.sampled_from(["adapter.rank", "training.max_steps", "a"]), junk, max_size=3)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return section(annotation, {})
    return st.text(max_size=9) if annotation in (Path, Any) else st.from_type(annotation)


def section(cls: type[BaseModel], fixed: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping with some of a config's keys, and now and then one that it does not have."""
    options = {name: st.deferred(lambda f=field: values_of(f.annotation)) for name, field in cls.model_fields.items()}
    chosen = st.lists(st.sampled_from(sorted(options)), max_size=4, unique=True)
    made = chosen.flatmap(lambda names: st.fixed_dictionaries({name: options[name] for name in names}))
    return st.builds(
        lambda some, other: {**some, **other, **fixed}, made, st.just({}) | st.dictionaries(key, junk, max_size=1)
    )


CELL: dict[str, Any] = {
    "study": "study",
    "data": {"source": "movielens"},
    "backbone": {"name": "tiny"},
    "adapter": {"method": "lora"},
    "formulation": {"name": "two_tower"},
    "loss": {"name": "listwise_softmax"},
}
RANKER: dict[str, Any] = {"study": "study", "data": {"source": "movielens"}, "ranker": {"name": "ease"}}
DOTTED = st.sampled_from(
    ["adapter.rank", "seed", "data", "training.max_steps", "a", "adapter.method", "backbone.width"]
)
FILE_KEYS: dict[str, st.SearchStrategy[Any]] = {
    "grid": st.dictionaries(DOTTED, st.lists(junk, max_size=3), max_size=3),
    "include": st.lists(st.dictionaries(DOTTED, junk, max_size=2), max_size=3),
    "exclude": st.lists(st.dictionaries(DOTTED, junk, max_size=2), max_size=2),
    "seeds": st.lists(st.integers(-1, 9) | junk, max_size=4),
    "variants": st.dictionaries(key, st.dictionaries(DOTTED, junk, max_size=2), max_size=3),
    "references": st.lists(st.sampled_from(["ease", "frozen"]) | junk, max_size=3),
    "extends": junk,
    "search": section(SearchConfig, {}),
}


@st.composite
def experiments(draw: st.DrawFn) -> dict[str, Any]:
    """An experiment file's content: one that is right, with a few sections drawn anew."""
    content = copy.deepcopy(draw(st.sampled_from([CELL, CELL, RANKER])))
    fields = (RankerRun if "ranker" in content else TextRun).model_fields
    for name in draw(st.lists(st.sampled_from([*fields, *FILE_KEYS]), min_size=1, max_size=3, unique=True)):
        if name in FILE_KEYS:
            content[name] = draw(st.one_of(FILE_KEYS[name], FILE_KEYS[name], junk))
            continue
        drawn = draw(values_of(fields[name].annotation, PLUGIN_SECTIONS.get(name)))
        both = isinstance(drawn, dict) and isinstance(content.get(name), dict) and draw(st.booleans())
        content[name] = content[name] | drawn if both else drawn
    return content


@fuzzed
@given(experiments())
def test_every_config_is_taken_or_refused_by_a_sentence(content: dict[str, Any]) -> None:
    with answered():
        load_runs(copy.deepcopy(content))
    if isinstance(content.get("search"), dict):
        with answered():
            build_search(copy.deepcopy(content))


SNIPPETS = [
    "[",
    "]",
    "{",
    "}",
    ": ",
    "- ",
    "&a ",
    "*a",
    "!!int ",
    "!!set ",
    "2024-02-30",
    '"\\0"',
    "\t",
    "\n",
    "? ",
    "<<: ",
    "|",
    ">",
    "'",
]


@fuzzed
@given(st.data())
def test_every_text_is_taken_or_refused_by_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = tmp_path_factory.mktemp("file") / "file.yaml"
    text = yaml.safe_dump(CELL | {"grid": {"adapter.rank": [4, 8]}, "prompt": {"item": "{{ title }}"}}, sort_keys=False)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 12))
        new = data.draw(st.sampled_from(SNIPPETS) | st.text(max_size=6))
        text = text[:at] + new * data.draw(st.sampled_from([1, 1, 2, 2000])) + text[at + cut :]
    file.write_bytes(text.encode(data.draw(st.sampled_from(["utf-8", "utf-8", "utf-16"])), "surrogatepass"))
    override = data.draw(st.sampled_from(["", "adapter.rank="])) + data.draw(
        st.text(max_size=10) | st.sampled_from(SNIPPETS)
    )
    for read in (load_runs, load_search, lambda path: load_runs(path, [override]), read_options):
        with answered():
            read(file)


@fuzzed
@given(section(Options, {}))
def test_every_sites_file_is_taken_or_refused_by_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]
) -> None:
    file = tmp_path_factory.mktemp("file") / "site.yaml"
    try:
        file.write_text(yaml.safe_dump(content, allow_unicode=True))
    except ValueError:  # Python writes no whole number of 4,300 digits
        return
    with answered():
        read_options(file)


# Records -------------------------------------------------------------------------------------------------


def places(tree: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, part in parts:
        yield from places(part, (*place, name))


BROKEN = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"[" * 30_000,
    b'{"schema": ' + b"9" * 5000 + b"}",
    b"\xff\xfe\0",
    b'"' + b"x" * 9000 + b'"',
]


def damage(path: Path, data: st.DataObject) -> None:
    """Put something else into a file, at a place or as a whole."""
    if path.suffix != ".json":
        damage_bytes(path, data)
        return
    if data.draw(st.integers(0, 9)) == 0:
        path.write_bytes(data.draw(st.sampled_from(BROKEN)))
        return
    tree = [json.loads(path.read_text())]
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from([place for place in places(tree) if place]))
        owner = tree
        for name in place[:-1]:
            owner = owner[name]
        if data.draw(st.booleans()) and isinstance(owner, dict):
            del owner[place[-1]]
        else:
            owner[place[-1]] = data.draw(as_json)
    path.write_text(json.dumps(tree[0]))


ODD = [None, -1, 10**12, math.nan, "x", [1], {"a": 1}]


def damage_bytes(path: Path, data: st.DataObject) -> None:
    """Cut a file off, or put other bytes into it."""
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)) | st.integers(0, min(12, len(content))))
        if data.draw(st.booleans()):
            content[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
        else:
            del content[at:]
    path.write_bytes(bytes(content))


def damage_table(path: Path, data: st.DataObject) -> None:
    """Have a Parquet file hold other rows or columns."""
    table = pl.read_parquet(path)
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from(table.columns))
        what = data.draw(st.sampled_from(["drop", "none", "few", "twice", *["odd"] * 4]))
        if what == "drop":
            table = table.drop(name)
        elif what == "twice":
            table = pl.concat([table, table])
        elif what in ("none", "few"):
            table = table.head(0 if what == "none" else 3)
        else:
            new = pl.Series([data.draw(st.sampled_from(ODD))] * len(table), strict=False)
            if new.dtype in (pl.Null, table[name].dtype) and data.draw(st.booleans()):
                new = pl.select(pl.when(pl.int_range(len(new)) % 3 == 0).then(new).otherwise(table[name])).to_series()
            table = table.with_columns(new.alias(name))
    table.write_parquet(path)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder, as runs would leave it, with its plan and a submission."""
    out = tmp_path_factory.mktemp("study")
    loss = {
        "name": "weighted_sum",
        "parts": [{"weight": 0.5, "loss": {"name": "bpr"}}, {"weight": 1.0, "loss": {"name": "bce"}}],
    }
    runs = expand(
        CELL | {"loss": loss, "grid": {"adapter.rank": [4, 8]}, "seeds": [0, 1], "references": ["ease", "frozen"]}
    )
    remember(runs, out)
    for number, run in enumerate(runs):
        more: dict[str, Any] = {
            "test": {"ndcg@10": number / 10, "users": 4, "recall@10": None, "ndcg_gap_gender@10": 0.1},
            "trace": [{"step": step, "train_loss": 0.5, "validation": {"ndcg@10": 0.1}} for step in (1, 2)],
            "intervals": {"ndcg_gap_gender@10": {"low": 0.0, "high": 0.2, "users": {"F": 2, "M": 2}}},
            "diagnostics": {"batch": 0.1, "padding": 0.0, "standard_deviation": 1.0},
            "certificate": {"reload": {"largest_difference_in_score_sd": 0.1}},
            "chosen": {"l2": 1.0} if run.method == "ease" else {},
        }
        folder = run_folder(out, "study", run.run_id)
        write_record(folder, failure_of(run) if number == 2 else record_of(run, **more))
        pl.DataFrame({"raw_id": list("abcd"), "ndcg@10": [0.1, 0.2, 0.3, number / 10]}).write_parquet(folder.per_user)
    write_report(out / "study", page=True)  # has imported what takes seconds
    slurm = out / "study" / "slurm" / "001"
    slurm.mkdir(parents=True)
    cells_of = [
        {"index": n, "run_id": run.run_id, "config": run.model_dump(mode="json"), "label": "x"}
        for n, run in enumerate(runs)
    ]
    manifest = {
        "schema_version": 1,
        "study": "study",
        "out": str(out),
        "working_directory": "/",
        "created": "now",
        "options": {},
    }
    (slurm / "manifest.json").write_text(json.dumps(manifest | {"cells": cells_of, "jobs": []}))
    return out / "study"


@fuzzed_files
@given(st.data())
def test_a_damaged_record_is_left_out_or_refused_by_a_sentence(
    study: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("copy") / "study"
    shutil.copytree(study, folder)
    files = [*sorted(folder.glob("*/result.json"))[:3], folder / PLAN_FILE, folder / "slurm" / "001" / "manifest.json"]
    for path in files:
        if data.draw(st.booleans()):
            damage(path, data)
    for path in sorted(folder.glob("*/per_user.parquet"))[:3]:
        if data.draw(st.integers(0, 3)) == 0:
            data.draw(st.sampled_from([damage_bytes, damage_table]))(path, data)
    with answered():
        write_report(folder, page=data.draw(st.integers(0, 15)) == 0)
    with answered():
        load_results(folder)
    with answered():
        show(cells(recall(study), folder.parent), "study")
    with answered():
        show(cells(recall(folder), folder.parent), "study")
    with answered():
        read_manifest(folder / "slurm" / "001" / "manifest.json")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, study_file: Path) -> Path:
    """The folder of a finished run."""
    from experiments.study.serial import run_study

    out = tmp_path_factory.mktemp("trained")
    (config,) = load_runs(study_file, ["training.max_steps=1"])
    assert run_study([config], out) == 0
    folder = run_folder(out, config.study, config.run_id)
    recommend(folder.path, ["1"])
    assert folder.encodings.exists()
    return folder.path


@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", "head.safetensors"])
def test_weights_that_are_no_numbers_are_refused_by_their_name(name: str, trained: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from experiments.finished.export import export_adapter

    folder = Path(shutil.copytree(trained, tmp_path / trained.parent.name / trained.name))
    weights = load_file(folder / name)
    next(iter(weights.values())).view(-1)[-1] = math.nan
    save_file(weights, folder / name)
    with pytest.raises(RecpeftError, match=f"{name} holds NaN or infinity in .*; train again"):
        recommend(folder, ["1"])
    with pytest.raises(RecpeftError, match=f"{name} holds NaN or infinity in .*; train again"):
        export_adapter(folder, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@fuzzed_files
@given(st.data())
def test_a_damaged_run_is_refused_by_a_sentence_or_used(
    trained: Path, study_file: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    from experiments.cell.train import run
    from experiments.finished.check_certificate import check_certificate
    from experiments.finished.export import export_adapter

    folder = tmp_path_factory.mktemp("copy") / trained.parent.name / trained.name
    shutil.copytree(trained, folder)
    texts = ["result.json", "adapter/adapter_config.json", "adapter/backbone.json"]
    tables = ["per_user.parquet", "test_lists.parquet", "validation_lists.parquet"]
    weights = ["adapter/adapter_model.safetensors", "head.safetensors", "encodings.safetensors"]
    path = folder / data.draw(st.sampled_from([*texts, *texts, *tables, *tables, *weights]))
    uses: list[Callable[[], object]] = [
        lambda: check_certificate(folder),
        lambda: recommend(folder, ["1"]),
        lambda: recommend(folder, ["1"], as_tested=True),
        lambda: export_adapter(folder, folder.parent / "exported"),
        lambda: write_report(folder.parent, page=data.draw(st.integers(0, 3)) == 0),
    ]
    if path.suffix == ".parquet":
        data.draw(st.sampled_from([damage_bytes, damage_table, damage_table]))(path, data)
        if data.draw(st.booleans()):  # nothing tells that the file is another
            record = json.loads((folder / "result.json").read_text())
            (folder / "result.json").write_text(json.dumps(record | {"certificate": {}}))
        stage = "diversify={method: mmr, strength: 0.5, depth: 5}"
        after = load_runs(study_file, ["training.max_steps=1", stage])[-1]
        uses = [uses[0], uses[4], lambda: run(after, folder.parents[1])]
    else:
        damage(path, data)
    with answered():
        data.draw(st.sampled_from(uses))()
