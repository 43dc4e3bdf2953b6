"""Configs: a hash over every leaf, classes of plug-ins, sentences for mistakes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import Field

from datamodules._filters import Filter
from experiments.config.grid import load_runs
from experiments.config.run import RunConfig, TextRun, build_run
from experiments.config.schema import experiment_schema
from experiments.config.training import TrainingConfig
from rankers._base import RankerConfig
from recpeft.config import Config
from recpeft.errors import RecpeftError

CONFIGS = Path(__file__).resolve().parents[2] / "experiments" / "configs"


def quickstart() -> list[RunConfig]:
    return load_runs(CONFIGS / "quickstart.yaml")


def leaves(config: Config, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name in type(config).model_fields:
        value = getattr(config, name)
        found += leaves(value, (*prefix, name)) if isinstance(value, Config) else [(*prefix, name)]
    return found


def other(value: Any) -> Any:
    """A value of the same kind that is not the same."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, tuple):
        return value[:-1] if value else ("x",)
    return f"{value}x"


def changed(config: Config, path: tuple[str, ...]) -> Config:
    value = getattr(config, path[0])
    if path == ("filters",):
        new: Any = (Filter(min_rating=4),)
    else:
        new = changed(value, path[1:]) if len(path) > 1 else other(value)
    return config.model_copy(update={path[0]: new})


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("method", ["lora", "frozen", "ease"])
def test_every_leaf_of_a_config_changes_run_id(method: str) -> None:
    run = next(run for run in quickstart() if run.method == method)
    # A name alone, and how a run is executed and watched.
    unnamed = {"variant", "threads", "distributed", "trackers", *RankerConfig.HOW}
    paths = [path for path in leaves(run) if unnamed.isdisjoint(path)]
    assert len(paths) > (30 if method != "ease" else 10)
    ids = {run.run_id}
    for path in paths:
        ids.add(changed(run, path).run_id)  # type: ignore[attr-defined]
    assert len(ids) == len(paths) + 1


def test_two_ranks_never_share_a_record() -> None:
    ids = {
        load_runs(CONFIGS / "quickstart.yaml", ["include=[]", f"adapter.rank={rank}"])[-1].run_id for rank in (8, 16)
    }
    assert len(ids) == 2


@pytest.mark.parametrize(
    "override",
    [
        "adapter.rank=true",
        "adapter.rank=100000",
        "adapter={method: adalora, init_rank: 1000000000000000000000000000000}",
        "adapter={method: bottleneck, bottleneck_dim: 100000}",
        "seed=true",
        "seeds=[true]",
        "threads=true",
        "threads=100000",
        "distributed.devices=100000",
        "training.max_steps=true",
        "training.max_steps=1000000000000",
        "training.learning_rate=true",
        "training.negatives={uniform: 1000000}",
        "prompt.max_user_tokens=true",
        "data.filters=[{k_core: true}]",
        "data.split.seed=10000000000000000000000",
        "evaluation.k=[true, 10]",
        "evaluation.mask_seen=1",
        "data.liked_from=true",
    ],
)
def test_what_is_no_number_or_no_size_is_refused(override: str) -> None:
    key = override.partition("=")[0].partition(".")[2] or override.partition("=")[0]
    with pytest.raises(RecpeftError, match=rf"{key}\b.* (is|\[)"):
        load_runs(CONFIGS / "quickstart.yaml", ["include=[]", override])


def test_yamls_text_1e_3_is_still_a_learning_rate() -> None:
    run = load_runs(CONFIGS / "quickstart.yaml", ["include=[]", "training.learning_rate=1e-3"])[-1]
    assert run.model_dump()["training"]["learning_rate"] == 0.001


def test_seed_0_is_a_seed() -> None:
    runs = [load_runs(CONFIGS / "quickstart.yaml", ["include=[]", f"seed={seed}"])[-1] for seed in (0, 1)]
    assert runs[0].run_id != runs[1].run_id
    assert "seed" in runs[0].model_dump()
    assert runs[0].model_dump()["seed"] == 0


def test_a_config_survives_the_way_through_a_record() -> None:
    for run in quickstart():
        assert build_run(run.model_dump(mode="json")) == run
        assert build_run(run.model_dump(mode="json")).run_id == run.run_id


def test_every_field_is_documented() -> None:
    for run in quickstart():
        sections = [value for name in type(run).model_fields if isinstance(value := getattr(run, name), Config)]
        for section in sections:
            for name, field in type(section).model_fields.items():
                plugin_name = name in ("source", "method", "name")
                assert field.description or plugin_name, f"{type(section).__module__}.{name}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"adapter": {"method": "lora", "rnk": 3}}, ["adapter.rnk", "did you mean rank", "alpha"]),
        ({"adapter": {"method": "lora", "rank": 0}}, ["adapter.rank", "0", "greater than 0"]),
        ({"adapter": {"method": "lroa"}}, ["lroa", "frozen", "lora", "zero_shot"]),
        ({"adapter": {"rank": 4}}, ["adapter.method", "lora"]),
        ({"adapter": "lora"}, ["adapter", "'lora'", "mapping"]),
        ({"data": {"source": "movielense"}}, ["movielense", "movielens"]),
        ({"backbone": {"name": "x", "width": "int4"}}, ["backbone.width", "int4", "nf4", "int8"]),
        ({"backbone": {}}, ["backbone.name", "missing"]),
        ({"training": {"max_step": 3}}, ["training.max_step", "did you mean max_steps"]),
        ({"training": {"max_steps": "many"}}, ["training.max_steps", "many", "integer"]),
        ({"evaluation": {"monitor": "ndcg@7"}}, ["ndcg@7", "ndcg@10"]),
        ({"prompt": {"item": "{{ title"}}, ["prompt.item", "Jinja"]),
        ({"study": "a; rm -rf x"}, ["study", "a; rm -rf x"]),
        ({"sede": 1}, ["sede", "did you mean seed"]),
    ],
)
def test_a_mistake_is_one_sentence_with_key_value_and_what_is_allowed(change: dict[str, Any], words: list[str]) -> None:
    raw = quickstart()[-1].model_dump(mode="json") | change
    with pytest.raises(RecpeftError) as error:
        build_run(raw)
    sentence = str(error.value)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence


# Sections that must fit each other -----------------------------------------------------------------------


def whole(**changes: Any) -> RunConfig:
    """A text run over made-up data whose sections are merged with ``changes``; a formulation or loss is replaced."""
    raw: dict[str, Any] = {
        "study": "fits",
        "data": {"source": "synthetic"},
        "backbone": {"name": "nowhere"},
        "adapter": {"method": "lora"},
        "formulation": {"name": "two_tower"},
        "loss": {"name": "bpr"},
        "training": {},
        "evaluation": {"k": [5], "monitor": "ndcg@5"},
    }
    for section, values in changes.items():
        raw[section] = values if section in ("formulation", "loss") else raw[section] | values
    return build_run(raw)


LISTWISE = {"name": "listwise_verbalizer"}
RATED = {"kind": "rated"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"evaluation": {"candidates": RATED}},
            "evaluation.candidates.kind is rated, which needs data.liked_from, the lowest rating that counts as liked; "
            "set it, and let data.filters keep what is disliked",
        ),
        (
            {"evaluation": {"candidates": {"kind": "uniform", "rolling": True}}},
            "rolling is for kind: rated, but kind is uniform; leave it out",
        ),
        ({"evaluation": {"candidates": {"rolling": True}}}, "rolling is for kind: rated, but kind is full"),
        (
            {"evaluation": {"candidates": {"kind": "first_stage"}}},
            "ranker is given with kind: first_stage, as {kind: first_stage, ranker: {name: ease}}",
        ),
        ({"evaluation": {"monitor": "auc"}}, "monitor is 'auc'; choose one of ndcg@5, recall@5, hit_rate@5, mrr@5"),
        (
            {"data": {"liked_from": 4}, "evaluation": {"candidates": RATED, "monitor": "auc@5"}},
            ", auc",  # beside the metrics of lists
        ),
        (
            {"formulation": LISTWISE},
            "formulation listwise_verbalizer ranks at most 20 items a user, but evaluation.candidates are full; give "
            "{kind: uniform, size: 19} or the like, or let a first stage propose (formulation: {name: two_stage, …})",
        ),
        (
            {"formulation": {**LISTWISE, "size": 8}, "evaluation": {"candidates": {"kind": "uniform", "size": 9}}},
            "formulation listwise_verbalizer ranks at most 8 items a user, but evaluation.candidates are 9; give "
            "{kind: uniform, size: 7}",
        ),
        (
            {
                "formulation": LISTWISE,
                "evaluation": {"candidates": {"kind": "uniform", "size": 19}},
                "training": {"negatives": {"hard": 2}},
            },
            "training.negatives.hard is mined from the whole catalogue, of which formulation listwise_verbalizer reads "
            "at most 20 items at once; use uniform or popularity",
        ),
        (
            {"formulation": {"name": "verbalizer"}, "training": {"gradient_checkpointing": "layers"}},
            "training.gradient_checkpointing does not go with formulation verbalizer",
        ),
        (
            {"training": {"negatives": {"disliked": 2}}},
            "training.negatives.disliked needs data.liked_from, which says what is disliked, and training.examples: "
            "users; set them",
        ),
        (
            {"data": {"liked_from": 4}, "training": {"negatives": {"disliked": 2}, "examples": "interactions"}},
            "training.negatives.disliked needs data.liked_from, which says what is disliked, and training.examples",
        ),
        (
            {"training": {"examples": "interactions", "positives_per_user": 3}},
            "training.positives_per_user is for training.examples: users, not interactions; leave it out",
        ),
        (
            {"training": {"examples": "interactions", "positive_window": 3}},
            "training.positive_window is for training.examples: users, not interactions; leave it out",
        ),
        (
            {"training": {"negatives": {"in_batch": False}}},
            "there are no negatives: training.negatives sets neither in_batch, uniform, popularity, hard nor disliked; "
            "set one",
        ),
        (
            {"training": {"negatives": {"in_batch": False}, "examples": "interactions"}, "loss": {"name": "bce"}},
            "there are no negatives",  # without data.liked_from no interaction is one
        ),
        ({"backbone": {"int8_threshold": 0.0}}, "int8_threshold is for width int8 but width is none; leave it out"),
    ],
)
def test_sections_that_do_not_fit_are_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecpeftError) as error:
        whole(**changes)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"liked_from": 4}, "evaluation": {"candidates": RATED, "monitor": "auc"}},
        {"data": {"liked_from": 4}, "evaluation": {"candidates": {**RATED, "rolling": True}}},
        {"formulation": LISTWISE, "evaluation": {"candidates": {"kind": "uniform", "size": 20}}},
        {"data": {"liked_from": 4}, "training": {"negatives": {"disliked": 2, "in_batch": False}}},
        {
            "data": {"liked_from": 4},
            "training": {"negatives": {"in_batch": False}, "examples": "interactions"},
            "loss": {"name": "bce"},
        },
        {"training": {"negatives": {"in_batch": False, "uniform": 3}, "examples": "interactions"}},
        {"backbone": {"width": "int8", "int8_threshold": 0.0}},
    ],
)
def test_sections_that_fit_are_taken_and_survive_the_way_through_a_record(changes: dict[str, Any]) -> None:
    run = whole(**changes)
    assert build_run(run.model_dump(mode="json")) == run


@pytest.mark.parametrize(
    ("candidates", "stamp"),
    [
        ("full", ""),
        ("rated", "/rated"),
        ({**RATED, "rolling": True}, "/rolling"),
        ({"kind": "uniform", "size": 9}, "/uniform9"),
        ({"kind": "popularity", "size": 9}, "/popularity9"),
        ({"kind": "first_stage", "size": 9, "ranker": {"name": "ease"}}, "/ease9"),
    ],
)
def test_metrics_say_what_was_ranked(candidates: Any, stamp: str) -> None:
    run = whole(data={"liked_from": 4}, evaluation={"candidates": candidates})
    assert run.evaluation.monitored == f"ndcg@5{stamp}"


class LaterTraining(TrainingConfig):
    ADDED: ClassVar[Mapping[str, Any]] = {"label_smoothing": 0.0}
    label_smoothing: float = 0.1
    """A field of a later version, whose default changed once from 0.0 to 0.1."""


class LaterRun(TextRun):
    ADDED: ClassVar[Mapping[str, Any]] = {"tuning": None, "options": {"depth": 1, "seeds": [0]}}
    training: LaterTraining = LaterTraining()
    tuning: int | None = None
    options: dict[str, Any] = Field(default={"depth": 1, "seeds": [0]})


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_new_field_renames_no_run_that_does_not_use_it(path: Path) -> None:
    for run in load_runs(path, ["search=null"]):
        if isinstance(run, TextRun):
            values = {name: getattr(run, name) for name in type(run).model_fields}
            first = LaterTraining(**run.training.model_dump(), label_smoothing=0.0)
            later = LaterRun(**values | {"training": first})
            assert later.run_id == run.run_id
            assert later.model_copy(update={"tuning": 8}).run_id != run.run_id
            assert later.model_copy(update={"options": {"depth": 2, "seeds": [0]}}).run_id != run.run_id
            # The changed default is another training, so it has another id.
            assert LaterRun(**values | {"training": LaterTraining(**run.training.model_dump())}).run_id != run.run_id


def test_shipped_files_keep_their_run_ids() -> None:
    kept = json.loads((Path(__file__).parent / "run_ids.json").read_text())
    found = {path.stem: [run.run_id for run in load_runs(path, ["search=null"])] for path in CONFIGS.glob("*.yaml")}
    assert {name: found[name] for name in kept} == kept


def test_every_entry_of_added_is_a_field() -> None:
    todo = [Config]
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        assert set(cls.ADDED) <= set(cls.model_fields), cls


def test_a_bad_entry_of_a_list_is_told_alone() -> None:
    with pytest.raises(RecpeftError, match=r"evaluation\.k\.0 is 0: input should be greater than 0$"):
        load_runs(CONFIGS / "quickstart.yaml", ["evaluation.k=[0]"])
    with pytest.raises(RecpeftError, match=r"evaluation\.k is \[\]: tuple should have at least 1 item"):
        load_runs(CONFIGS / "quickstart.yaml", ["evaluation.k=[]"])


def test_the_schema_takes_every_shipped_file_and_no_mistake() -> None:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items()}
        return [plain(part) for part in value] if isinstance(value, list) else str(value) if is_date(value) else value

    def is_date(value: Any) -> bool:
        return isinstance(value, date)

    validator = Draft202012Validator(experiment_schema())
    validator.check_schema(validator.schema)
    for path in CONFIGS.glob("*.yaml"):
        assert validator.is_valid(plain(yaml.safe_load(path.read_text()))), path
    content = plain(yaml.safe_load((CONFIGS / "quickstart.yaml").read_text()))
    for section, mistake in (
        ("adapter", {"method": "lora", "rnk": 8}),
        ("adapter", {"method": "lora", "rank": "eight"}),
        ("adapter", {"rank": 8}),
        ("training", {"max_step": 3}),
        ("loss", {"name": "softmx"}),
        ("formulatoin", {"name": "two_tower"}),
        ("data", {"source": "movielens", "split": {"kind": "fixed"}}),
    ):
        assert not validator.is_valid(content | {section: mistake}), (section, mistake)
    assert validator.is_valid(content | {"adapter": {"method": "my_package.my_adapter", "strength": 3}})
