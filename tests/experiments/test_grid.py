"""Experiment files: expansion, references, overrides, mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from experiments.config.grid import expand, is_reference, load_runs
from experiments.config.run import RankerRun, TextRun
from experiments.config.search import load_search
from recpeft.errors import RecpeftError

CONFIGS = Path(__file__).resolve().parents[2] / "experiments" / "configs"
QUICKSTART = CONFIGS / "quickstart.yaml"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_yaml_expands_and_validates(path: Path) -> None:
    search = load_search(path)
    runs = load_runs(path) if search is None else search.final({})
    assert len(runs) == len({run.run_id for run in runs})


def test_the_quickstart_has_its_four_references_and_four_methods() -> None:
    assert [(run.method, run.width) for run in load_runs(QUICKSTART)] == [
        ("popularity", "–"),
        ("ease", "–"),
        ("zero_shot", "none"),
        ("frozen", "none"),
        ("lora", "none"),
        ("lora", "nf4"),
        ("adalora", "nf4"),
        ("bottleneck", "nf4"),
        ("prefix_tuning", "nf4"),
    ]


def test_the_control_differs_from_its_cell_in_adapter_and_width_alone() -> None:
    runs = load_runs(QUICKSTART)
    control = next(run for run in runs if run.method == "frozen").model_dump()
    cell = next(run for run in runs if run.width == "nf4").model_dump()
    assert control.pop("adapter") == {"method": "frozen", "learning_rate": None}
    assert cell.pop("adapter")["rank"] == 16
    assert (control["backbone"].pop("width"), cell["backbone"].pop("width")) == ("none", "nf4")
    assert control == cell


def test_cells_that_differ_in_learning_share_a_zero_shot_row_and_have_controls_of_their_own() -> None:
    base = yaml.safe_load(QUICKSTART.read_text()) | {"include": []}
    base["grid"] = {"training.learning_rate": [1e-3, 1e-4], "seed": [0, 1]}
    methods = [run.method for run in expand(base)]
    assert methods.count("popularity") == methods.count("ease") == methods.count("zero_shot") == 1
    assert methods.count("frozen") == methods.count("lora") == 4


def test_a_grid_is_the_product_of_its_lists() -> None:
    base = yaml.safe_load(QUICKSTART.read_text()) | {"references": [], "include": []}
    base["grid"] = {"adapter.rank": [4, 8], "backbone.width": ["none", "nf4"]}
    runs = expand(base)
    assert all(isinstance(run, TextRun) for run in runs)
    assert [(run.adapter.rank, run.width) for run in runs] == [  # type: ignore[union-attr]
        (4, "none"), (4, "nf4"), (8, "none"), (8, "nf4"),
    ]  # fmt: skip


def test_an_override_takes_the_place_of_the_file_and_of_a_grid_over_its_key() -> None:
    runs = load_runs(QUICKSTART, ["include=[]", "backbone.width=nf4", "adapter.rank=4", "references=[ease]"])
    assert [(run.method, run.width) for run in runs] == [("ease", "–"), ("lora", "nf4")]
    assert isinstance(runs[0], RankerRun)
    assert is_reference(runs[0])
    assert runs[1].adapter.rank == 4  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("adapter.rank", ["--set", "key=value"]),
        ("adapter.rank=[", ["--set", "not YAML"]),
        ("study.name=x", ["study.name", "no mapping"]),
        ("grid.seed=[]", ["grid.seed", "list"]),
        ("grid={seed: [0, 0]}", ["seed=0", "twice"]),
        ("grid={adapter.rank: [4, -1]}", ["adapter.rank=-1", "greater than 0"]),
        ("references=[[ease]]", ["references", "popularity, ease, zero_shot, frozen"]),
        ("references=[easy]", ["easy", "popularity, ease, zero_shot, frozen"]),
    ],
)
def test_a_mistake_in_an_override_or_grid_names_it(override: str, words: list[str]) -> None:
    with pytest.raises(RecpeftError) as error:
        load_runs(QUICKSTART, ["include=[]", override])
    for word in [str(QUICKSTART), *words]:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("study: [", ["line", "mend the YAML"]),
        ("- a\n- b\n", ["no mapping"]),
        ("study: x\nseed: 1\nseed: 2\n", ["the key seed stands there a second time", "line 3"]),
        ("study: x\ngird: {}\n", ["unknown key gird", "grid"]),
        ("!!python/object/apply:os.system ['true']", ["YAML"]),
    ],
)
def test_a_file_that_is_no_experiment_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(RecpeftError) as error:
        load_runs(path)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_an_override_that_a_grid_over_its_section_would_undo_is_refused() -> None:
    base = yaml.safe_load(QUICKSTART.read_text()) | {"include": []}
    base["grid"] = {"adapter": [{"method": "lora", "rank": 4}]}
    with pytest.raises(RecpeftError, match=r"adapter\.rank=32.* and adapter under grid set the same values"):
        expand(base, ["adapter.rank=32"])


def test_a_file_of_rankers_alone_needs_no_backbone() -> None:
    base = yaml.safe_load(QUICKSTART.read_text())
    base = {"study": "rankers", "data": base["data"], "evaluation": base["evaluation"], "ranker": {"name": "ease"}}
    assert [run.method for run in expand(base)] == ["popularity", "ease"]
    del base["ranker"]
    assert [run.method for run in expand(base | {"references": ["ease", "popularity"]})] == ["ease", "popularity"]
    each = expand(base | {"references": ["ease"], "grid": {"data.split": ["leave_one_out", "random_ratio"]}})
    assert [run.data.split.kind for run in each] == ["leave_one_out", "random_ratio"]
    # What is to be compared with them is there but for its backbone; or nothing says what there is to be.
    for more in ({"references": ["ease"], "adapter": {"method": "frozen"}}, {"references": ["ease", "frozen"]}, {}):
        with pytest.raises(RecpeftError, match="backbone is missing"):
            expand(base | more)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecpeftError, match=r"there is no file .*none\.yaml"):
        load_runs(tmp_path / "none.yaml")


# Included cells ----------------------------------------------------------------------------------------


def cells(**changes: object) -> list[tuple[str, str]]:
    base = yaml.safe_load(QUICKSTART.read_text()) | {"references": [], "grid": {}, "include": []} | changes
    return [(run.method, run.width) for run in expand(base)]


def test_included_cells_follow_the_grids() -> None:
    grid = {"backbone.width": ["none", "nf4"]}
    include = [{"adapter": {"method": "frozen"}, "backbone.width": "int8"}]
    assert cells(grid=grid, include=include) == [("lora", "none"), ("lora", "nf4"), ("frozen", "int8")]


def test_included_cells_without_a_grid_are_all_there_is() -> None:
    assert cells(include=[{"backbone.width": "nf4"}]) == [("lora", "nf4")]
    assert cells() == [("lora", "none")]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"include": {"seed": 1}}, "include is .* give a list of cells"),
        ({"include": [{}]}, "include is .* give a list of cells"),
        ({"include": [{"adapter.rank": 0}]}, r"in the cell adapter\.rank=0: .*greater than 0"),
        ({"grid": {"seed": [0, 1]}, "include": [{"seed": 1}]}, "the cell seed=1 stands twice in grid and include"),
    ],
)
def test_a_wrong_include_is_a_sentence(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(RecpeftError, match=sentence):
        cells(**changes)


def test_included_values_are_not_shared_between_cells() -> None:
    shared = {"method": "lora", "rank": 4}
    base = yaml.safe_load(QUICKSTART.read_text()) | {"references": [], "grid": {}}
    runs = expand(base | {"include": [{"adapter": shared, "adapter.rank": 2}, {"adapter": shared}]})
    assert [run.model_dump()["adapter"]["rank"] for run in runs] == [2, 4]


# Heads that are drawn at random ------------------------------------------------------------------------

TWO_TOWER = {"name": "two_tower"}
NETWORK = {"name": "two_tower", "score": "mlp"}
CROSS = {"name": "cross_encoder"}


def methods(formulations: list[dict[str, str]], **changes: object) -> list[tuple[str, str]]:
    """Formulation and method of each text row."""
    base = yaml.safe_load(QUICKSTART.read_text()) | {"include": [], "grid": {"formulation": formulations}} | changes
    return [(run.formulation.name, run.method) for run in expand(base) if isinstance(run, TextRun)]


@pytest.mark.parametrize("formulation", [NETWORK, CROSS])
def test_a_head_drawn_at_random_has_no_zero_shot_row_and_to_ask_for_one_is_refused(formulation: dict[str, str]) -> None:
    name = formulation["name"]
    assert methods([formulation]) == [(name, "frozen"), (name, "lora")]
    assert methods([formulation], references=["frozen"]) == [(name, "frozen"), (name, "lora")]
    for changes in ({"references": ["ease", "zero_shot"]}, {"adapter": {"method": "zero_shot"}}):
        where = "references names" if "references" in changes else r"adapter\.method is"
        with pytest.raises(
            RecpeftError, match=f"in the cell .*: {where} zero_shot but the head of formulation {name} "
        ):
            methods([formulation], **changes)


def test_of_several_formulations_those_have_zero_shot_that_can() -> None:
    assert methods([TWO_TOWER, CROSS]) == [
        ("two_tower", "zero_shot"),
        ("two_tower", "frozen"),
        ("cross_encoder", "frozen"),
        ("two_tower", "lora"),
        ("cross_encoder", "lora"),
    ]


def test_zero_shot_has_the_plain_loss_whatever_the_cell_learns_by() -> None:
    base = yaml.safe_load(QUICKSTART.read_text()) | {"include": []}
    losses = [{"name": "weighted_sum", "parts": [{"loss": {"name": "bpr"}}]}, {"name": "mse"}, base["loss"]]
    runs = [run for run in expand(base | {"grid": {"loss": losses}}) if isinstance(run, TextRun)]
    assert [run.loss.model_dump() for run in runs if run.method == "zero_shot"] == [
        {"name": "listwise_softmax", "label_smoothing": 0.0, "rating_weight": False, "logq": True}
    ]
    assert [run.loss.name for run in runs if run.method == "frozen"] == ["weighted_sum", "mse", "listwise_softmax"]
