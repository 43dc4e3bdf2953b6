from __future__ import annotations

import torch

from rankers import popularity

TRAIN = torch.tensor([[1.0, 0, 1], [1, 0, 0], [1, 1, 0]])


def test_scores_are_the_train_users_whatever_the_history() -> None:
    def validate(ranker: object) -> float:
        raise AssertionError("there is nothing to choose")

    ranker = popularity.fit(TRAIN, popularity.Config(name="popularity"), validate)
    for history in (torch.zeros(2, 3), torch.ones(2, 3)):
        assert ranker.score(history).tolist() == [[3, 1, 1]] * 2
