"""A finished run recommends: as it was tested, from all that is known, and for people it has never met."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from command_line import output_of
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from datamodules._assembler import PromptAssembler
from datamodules._histories import Histories
from datamodules._module import TextPairDataModule
from experiments import load_runs, recommend, run
from experiments.cell.data import prepare
from experiments.cell.titles import Titles
from experiments.finished import recommend as recommending
from experiments.finished.judge import read_lists
from experiments.finished.recommend import recommend_file
from experiments.records.record import RunFolder, run_folder
from lightning_modules._two_tower_impl import TwoTower
from recpeft.errors import RecpeftError
from tests.lightning_modules.test_listwise_verbalizer import write_decoder

pytestmark = pytest.mark.usefixtures("one_thread")

EASE = ["references=[ease]"]
POPULARITY = ["references=[popularity]"]
DECODER = ["backbone.name={decoder}", "prompt.max_user_tokens=64", "loss={{name: bpr}}"]
PAIR = [*DECODER, "formulation={{name: verbalizer}}"]
UNIFORM = "evaluation.candidates={{kind: uniform, size: 6}}"
RATED = ["data.liked_from=4", "evaluation={{k: [1, 5], monitor: auc, candidates: rated}}"]
STAGES = "formulation={{name: two_stage, first: {{name: ease}}, size: 6, second: {{name: two_tower}}}}"
MMR = "diversify={{method: mmr, strength: 0.5, depth: 9}}"
CALIBRATED = "diversify={{method: calibrated, strength: 0.9, depth: 20}}"
DEPTH = "evaluation.depth=20"

RUNS = {
    "two_tower": [],
    "two_tower nf4": ["backbone.width=nf4"],
    "verbalizer": PAIR,
    "verbalizer nf4": [*PAIR, "backbone.width=nf4"],
    "ease": EASE,
    "mixed precision": ["training.precision=bf16-mixed"],
    "untrained": ["adapter={{method: zero_shot}}"],
    "seen are ranked": ["evaluation.mask_seen=false"],
    "uniform": [UNIFORM],
    "ease uniform": [*EASE, UNIFORM],
    "rated": RATED,
    "ease rated": [*EASE, *RATED],
    "two_stage": ["loss={{name: bpr}}", STAGES],
    "mmr": [DEPTH, MMR],
    "popularity calibrated": [*POPULARITY, DEPTH, CALIBRATED],
    "listwise": [
        *DECODER, "formulation={{name: listwise_verbalizer, size: 8}}", UNIFORM, "prompt.max_user_tokens=96",
    ],
}  # fmt: skip
"""Name -> changes to the small study."""


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def finished(study_file: Path, decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of ``RUNS`` -> the folder of that run, which is made when first asked for."""
    out, found = tmp_path_factory.mktemp("runs"), dict[str, Path]()

    def of(name: str) -> Path:
        if name not in found:
            changes = [change.format(decoder=decoder) for change in RUNS[name]]
            configs = load_runs(study_file, ["training.max_steps=3", *changes])
            config = next((config for config in configs if config.diversify is not None), configs[0])
            if name == "popularity calibrated":  # the lists of references are reordered on request alone
                stage = config.diversify
                config = configs[0].model_copy(update={"diversify": stage})
            assert run(config, out)["status"] == "done"
            found[name] = run_folder(out, config.study, config.run_id).path
        return found[name]

    return of


def interactions(data: Path) -> pl.DataFrame:
    """user, item, rating, time as the file has them, each user's by time."""
    rows = pl.read_csv(data / "ml-100k.inter", separator="\t", infer_schema=False)
    return rows.rename(lambda name: name.split(":")[0]).sort("user_id", "timestamp")


def met(data: Path, user: str) -> list[str]:
    return interactions(data).filter(pl.col("user_id") == user)["item_id"].to_list()


def assert_same(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    """The same lists, with scores but for the last bits: sums in other batches are in another order."""
    assert found.drop("score").equals(expected.drop("score"))
    assert found["score"].to_numpy() == pytest.approx(expected["score"].to_numpy(), abs=1e-5)


# As tested ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_as_tested_the_lists_and_scores_are_the_tests(name: str, finished: Callable[[str], Path]) -> None:
    folder = finished(name)
    tested = pl.read_parquet(RunFolder(folder).lists("test"))
    found = recommend(folder, tested["user"].unique(maintain_order=True).to_list(), 5, as_tested=True)
    tested = tested.filter(pl.col("rank") <= 5)
    assert found.select("user", "rank", "item").equals(tested.select("user", "rank", "item"))
    if "diversify" not in "".join(RUNS[name]):  # reordered lists are written without scores
        assert found["score"].to_numpy() == pytest.approx(tested["score"].to_numpy(), abs=1e-4)


def test_a_process_of_its_own_gives_the_tests_lists_as_evaluate_reads_them(
    finished: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, to = finished("two_tower nf4"), tmp_path / "out" / "lists.parquet"
    tested = pl.read_parquet(RunFolder(folder).lists("test")).filter(pl.col("rank") <= 5)
    tested.select(pl.col("user").unique(maintain_order=True)).write_parquet(tmp_path / "users.parquet")
    said = output_of("recommend", folder, "--users", tmp_path / "users.parquet", "--to", to, "-k", "5", "--as-tested")
    assert "lists of 40 people" in said
    found = pl.read_parquet(to)
    assert found.columns == ["user", "rank", "item", "title", "score", "categories"]
    assert found.select("user", "rank", "item").equals(tested.select("user", "rank", "item"))
    assert found["score"].to_numpy() == pytest.approx(tested["score"].to_numpy(), abs=1e-4)
    assert read_lists(to).frame.height == 200
    assert [path.name for path in to.parent.iterdir()] == ["lists.parquet"]


def test_who_was_not_tested_has_no_list_as_tested(study_file: Path, tmp_path: Path) -> None:
    (config,) = load_runs(study_file, ["training.max_steps=1", "evaluation.test_users=39"])
    run(config, tmp_path)
    folder = run_folder(tmp_path, config.study, config.run_id)
    (left,) = {str(user) for user in range(1, 41)} - set(pl.read_parquet(folder.lists("test"))["user"])
    with pytest.raises(RecpeftError, match=rf"user '{left}' is none of those that .* leave --as-tested out"):
        recommend(folder.path, [left], 5, as_tested=True)
    assert recommend(folder.path, [left], 5).height == 5


# From all that is known --------------------------------------------------------------------------------


def test_a_users_whole_history_counts_and_nothing_of_it_is_recommended(
    finished: Callable[[str], Path], tiny_data: Path, study_file: Path
) -> None:
    """EASE by hand: fitted on train, scored from all twelve films, of which none is listed."""
    folder = finished("ease")
    record = json.loads((folder / "result.json").read_text())
    of = prepare(load_runs(study_file)[0].data)
    train = np.zeros((40, 30))
    train[of.split.train["user"].to_numpy(), of.split.train["item"].to_numpy()] = 1
    inverse = np.linalg.inv(train.T @ train + record["chosen"]["l2"] * np.eye(30))
    weight = np.eye(30) - inverse / np.diag(inverse)
    for user in ("3", "12"):
        own = {int(item) - 1 for item in met(tiny_data, user)}
        assert len(own) == 12
        history = np.isin(np.arange(30), sorted(own)).astype(float)
        scores = history @ weight
        found = recommend(folder, [user], 5)
        listed = [int(item) - 1 for item in found["item"]]
        assert not own & set(listed)
        assert found["score"].to_numpy() == pytest.approx(scores[listed], abs=1e-5)
        left = sorted(scores[sorted(set(range(30)) - own)], reverse=True)
        assert found["score"].to_list() == pytest.approx(left[:5], abs=1e-5)


def test_lists_hold_titles_and_categories_and_end_where_nothing_is_left(finished: Callable[[str], Path]) -> None:
    found = recommend(finished("ease"), ["3", "4"], 30)
    assert found["user"].value_counts(sort=False).sort("user").rows() == [("3", 18), ("4", 18)]
    assert found.filter(pl.col("user") == "4")["rank"].to_list() == list(range(1, 19))
    for row in found.iter_rows(named=True):
        number = int(row["item"]) - 1
        assert row["title"] == f"{('blue', 'red')[number % 2]} film {number} ({1990 + number % 10})"
        assert row["categories"] == ["Action", ("Drama", "Comedy")[number % 2]]


# Someone new -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["two_tower", "verbalizer", "ease", "popularity calibrated", "listwise"])
def test_someone_new_with_a_users_history_is_recommended_what_the_user_is(
    name: str, finished: Callable[[str], Path], tiny_data: Path
) -> None:
    """But for ties and the order of a list's letters, which a user's number draws. Of the user's colour three films are
    left; EASE's scores of the others are 0 but for the last bits."""
    folder, user = finished(name), "7"
    items = met(tiny_data, user)
    titles = [f"  {('BLUE', 'Red')[(int(item) - 1) % 2]} film  {int(item) - 1}" for item in items]
    found = recommend(folder, [user], 3, new={"twin": titles, "by id": [f"id:{item}" for item in items]})
    of_user, twin, by_id = (found.filter(pl.col("user") == who).drop("user") for who in (user, "twin", "by id"))
    assert_same(twin, by_id)
    assert not set(twin["item"]) & set(items)
    if name != "listwise":
        assert twin["score"].to_numpy() == pytest.approx(of_user["score"].to_numpy(), abs=1e-4)
    if name in ("two_tower", "verbalizer", "ease"):
        assert twin["item"].to_list() == of_user["item"].to_list()


def test_the_latest_likes_of_someone_new_weigh_in_what_is_recommended(finished: Callable[[str], Path]) -> None:
    """Prompts hold four films: of eight, the first four are unread but still known."""
    first, last = ["red film 1", "red film 3", "red film 5", "red film 7"], [f"blue film {n}" for n in (0, 2, 4, 6)]
    whole, latest = (
        recommend(finished("two_tower"), k=30, new={who: of}) for who, of in (("a", [*first, *last]), ("b", last))
    )
    both = whole.join(latest, on="item")
    assert (whole.height, latest.height, both.height) == (22, 26, 22)
    assert both["score"].to_numpy() == pytest.approx(both["score_right"].to_numpy(), abs=1e-5)


def test_a_stage_for_the_history_has_one_of_someone_new(finished: Callable[[str], Path], tiny_data: Path) -> None:
    """Popularity knows no history, but the calibrated list of who likes comedies holds more of them."""
    new = {
        colour: [f"{colour} film {n}" for n in range(start, start + 8, 2)]
        for colour, start in (("red", 1), ("blue", 0))
    }
    found = recommend(finished("popularity calibrated"), k=10, new=new)
    comedies = found.group_by("user").agg(pl.col("categories").list.contains("Comedy").sum())
    counts = dict(comedies.iter_rows())
    assert counts["red"] > 5 > counts["blue"]


def test_someone_new_has_no_profile_in_the_text(tiny_items: pl.DataFrame, tiny_backbone: Path) -> None:
    users = pl.DataFrame({"user": [0, 1], "raw_id": ["1", "2"], "age": [20, None]})
    prompt = PromptAssembler(
        AutoTokenizer.from_pretrained(tiny_backbone),
        tiny_items,
        users=users,
        profile="{% if age %}watched {{ age }}{% endif %}",
        item="{{ title }}",
        max_user_tokens=24,
    )
    texts = prompt.users(Histories.of_items([[0, 2]] * 3), np.arange(3), profiles=np.asarray([0, 1, -1]))
    assert texts[2].tolist() == texts[1].tolist() != texts[0].tolist()


def test_nobodys_list_depends_on_who_else_is_asked_for(
    finished: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = [None, ["red film 1", "id:6"], None, ["blue film 0 (1990)"], None]
    people = pl.DataFrame({"user": ["9", "ann", "4", "bob", "40"], "history": history})
    people.write_parquet(tmp_path / "people.parquet")
    folder = finished("ease")
    monkeypatch.setattr(recommending, "_AT_ONCE", 2)
    said = recommend_file(folder, tmp_path / "people.parquet", tmp_path / "lists.parquet", 3)
    assert said.startswith("ranked is the whole catalogue, 30 items; lists of 5 people are in ")
    new = {"ann": ["red film 1", "red film 5"], "bob": ["blue film 0"]}
    alone = [
        recommend(folder, [] if who in new else [who], 3, new={who: new[who]} if who in new else None)
        for who in people["user"]
    ]
    assert_same(pl.read_parquet(tmp_path / "lists.parquet"), pl.concat(alone))


def test_whole_numbers_in_a_file_are_ids_and_text_is_as_on_the_command_line(
    finished: Callable[[str], Path], tmp_path: Path
) -> None:
    frames = {
        "ids": pl.DataFrame({"user": [1001], "history": [[2, 6]]}),
        "text": pl.DataFrame({"user": ["1001"], "history": ["red film 1; red film 5"]}),
    }
    for name, frame in frames.items():
        frame.write_parquet(tmp_path / f"{name}.parquet")
        recommend_file(finished("ease"), tmp_path / f"{name}.parquet", tmp_path / f"of_{name}.parquet", 3)
    found = [pl.read_parquet(tmp_path / f"of_{name}.parquet") for name in frames]
    assert found[0].equals(found[1])
    assert found[0].drop("user").equals(recommend(finished("ease"), k=3, new={"x": ["id:2", "id:6"]}).drop("user"))


# What is ranked ----------------------------------------------------------------------------------------


def test_a_first_stage_proposes_what_is_ranked(finished: Callable[[str], Path]) -> None:
    proposed = recommend(finished("ease"), ["5"], 6)
    ranked = recommend(finished("two_stage"), ["5"], 6)
    assert set(ranked["item"]) == set(proposed["item"])
    with pytest.raises(RecpeftError, match="-k is 7 but ease proposes 6 items; lower it"):
        recommend(finished("two_stage"), ["5"], 7)


def test_a_list_that_is_read_at_once_is_of_the_most_popular_items_not_met(
    finished: Callable[[str], Path], tmp_path: Path
) -> None:
    popular = recommend(finished("popularity calibrated"), ["5"], 18).sort("score", descending=True)
    listed = recommend(finished("listwise"), ["5"], 8)
    left = popular.filter(~pl.col("item").is_in(listed["item"].implode()))
    least = popular.filter(pl.col("item").is_in(listed["item"].implode()))["score"].min()
    assert listed.height == 8
    assert left["score"].max() <= least  # type: ignore[operator]
    pl.DataFrame({"user": ["5"]}).write_parquet(tmp_path / "users.parquet")
    said = recommend_file(finished("listwise"), tmp_path / "users.parquet", tmp_path / "lists.parquet", 3)
    assert said.startswith("ranked are the 8 items that popularity proposes for each")


def test_each_ranks_the_items_of_their_own_domain(study_file: Path, tiny_data: Path, tmp_path: Path) -> None:
    domain = f"{{source: movielens, path: '{tiny_data}'}}"
    config = load_runs(study_file, [*POPULARITY, f"data={{source: joint, domains: {{a: {domain}, b: {domain}}}}}"])[0]
    run(config, tmp_path)
    folder = run_folder(tmp_path, config.study, config.run_id).path
    found = recommend(folder, ["b:3"], 18, new={"new": ["id:a:1"]})
    assert found.filter(pl.col("user") == "b:3")["item"].str.starts_with("b:").all()
    assert found.filter(pl.col("user") == "new")["item"].str.starts_with("a:").all()
    with pytest.raises(RecpeftError, match="the history is of the domains a, b; give titles of one"):
        recommend(folder, new={"new": ["id:a:1", "id:b:2"]})
    with pytest.raises(RecpeftError, match=r"'red film 1' is 2 items: id:a:2 \(red film 1 \(1991\)\), id:b:2"):
        recommend(folder, new={"new": ["red film 1"]})


# The catalogue's encodings -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["two_tower", "two_tower nf4", "mixed precision", "untrained"])
def test_a_runs_encodings_are_those_that_are_made_of_what_it_saved(
    name: str, finished: Callable[[str], Path], tmp_path: Path
) -> None:
    kept = RunFolder(finished(name)).encodings
    folder = RunFolder(Path(shutil.copytree(kept.parent, tmp_path / "run")))
    first = recommend(folder.path, ["1"])
    folder.encodings.unlink()
    assert_same(recommend(folder.path, ["1"]), first)
    assert folder.encodings.read_bytes() == kept.read_bytes()
    folder.encodings.write_bytes(kept.read_bytes()[:100])
    assert_same(recommend(folder.path, ["1"]), first)


def test_encodings_are_made_anew_where_the_run_has_learnt_other_things(
    finished: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(Path(shutil.copytree(finished("two_tower"), tmp_path / "run")))
    monkeypatch.setattr(TwoTower, "encode_catalogue", lambda *_: pytest.fail("encoded"))
    recommend(folder.path, ["1"])
    save_file({name: value + 1 for name, value in load_file(folder.head).items()}, folder.head)
    with pytest.raises(pytest.fail.Exception):
        recommend(folder.path, ["1"])


# Titles ------------------------------------------------------------------------------------------------


@pytest.fixture
def titles() -> Titles:
    names = ["Heat", "Sabrina", "Sabrina", "Me; You", "Heat Wave (1990)", "7", "Twins", "Twins"]
    years = [1995, 1954, 1995, 1999, 1990, None, 1988, 1988]
    raw = ["1", "2", "3", "4", "5", "6", "7", "x;y"]
    return Titles(pl.DataFrame({"raw_id": raw, "title": names, "year": years}))


@pytest.mark.parametrize(
    ("texts", "items"),
    [
        (["Heat"], [0]),
        (["heat (1995);  SABRINA  (1954)"], [0, 1]),
        (["Me; You"], [3]),
        (["Me; You", "Heat;"], [3, 0]),
        (["Heat Wave (1990)"], [4]),
        (["1"], [0]),
        (["id:7;id:6"], [6, 5]),
    ],
)
def test_a_history_is_read_title_by_title(texts: list[str], items: list[int], titles: Titles) -> None:
    assert titles.read(texts) == items


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Heta", "no item has the title 'Heta'; the closest are 'Heat (1995)'"),
        ("Sabrina", "'Sabrina' is 2 items: id:2 (Sabrina (1954)), id:3 (Sabrina (1995)); give one by its id."),
        ("Twins (1988)", "'Twins (1988)' is 2 items: id:7 (Twins (1988)), id:x;y (Twins (1988))"),
        ("7", "'7' is 2 items: id:6 (7), id:7 (Twins (1988)); give one by its id."),
        ("id:77", "no item has the id '77'"),
        (" ; ", "the history is empty; name at least one title."),
    ],
)
def test_a_title_that_names_no_item_or_several_is_refused(text: str, sentence: str, titles: Titles) -> None:
    with pytest.raises(RecpeftError) as error:
        titles.read([text])
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_without_titles_items_go_by_their_ids() -> None:
    titles = Titles(pl.DataFrame({"raw_id": ["a", "b"]}))
    assert titles.shown.to_list() == ["a", "b"]
    assert titles.read(["b; a"]) == [1, 0]
    with pytest.raises(RecpeftError, match="the data have no titles, so give ids"):
        titles.find("c")


# What cannot be ----------------------------------------------------------------------------------------


def test_an_unknown_user_is_told_how_to_pass_a_history_and_the_code_is_2(finished: Callable[[str], Path]) -> None:
    said = output_of("recommend", finished("ease"), "--user", "99", code=2)
    assert "user '99' is not in the data of" in said
    assert 'give --history "title; title" for someone new' in said
    assert "Traceback" not in said


def test_one_person_is_shown_with_titles_scores_and_categories(finished: Callable[[str], Path]) -> None:
    said = output_of("recommend", finished("ease"), "--history", "red film 1 (1991); Red  Film 5", "-k", "3")
    assert "someone new who likes red film 1 (1991); red film 5 (1995)" in " ".join(said.split())
    found = recommend(finished("ease"), k=3, new={"x": ["id:2", "id:6"]})
    for title, score in found.select("title", "score").iter_rows():
        (line,) = [line for line in said.splitlines() if title in line]
        assert f"{score:.4f}" in line
        assert "Action" in line


@pytest.mark.parametrize(
    "arguments",
    [[], ["--user", "1", "--history", "a"], ["--users", "a.parquet"], ["--user", "1", "--to", "b.parquet"]],
)
def test_it_is_for_one_kind_of_people_at_a_time(arguments: list[str]) -> None:
    assert "recommend is for one of --user ID" in output_of("recommend", "runs/x/y", *arguments, code=2)


def test_a_backbone_that_is_gone_is_a_sentence(study_file: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    backbone = Path(shutil.copytree(tiny_backbone, tmp_path / "backbone"))
    (config,) = load_runs(study_file, ["training.max_steps=1", f"backbone.name={backbone}"])
    run(config, tmp_path)
    folder = run_folder(tmp_path, config.study, config.run_id).path
    adapter = folder / "adapter" / "adapter_model.safetensors"
    adapter.rename(tmp_path / "kept")
    with pytest.raises(RecpeftError, match="holds no adapter in safetensors"):
        recommend(folder, ["1"])
    (tmp_path / "kept").rename(adapter)
    shutil.rmtree(backbone)
    said = output_of("recommend", folder, "--user", "1", code=2)
    assert "/backbone' but there is no such folder" in said  # a long path is shown without its middle
    assert "Traceback" not in said


def test_another_backbone_under_an_untrained_run_is_refused(
    study_file: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    backbone = Path(shutil.copytree(tiny_backbone, tmp_path / "backbone"))
    (config,) = load_runs(study_file, ["adapter={method: zero_shot}", f"backbone.name={backbone}"])
    run(config, tmp_path)
    weights = backbone / "model.safetensors"
    from safetensors.torch import load_file, save_file

    changed = {name: value * 2 for name, value in load_file(weights).items()}
    save_file(changed, weights, {"format": "pt"})
    with pytest.raises(
        RecpeftError, match=r"the backbone of .* was .*, and here it is .*; use what it was trained with"
    ):
        recommend(run_folder(tmp_path, config.study, config.run_id).path, ["1"])


def test_other_data_and_unfinished_runs_are_refused(study_file: Path, tiny_data: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    config = load_runs(study_file, [*EASE, f"data.path={data}"])[0]
    record = run(config, tmp_path)
    folder = run_folder(tmp_path, config.study, config.run_id)
    file = data / "ml-100k.inter"
    text = file.read_text()
    file.write_text(text.replace("\t3\t", "\t2\t", 1))
    prepare.cache_clear()
    with pytest.raises(RecpeftError, match=r"the data of .* had the hash .*; use what it was trained on"):
        recommend(folder.path, ["1"])
    folder.record.write_text(json.dumps({**record, "status": "failed", "error": "it broke"}))
    with pytest.raises(RecpeftError, match=r"is no finished run \(it broke\)"):
        recommend(folder.path, ["1"])
    with pytest.raises(RecpeftError, match="holds no record"):
        recommend(tmp_path, ["1"])


@pytest.mark.parametrize(
    ("frame", "sentence"),
    [
        ({"user": ["1", "99", "1"]}, "2 problems: row 2: user '99' is not in the data of "),
        ({"user": ["1", "1"]}, "row 2: user '1' is there already; give each user one row"),
        ({"user": ["1", None]}, "row 2: user is empty"),
        (
            {"user": ["1", "a"], "history": [None, ["red flim 1"]]},
            "row 2: no item has the title 'red flim 1'; the closest",
        ),
        ({"user": ["a"], "history": pl.Series([[]], dtype=pl.List(pl.String))}, "row 1: the history is empty"),
        ({"user": ["a"], "history": [[1.5]]}, "column history is of type List(Float64); give a list of titles"),
        ({"user": [1.0]}, "column user is of type Float64; give the data's own ids"),
        ({"name": ["1"]}, "has no column user; it has name"),
        ({"user": []}, "column user is of type Null"),
        ({"user": pl.Series([], dtype=pl.String)}, "is empty; give a file with rows"),
    ],
)
def test_a_file_with_mistakes_is_refused_by_row_and_nothing_is_written(
    frame: dict[str, Any], sentence: str, finished: Callable[[str], Path], tmp_path: Path
) -> None:
    pl.DataFrame(frame).write_parquet(tmp_path / "people.parquet")
    with pytest.raises(RecpeftError) as error:
        recommend_file(finished("ease"), tmp_path / "people.parquet", tmp_path / "lists.parquet")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "lists.parquet").exists()


def test_a_file_that_is_not_there_or_would_be_written_over_is_refused(
    finished: Callable[[str], Path], tmp_path: Path
) -> None:
    lists = tmp_path / "lists.parquet"
    pl.DataFrame({"user": ["1"]}).write_parquet(lists)
    with pytest.raises(RecpeftError, match=r"lists\.parquet, the file of users itself; name another"):
        recommend_file(finished("ease"), lists, tmp_path / "." / "lists.parquet")
    with pytest.raises(
        RecpeftError, match=r"no file .*nowhere\.parquet; give --users a Parquet file with the column user\.$"
    ):
        recommend_file(finished("ease"), tmp_path / "nowhere.parquet", lists)
    with pytest.raises(RecpeftError, match=r"--to is .*lists\.csv; name a file that ends in \.parquet"):
        recommend_file(finished("ease"), lists, tmp_path / "lists.csv")
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(RecpeftError, match=r"--to is .*folder\.parquet, which is a folder; name a file"):
        recommend_file(finished("ease"), lists, tmp_path / "folder.parquet")
    assert pl.read_parquet(lists).columns == ["user"]


@pytest.mark.parametrize(
    ("k", "sentence"), [(0, "-k is 0; ask for at least 1 item"), (31, "-k is 31 but ml-100k has 30 items; lower it")]
)
def test_a_list_longer_than_the_catalogue_or_of_nothing_is_refused(
    k: int, sentence: str, finished: Callable[[str], Path]
) -> None:
    with pytest.raises(RecpeftError, match=sentence):
        recommend(finished("ease"), ["1"], k)


def test_mistakes_are_told_before_torch_is_imported(finished: Callable[[str], Path]) -> None:
    code = (
        "import sys; from experiments.finished.recommend import recommend\n"
        f"try: recommend({str(finished('ease'))!r}, ['99'])\n"
        "except Exception as error: print(type(error).__name__, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["RecpeftError", "False"], done.stderr


def test_the_data_module_serves_people_with_nothing_masked(finished: Callable[[str], Path], study_file: Path) -> None:
    of = prepare(load_runs(study_file)[0].data)
    tokenizer = AutoTokenizer.from_pretrained(load_runs(study_file)[0].backbone.name)  # type: ignore[union-attr]
    data = TextPairDataModule(of.dataset, of.split, tokenizer, history=4)
    histories = data.known_at_test.and_of(Histories.of_items([[1, 3], [0]]))
    batch = data.people(histories, np.asarray([41, 2, 40]))
    assert batch.user.tolist() == [40, 2, 40]
    assert len(batch.seen[0]) == len(batch.relevant[0]) == 0
    texts = {
        row: ids for part in batch.texts.buckets for row, ids in zip(part.row.tolist(), part.input_ids, strict=True)
    }
    own = data.prompt.users(data.known_at_test, np.asarray([2]))[0].tolist()
    assert texts[1].tolist()[: len(own)] == own
    assert texts[0].tolist()[: len(data.prompt.user([0]))] == data.prompt.user([0])
    assert texts[2].tolist()[: len(data.prompt.user([1, 3]))] == data.prompt.user([1, 3])
