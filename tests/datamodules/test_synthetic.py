"""The synthetic data hold what they say: a preference that text tells and popularity does not."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from datamodules import RecDataset, split, synthetic


def made(**options: Any) -> RecDataset:
    return synthetic.load(synthetic.Config(source="synthetic", **options))


def test_the_data_are_a_function_of_the_config_in_every_process() -> None:
    hashes = {made().hash(), made().hash()}
    code = "from datamodules import synthetic as s; print(s.load(s.Config(source='synthetic')).hash())"
    environment = os.environ | {"PYTHONHASHSEED": "5"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert hashes == {done.stdout.strip()}
    others = {
        made(data_seed=1).hash(),
        made(loyalty=0.7).hash(),
        made(num_users=199).hash(),
        made(num_items=161).hash(),
    }
    assert len(others | hashes) == 5


def test_sizes_are_those_asked_for_and_items_of_a_user_distinct() -> None:
    data = made(num_users=70, num_items=90, interactions_per_user=11)
    assert (data.num_users, data.num_items, data.interactions.height) == (70, 90, 770)
    assert set(data.interactions["user"].value_counts()["count"]) == {11}
    assert not data.interactions.select("user", "item").is_duplicated().any()
    assert data.users["raw_id"].is_sorted()
    assert data.items["raw_id"].is_sorted()
    year = data.interactions["timestamp"].max() - data.interactions["timestamp"].min()  # type: ignore[operator]
    assert year < 365 * 86_400


@pytest.mark.parametrize("loyalty", [0.0, 0.5, 1.0])
def test_loyalty_is_the_share_taken_from_the_favourite_topic(loyalty: float) -> None:
    data = made(num_users=600, loyalty=loyalty)
    rows = data.interactions.join(data.users, on="user").join(data.items, on="item")
    own = rows["favourite"] == rows["categories"].list.first()
    # The others are from anywhere else, so a part of them are of the topic by chance: of 160 items 20 are, and
    # 20 * loyalty of these are taken.
    left = 20 - 20 * loyalty
    chance = left / (left + 140) if left else 0.0
    expected = loyalty + (1 - loyalty) * chance
    assert own.mean() == pytest.approx(expected, abs=4 * (expected * (1 - expected) / rows.height) ** 0.5 + 0.01)
    assert rows.filter(own)["rating"].min() == 4 if loyalty else True
    assert rows.filter(~own)["rating"].max() == 3 if loyalty < 1 else True


def test_titles_hold_words_of_their_topic_alone_and_tell_all_items_apart() -> None:
    data = made()
    assert data.items["title"].n_unique() == data.num_items
    for title, (topic,) in data.items.select("title", "categories").iter_rows():
        *words, number = title.split()
        assert len(words) == 3
        assert number.isdigit()
        assert set(words) <= set(synthetic.TOPICS[topic].split())
    words = [word for text in synthetic.TOPICS.values() for word in text.split()]
    assert len(words) == len(set(words)) == 64


def hits(data: RecDataset, score: Any) -> float:
    """hit_rate@10 of the test rows under score(user, its known items) -> (I,)."""
    parts = split(data, "leave_one_out")
    known = {key[0]: rows["item"].to_list() for key, rows in parts.known(at_test=True).group_by("user")}
    found = []
    for user, item in parts.test.select("user", "item").iter_rows():
        scores = score(known[user])
        scores[known[user]] = -np.inf
        found.append(item in np.argsort(-scores, kind="stable")[:10])
    return float(np.mean(found))


def test_reading_topics_beats_chance_by_far_and_popularity_does_not() -> None:
    data = made(num_users=400)
    words = [set(title.split()[:3]) for title in data.items["title"]]
    topic_of = {word: topic for topic, text in synthetic.TOPICS.items() for word in text.split()}
    topics = np.asarray([topic_of[next(iter(found))] for found in words])
    counts = np.bincount(split(data, "leave_one_out").train["item"].to_numpy(), minlength=160).astype(float)
    noise = np.random.default_rng(0)

    def by_text(known: list[int]) -> np.ndarray:
        names, number = np.unique(topics[known], return_counts=True)
        return (topics == names[number.argmax()]) + noise.random(160) / 2

    # 141 items are not known, of which a list has 10: 0.07 by chance, standard error 0.013. Of the favourite topic
    # about 4 are not known, and the item to be found is one of them in about 4 of 5 cases.
    assert hits(data, lambda known: noise.random(160)) < 0.13
    assert hits(data, lambda known: counts.copy()) < 0.16
    assert hits(data, by_text) > 0.6
    untold = made(num_users=400, loyalty=0.0)
    assert hits(untold, by_text) < 0.16


def test_more_interactions_than_a_topic_has_items_are_refused() -> None:
    with pytest.raises(ValidationError, match="interactions_per_user is 21, more than the 20 items of a topic"):
        synthetic.Config(source="synthetic", interactions_per_user=21)
    assert made(interactions_per_user=20, loyalty=1.0).interactions.height == 4000


def test_groups_are_there_to_be_compared() -> None:
    data = made()
    assert set(data.users["group"]) == {"A", "B"}
    assert set(data.users["favourite"]) == set(synthetic.TOPICS)
    assert data.items.schema["categories"] == pl.List(pl.String)
