"""Seeds, exclusions, variants and files that extend another: which cells there are, and mistakes told before a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.config.grid import expand, load_runs
from experiments.config.run import TextRun
from recpeft.errors import RecpeftError

CONFIGS = Path(__file__).resolve().parents[2] / "experiments" / "configs"


def base(**more: Any) -> dict[str, Any]:
    content = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text()) | {"references": [], "include": []} | more
    if "seeds" in more:
        del content["seed"]
    return content


def texts(raw: dict[str, Any]) -> list[TextRun]:
    runs = expand(raw)
    return [run for run in runs if isinstance(run, TextRun)]


def test_seeds_cross_the_cells() -> None:
    runs = texts(base(grid={"adapter.rank": [4, 8]}, seeds=[0, 3, 7]))
    assert [(run.adapter.rank, run.seed) for run in runs] == [(r, s) for r in (4, 8) for s in (0, 3, 7)]  # type: ignore[attr-defined]
    assert len({run.run_id for run in runs}) == 6


def test_excluded_cells_are_left_out_and_the_others_are_what_they_were() -> None:
    grid = {"adapter.rank": [4, 8], "backbone.width": ["none", "nf4"]}
    every = {run.run_id for run in texts(base(grid=grid))}
    runs = texts(base(grid=grid, exclude=[{"adapter.rank": 8, "backbone.width": "nf4"}]))
    assert [(run.adapter.rank, run.width) for run in runs] == [(4, "none"), (4, "nf4"), (8, "none")]  # type: ignore[attr-defined]
    assert {run.run_id for run in runs} < every


def test_variants_are_the_base_and_one_change_each() -> None:
    raw = base(grid={}, variants={"low": {"adapter.rank": 2}, "no_history": {"prompt.history": 1}}, seeds=[0, 1])
    runs = texts(raw)
    assert [(run.variant, run.seed) for run in runs] == [(v, s) for v in ("base", "low", "no_history") for s in (0, 1)]
    plain = texts(base(grid={}))[0].model_dump() | {"variant": "base"}
    assert runs[0].model_dump() == plain
    assert runs[0].run_id == texts(base(grid={}))[0].run_id  # a name does not make another run
    (change,) = [key for key in plain if runs[2].model_dump()[key] != plain[key] and key != "variant"]
    assert change == "adapter"


def test_a_variants_references_are_shared_where_they_are_the_same() -> None:
    raw = base(grid={}, variants={"low": {"adapter.rank": 2}}, references=["popularity", "frozen"])
    assert [run.method for run in expand(raw)] == ["popularity", "frozen", "lora", "lora"]


def test_a_file_extends_another_section_by_section(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base(grid={"adapter.rank": [4, 8]})))
    (tmp_path / "more").mkdir()
    child = "extends: ../base.yaml\nstudy: child\ntraining: {max_steps: 7}\ngrid: {backbone.width: [none, nf4]}\n"
    (tmp_path / "more" / "child.yaml").write_text(child)
    parent, runs = load_runs(tmp_path / "base.yaml"), load_runs(tmp_path / "more" / "child.yaml")
    assert [run.study for run in runs] == ["child", "child"]
    assert [run.width for run in runs] == ["none", "nf4"]  # the grid is the child's own
    first, other = parent[0].model_dump(), runs[0].model_dump()
    assert other["training"] == first["training"] | {"max_steps": 7}
    assert other["prompt"] == first["prompt"]


def test_another_plug_in_takes_the_place_of_its_section(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base(grid={})))  # LoRA with a rank and an alpha
    (tmp_path / "child.yaml").write_text("extends: base.yaml\nadapter: {method: ia3}\n")
    (run,) = load_runs(tmp_path / "child.yaml")
    assert run.method == "ia3"
    (tmp_path / "same.yaml").write_text("extends: base.yaml\nadapter: {method: lora, rank: 2}\n")
    (run,) = load_runs(tmp_path / "same.yaml")
    assert isinstance(run, TextRun)
    assert (run.adapter.rank, run.adapter.alpha) == (2, 32)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seeds": [0, 0]}, r"seeds is \[0, 0\], with a seed twice"),
        ({"seeds": []}, r"seeds is \[\]; give a list of whole numbers"),
        ({"seeds": [True]}, "give a list of whole numbers"),
        ({"seeds": [0], "grid": {"seed": [1]}}, "seeds and grid.seed set the same value"),
        ({"seeds": [0], "include": [{"seed": 1}]}, "seeds and seed in include set the same value"),
        ({"seeds": [0], "variants": {"other": {"seed": 1}}}, r"seeds and variants\.other\.seed set the same value"),
        ({"exclude": [{"adapter.rank": 5}]}, "is no cell of grid"),
        ({"exclude": [{"adapter.rank": 4}, {"adapter.rank": 8}]}, "exclude leaves no cell"),
        ({"variants": {"base": {"adapter.rank": 2}}}, "variants names base"),
        ({"variants": {"low": {"adapter.rank": 2}}}, "variants.low and grid both set adapter.rank"),
        (
            {"variants": {"low": {"adapter.alpha": 2}}, "include": [{"adapter": {"method": "lora", "rank": 2}}]},
            r"variants.low and include both set adapter\.alpha",
        ),
        ({"variants": {"low": {"backbone": {}}}, "include": [{"backbone.width": "nf4"}]}, "low and include both set"),
        ({"grid": {8: [1]}}, "grid has the key 8, which is no text; give a dotted key"),
        ({"include": [{True: 1}]}, r"include has the key True, .*YAML reads on, off"),
        ({"exclude": [{8: 1}]}, "exclude has the key 8"),
        ({"variants": {"low": {8: 1}}}, "variants.low has the key 8"),
        ({"variants": ["low"]}, "give a mapping of names to changes"),
        ({"variants": {"same": {"prompt.history": 10}}}, r"variant same.* too; name it once"),
        ({"variants": {"typo": {"prompt.histori": 3}}}, r"in the cell variant typo.*histori"),
    ],
)
def test_a_mistake_is_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecpeftError, match=sentence):
        expand(base(**{"grid": {"adapter.rank": [4, 8]}} | changes))


def seeds_of(source: Any, *overrides: str) -> list[int]:
    return [run.seed for run in load_runs(source, overrides) if isinstance(run, TextRun)]


def test_seed_and_seeds_are_one_value_of_which_the_later_counts() -> None:
    assert seeds_of(base(grid={}, seeds=[0, 1]), "seed=7") == [7]
    assert seeds_of(base(grid={}, seed=5), "seeds=[3, 4]") == [3, 4]
    assert seeds_of(base(grid={}, seed=5), "seeds=[3, 4]", "seed=7") == [7]
    assert seeds_of(base(grid={}, seed=5), "seeds=null") == [5]
    with pytest.raises(RecpeftError, match="seeds and seed set the same value; leave one out"):
        load_runs(base(grid={}, seeds=[0, 1]) | {"seed": 0})


def test_a_file_s_seed_takes_the_place_of_its_parent_s_seeds_and_the_other_way_round(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(base(grid={}, seed=5)))
    (tmp_path / "more.yaml").write_text("extends: one.yaml\nseeds: [3, 4]\n")
    (tmp_path / "again.yaml").write_text("extends: more.yaml\nseed: 7\n")
    (tmp_path / "same.yaml").write_text("extends: more.yaml\ntraining: {max_steps: 7}\n")
    (tmp_path / "none.yaml").write_text("extends: one.yaml\nseeds: null\n")
    found = [seeds_of(tmp_path / f"{name}.yaml") for name in ("one", "more", "again", "same", "none")]
    assert found == [[5], [3, 4], [7], [3, 4], [5]]


def test_a_file_that_extends_itself_or_none_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(RecpeftError, match=r"a\.yaml extends itself, by way of b\.yaml"):
        load_runs(tmp_path / "a.yaml")
    (tmp_path / "c.yaml").write_text("extends: nowhere.yaml\n")
    with pytest.raises(RecpeftError, match=r"there is no file .*nowhere\.yaml"):
        load_runs(tmp_path / "c.yaml")
    (tmp_path / "d.yaml").write_text("extends: [a.yaml]\n")
    with pytest.raises(RecpeftError, match="extends is"):
        load_runs(tmp_path / "d.yaml")


def test_a_chain_of_files_has_an_end(tmp_path: Path) -> None:
    for number in range(1200):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\n")
    with pytest.raises(RecpeftError, match=r"0\.yaml: 20 files extend one another, and .*20\.yaml is one more"):
        load_runs(tmp_path / "0.yaml")


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({"grid": {"adapter.rank": [*range(1, 1001)], "training.max_steps": [*range(1, 1001)]}}, "1,000,000"),
        ({"grid": {f"a.b{n}": [*range(10)] for n in range(400)}}, r"about 10\^400"),
        ({"seeds": [*range(500_000)]}, "1,000,000"),
        ({"variants": {f"v{n}": {"a": 1} for n in range(9000)}, "include": [{"a": 1}] * 9000}, "81,027,002"),
    ],
)
def test_too_many_cells_are_told_by_their_number_before_one_is_made(changes: dict[str, Any], number: str) -> None:
    started = time.monotonic()
    with pytest.raises(RecpeftError, match=f"make {number} cells, and a file has at most 5,000"):
        expand(base(**changes))
    assert time.monotonic() - started < 5


def test_long_values_and_keys_are_not_repeated_in_full() -> None:
    for changes in (
        {"study": "x" * 5000},
        {"x" * 5000: 1},
        {"adapter": {"method": "x" * 5000}},
        {"adapter": {"method": "lora", "target_modules": ["x" * 5000] * 50, "rank": 0}},
        {"prompt": {"instruction": "x" * 5000 + " "}},
        {"prompt": {"item": "{{ " + "x" * 5000}},
        {"prompt": {"question": "x" * 5000}},
        {"include": ["x" * 5000]},
        {"include": [{"adapter.rank": "x" * 5000}]},
        {"grid": {"adapter.rank": "x" * 5000}},
        {"seeds": "x" * 5000},
        {"references": ["x" * 5000]},
        {"variants": {"x" * 5000: {"adapter.rank": 0}}},
    ):
        with pytest.raises(RecpeftError) as error:
            load_runs(base(**changes))
        assert len(str(error.value)) < 600, changes


def test_a_mapping_is_read_as_a_file_is_and_extends_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base(grid={"adapter.rank": [4, 8]})))
    (tmp_path / "child.yaml").write_text("extends: base.yaml\nstudy: child\ngrid: {backbone.width: [none, nf4]}\n")
    content: dict[str, Any] = yaml.safe_load((tmp_path / "child.yaml").read_text())
    before = str(content)
    monkeypatch.chdir(tmp_path)
    overrides = ["training.max_steps=7"]
    runs = load_runs(content, overrides)
    assert runs == load_runs(tmp_path / "child.yaml", overrides)
    assert runs == load_runs(content | {"extends": tmp_path / "base.yaml"}, overrides)
    assert str(content) == before


def test_a_mapping_with_an_unknown_key_is_a_sentence() -> None:
    with pytest.raises(RecpeftError, match="the mapping: unknown key adaptor; allowed: study"):
        load_runs({"study": "x", "adaptor": {}})
