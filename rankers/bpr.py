"""BPR: matrix factorisation that learns to rank a liked item above another one.

Rendle et al. 2009, "BPR: Bayesian personalized ranking from implicit feedback". Adam minimises the loss over batches,
as in RecBole (Zhao et al. 2021), with RecBole's defaults; Rendle et al. take a step per triple.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from rankers._base import RankerConfig, TrainingOptions
from recpeft.config import Dimension

if TYPE_CHECKING:
    from torch import Tensor

    from rankers._data import TrainData
    from rankers._pairwise import Factors


class Config(RankerConfig):
    """Defaults are RecBole's."""

    STOCHASTIC: ClassVar[bool] = True

    factors: Dimension = 64
    """Number of factors of each user and item."""
    learning_rate: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1e-3,)
    """Adam's candidate learning rates; validation chooses one."""
    l2: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)] = (0.0,)
    """Candidate penalties on the squared factors of each drawn triple; validation chooses one."""
    batch_size: PositiveInt = 2048
    """Triples per step."""
    epochs: PositiveInt = 300
    """Maximum number of epochs; each is validated, and the best one's factors are kept."""
    patience: PositiveInt = 10
    """Number of epochs without a better validation after which training ends."""


def fit(data: TrainData, config: Config, options: TrainingOptions) -> Factors:
    """Minimise the BPR loss over triples of a user, a liked item and another one.

    A user with train items is scored by their learnt factors, whatever the history; another person's factors are the
    sum of those of the items they like, over the square root of their number. ``details`` holds the chosen values and
    the best epoch's number, ``epochs``.
    """
    from dataclasses import replace

    from rankers._choice import choose

    found, chosen = choose(
        "bpr",
        {"learning_rate": config.learning_rate, "l2": config.l2},
        lambda values: _train(data, config, options, values["learning_rate"], values["l2"]),
    )
    return replace(found, details=chosen | found.details)


def _train(
    data: TrainData, config: Config, options: TrainingOptions, learning_rate: float, l2: float
) -> tuple[Factors, float]:
    from dataclasses import replace

    import torch

    from rankers._choice import until_it_stops_improving
    from rankers._pairwise import Factors, Triples, bpr_loss, xavier

    generator = torch.Generator().manual_seed(options.seed)
    user = xavier(data.num_users, config.factors, generator).requires_grad_()
    item = xavier(data.num_items, config.factors, generator).requires_grad_()
    optimizer = torch.optim.Adam([user, item], learning_rate, fused=True)
    triples = Triples(data.matrix, config.batch_size, options.seed)
    trained = torch.from_numpy(data.matrix.sum(axis=1) > 0)

    def epoch() -> None:
        for users, liked, others in triples.epoch():
            parts = user[users], item[liked], item[others]
            loss = bpr_loss(*parts)
            if l2:
                loss = loss + l2 * sum(part.square().sum() for part in parts) / len(users)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def ranker() -> Factors:
        items = item.detach().clone()
        return Factors(user.detach().clone(), items, items, trained)

    best, value, epochs = until_it_stops_improving(epoch, ranker, options.validate, config.epochs, config.patience)
    return replace(best, details={"epochs": float(epochs)}), value


def load(config: Config, tensors: Mapping[str, Tensor], details: dict[str, float]) -> Factors:
    """Return the ranker that ``tensors`` were taken from."""
    from rankers._pairwise import Factors

    return Factors.of(tensors, details)
