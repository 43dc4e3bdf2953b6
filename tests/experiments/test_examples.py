"""Examples of recommendations in a record: the right users, their own titles, in order."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import polars as pl
import pytest
from records import written_record

from experiments import load_runs, report, run
from experiments.cell.data import prepare
from experiments.cell.sample_lists import examples
from experiments.records.record import run_folder, write_record

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_record_has_the_titles_of_three_users(study_file: Path, tmp_path: Path, tiny_data: Path) -> None:
    """Against the data's own files: each user's films in order of time, the last one of them held out."""
    (config,) = load_runs(study_file, ["training.max_steps=1", "evaluation.depth=7"])
    record = run(config, tmp_path)
    folder = run_folder(tmp_path, config.study, config.run_id)
    assert written_record(folder) == record
    raw = pl.read_csv(tiny_data / "ml-100k.inter", separator="\t").rename(lambda name: name.partition(":")[0])
    rows = raw.sort("timestamp")
    lists = pl.read_parquet(folder.lists("test")).sort("rank")
    users = prepare(config.data).dataset.users["raw_id"]
    assert [example["user"] for example in record["examples"]] == [users[0], users[19], users[39]]
    for example in record["examples"]:
        watched = [_title(item) for item in rows.filter(pl.col("user_id") == int(example["user"]))["item_id"]]
        assert example["history"] + example["held_out"] == watched[-6:]
        listed = lists.filter(pl.col("user") == example["user"])["item"].head(5)
        assert example["recommended"] == [_title(int(item)) for item in listed]
        assert len(example["recommended"]) == 5


def test_reordered_lists_and_rankers_have_examples_of_the_same_users(study_file: Path, tmp_path: Path) -> None:
    stage = "include=[{diversify: {method: mmr, strength: 0.9, depth: 10}}]"
    configs = load_runs(study_file, ["training.max_steps=1", "references=[popularity]", stage])
    records = [run(config, tmp_path) for config in configs]
    histories = [[(e["user"], e["history"], e["held_out"]) for e in record["examples"]] for record in records]
    assert len(histories) == 3
    assert histories[0] == histories[1] == histories[2]
    assert len({str([e["recommended"] for e in record["examples"]]) for record in records}) == 3


def test_a_hit_is_an_item_and_not_a_title(study_file: Path, tiny_data: Path, tmp_path: Path) -> None:
    """All films have one title and year; the first user's held out film stands in second place, once."""
    data = shutil.copytree(tiny_data, tmp_path / "data")
    films = pl.read_csv(data / "ml-100k.item", separator="\t")
    same = films.with_columns(pl.lit("Sabrina").alias(films.columns[1]), pl.lit(1995).alias(films.columns[2]))
    same.write_csv(data / "ml-100k.item", separator="\t")
    config, _ = load_runs(study_file, ["references=[popularity]", f"data.path={data}"])
    record = run(config, tmp_path)
    folder, prepared = run_folder(tmp_path, config.study, config.run_id), prepare(config.data)
    rows = pl.read_csv(data / "ml-100k.inter", separator="\t").rename(lambda name: name.partition(":")[0])
    first = record["examples"][0]["user"]
    last = rows.filter(pl.col("user_id") == int(first)).sort("timestamp")["item_id"][-1]
    others = [str(item) for item in range(1, 31) if item != last]
    lists = pl.read_parquet(folder.lists("test"))
    own = [others[0], str(last), *others[1:]]
    count = lists.filter(user=first).height
    listed = pl.when(pl.col("user") == first).then(pl.col("rank").replace_strict(dict(enumerate(own[:count], 1))))
    lists.with_columns(item=listed.otherwise("item")).write_parquet(folder.lists("test"))
    found = examples(folder, prepared, config.evaluation)
    assert found[0]["recommended"] == ["Sabrina (1995)"] * 5
    assert found[0]["held_out"] == ["Sabrina (1995)"]
    assert found[0]["hits"] == [2]
    write_record(folder, record | {"examples": found[:1]})
    report(tmp_path / config.study)
    listed_titles = (tmp_path / config.study / "report.html").read_text().partition('id="examples"')[2]
    marks = re.findall(r'<li( class="hit")?>Sabrina', listed_titles.partition("<ol>")[2].partition("</ol>")[0])
    assert [bool(mark) for mark in marks] == [False, True, False, False, False]


def _title(item: int) -> str:
    """As ``write_tiny_data`` names its films."""
    return f"{('blue', 'red')[(item - 1) % 2]} film {item - 1} ({1990 + (item - 1) % 10})"
