from __future__ import annotations

import torch
from ranker_data import options, scores, train_data

from rankers import popularity

TRAIN = torch.tensor([[1.0, 0, 1], [1, 0, 0], [1, 1, 0]])


def test_scores_are_the_train_users_whatever_the_history() -> None:
    def validate(ranker: object) -> float:
        raise AssertionError("there is nothing to choose")

    ranker = popularity.fit(train_data(TRAIN), popularity.Config(name="popularity"), options(validate))
    for history in (torch.zeros(2, 3), torch.ones(2, 3)):
        assert scores(ranker, history).tolist() == [[3, 1, 1]] * 2
