"""Examples of recommendations in a record: the right users, their own titles, in order."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from experiments import load_runs, run
from experiments._data import prepare
from experiments.results import read_record, run_folder

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_record_has_the_titles_of_three_users(study_file: Path, tmp_path: Path, tiny_data: Path) -> None:
    """Against the data's own files: each user's films in order of time, the last one of them held out."""
    (config,) = load_runs(study_file, ["training.max_steps=1", "evaluation.depth=7"])
    record = run(config, tmp_path)
    folder = run_folder(tmp_path, config.study, config.run_id)
    assert read_record(folder) == record
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


def _title(item: int) -> str:
    """As ``write_tiny_data`` names its films."""
    return f"{('blue', 'red')[(item - 1) % 2]} film {item - 1}"
