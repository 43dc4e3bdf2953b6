"""LightGCN: factors of users and items, averaged over their neighbours in the user-item graph of likes.

He et al. 2020, "LightGCN: simplifying and powering graph convolution network for recommendation".
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
    """Defaults are the paper's (section 4.1.2), unless marked as RecBole's."""

    STOCHASTIC: ClassVar[bool] = True

    factors: Dimension = 64
    """Number of factors of each user and item."""
    layers: PositiveInt = 3
    """Number of propagation steps over the graph, whose results are averaged."""
    learning_rate: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1e-3, 1e-2)
    """Adam's candidate learning rates; validation chooses one: the paper's, or ten times that, since epochs of small
    data have few steps."""
    l2: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)] = (1e-4,)
    """Candidate penalties on the squared layer-0 factors of each drawn triple; validation chooses one."""
    batch_size: PositiveInt = 2048
    """Triples per step; RecBole's, twice the paper's."""
    epochs: PositiveInt = 300
    """Maximum number of epochs (RecBole's); each is validated, and the best one's factors are kept."""
    patience: PositiveInt = 20
    """Number of epochs without a better validation after which training ends: between RecBole's 10 and the paper's
    50."""


def fit(data: TrainData, config: Config, options: TrainingOptions) -> Factors:
    """Minimise the BPR loss of the factors E = mean over k of A^k E_0, with A the normalised graph of train.

    A has 1 / sqrt(items of u · users of i) at each pair (u, i) and no self-loops. A person without train items is a new
    node of the fitted graph, whose neighbours are the items they like. ``details`` holds the chosen values and the best
    epoch's number, ``epochs``.
    """
    from dataclasses import replace

    from rankers._choice import choose

    found, chosen = choose(
        "lightgcn",
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
    from rankers._pairwise import Factors, Graph, Triples, bpr_loss, xavier

    generator = torch.Generator().manual_seed(options.seed)
    user, item = (
        xavier(size, config.factors, generator).to(options.device).requires_grad_()
        for size in (data.num_users, data.num_items)
    )
    graph = Graph(data.matrix, options.device)
    optimizer = torch.optim.Adam([user, item], learning_rate, fused=True)
    triples = Triples(data.matrix, config.batch_size, options.seed)
    trained = torch.from_numpy(data.matrix.sum(axis=1) > 0)

    def epoch() -> None:
        for users, liked, others in triples.epoch():
            of_users, of_items = (torch.stack(layers).mean(0) for layers in graph.layers(user, item, config.layers))
            loss = bpr_loss(of_users[users], of_items[liked], of_items[others])
            drawn = (user[users], item[liked], item[others])
            loss = loss + l2 / 2 * sum(part.square().sum() for part in drawn) / len(users)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def ranker() -> Factors:
        with torch.no_grad():
            of_users, of_items = graph.layers(user, item, config.layers)
            # A new person has zero factors at layer 0 and gets each further layer from the items' layer below.
            folded = torch.stack(of_items[:-1]).sum(0) * graph.of_item[:, None] / (config.layers + 1)
            users, items = (torch.stack(layers).mean(0) for layers in (of_users, of_items))
        return Factors(users.cpu(), items.cpu(), folded.cpu(), trained)

    best, value, epochs = until_it_stops_improving(epoch, ranker, options.validate, config.epochs, config.patience)
    return replace(best, details={"epochs": float(epochs)}), value


def load(config: Config, tensors: Mapping[str, Tensor], details: dict[str, float]) -> Factors:
    """Return the ranker that ``tensors`` were taken from."""
    from rankers._pairwise import Factors

    return Factors.of(tensors, details)
