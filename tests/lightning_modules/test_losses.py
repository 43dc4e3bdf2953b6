"""Losses against loops in plain Python, in float64."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.config.grid import reference
from experiments.config.run import TextRun, build_run
from lightning_modules.losses import listwise_softmax, weighted_sum
from lightning_modules.losses._base import LevelLogits, ScoredPairs
from recpeft import plugins
from recpeft.errors import RecpeftError
from recpeft.validation import build_plugin

FOLDER = "lightning_modules.losses"
NAMES = plugins.names(FOLDER)
OF_LEVELS = ["cross_entropy", "level_bce"]
"""Losses that learn logits of the ratings' levels in place of scores; their tests stand at the end."""
SCORED = [name for name in NAMES if name not in OF_LEVELS]

PARTS = [{"weight": 0.5, "loss": {"name": "bpr"}}, {"weight": 2.0, "loss": {"name": "listnet", "gain_scale": 3.0}}]
NEEDED: dict[str, dict[str, Any]] = {"weighted_sum": {"parts": PARTS}}
"""Options without which a loss says nothing."""

NEEDS_BOTH = ["bpr", "infonce", "margin", "sampled_softmax"]
"""Losses that learn nothing from a user without negatives."""


def loss_of(name: str, pairs: ScoredPairs, **options: Any) -> Tensor:
    found = plugins.load(FOLDER, name).loss(pairs, **{**NEEDED.get(name, {}), **options})
    assert isinstance(found, Tensor)
    return found


def case(seed: int, users: int = 5, items: int = 9, dtype: torch.dtype = torch.float64) -> ScoredPairs:
    """One to three positives a row, two of three of them with a rating of 1 to 5, and up to three excluded."""
    draw = np.random.default_rng(seed)
    positive = np.zeros((users, items), dtype=bool)
    excluded = np.zeros((users, items), dtype=bool)
    for user in range(users):
        order = draw.permutation(items)
        count = draw.integers(1, 4)
        positive[user, order[:count]] = True
        excluded[user, order[count : count + draw.integers(0, 4)]] = True
    scores = torch.tensor(draw.normal(0, 3, (users, items)), dtype=dtype)
    log_q = torch.tensor(np.log(draw.dirichlet(np.ones(items))), dtype=dtype)
    rating = draw.integers(1, 6, (users, items)).astype(float)
    rating[(draw.random((users, items)) < 1 / 3) | ~(positive | excluded)] = np.nan
    return ScoredPairs(scores, torch.tensor(positive), torch.tensor(excluded), log_q, torch.tensor(rating, dtype=dtype))


def pairs_of(
    scores: list[list[float]],
    positive: list[list[int]],
    excluded: list[list[int]] | None = None,
    rating: list[list[float]] | None = None,
) -> ScoredPairs:
    """Written out by hand; log q is that of a uniform draw."""
    values = torch.tensor(scores, dtype=torch.float64)
    return ScoredPairs(
        values,
        torch.tensor(positive, dtype=torch.bool),
        torch.zeros(values.shape, dtype=torch.bool) if excluded is None else torch.tensor(excluded, dtype=torch.bool),
        torch.full((values.shape[1],), -math.log(values.shape[1]), dtype=torch.float64),
        torch.full(values.shape, math.nan, dtype=torch.float64) if rating is None else torch.tensor(rating).double(),
    )


# The same by loops -------------------------------------------------------------------------------------


class User:
    """One row as Python numbers."""

    def __init__(self, pairs: ScoredPairs, row: int) -> None:
        items = range(pairs.scores.shape[1])
        self.score = pairs.scores[row].tolist()
        self.log_q = (pairs.log_q if pairs.log_q.ndim == 1 else pairs.log_q[row]).tolist()
        self.positives = [i for i in items if pairs.positive[row, i]]
        self.kept = [i for i in items if not pairs.excluded[row, i]]
        self.negatives = [i for i in self.kept if i not in self.positives]
        self.rating = [None if math.isnan(value) else float(value) for value in pairs.rating[row].tolist()]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def cross_entropy(logits: list[float], target: int, smoothing: float) -> float:
    """Of one target among ``logits``, its share ``smoothing`` spread over all."""
    total = sum(math.exp(value) for value in logits)
    chance = [math.exp(value) / total for value in logits]
    wanted = [smoothing / len(logits) + (1 - smoothing) * (place == target) for place in range(len(logits))]
    return -sum(w * math.log(c) for w, c in zip(wanted, chance, strict=True))


def weights(users: list[User], rating_weight: bool) -> list[dict[int, float]]:
    """For each user the weight of each positive."""
    known = [user.rating[i] for user in users for i in user.positives]
    ratings = [rating for rating in known if rating is not None]
    mean = sum(ratings) / len(ratings) if ratings else 1.0
    found = []
    for user in users:
        own = {}
        for i in user.positives:
            rating = user.rating[i]
            own[i] = 1.0 if rating is None or not rating_weight else rating / mean
        found.append(own)
    return found


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def by_positives(
    pairs: ScoredPairs, term: Callable[[User, int], float], rating_weight: bool = False, needs_negatives: bool = True
) -> float:
    users = [User(pairs, row) for row in range(len(pairs.scores))]
    means = []
    for user, weight in zip(users, weights(users, rating_weight), strict=True):
        if user.positives and (user.negatives or not needs_negatives):
            means.append(mean([weight[i] * term(user, i) for i in user.positives]))
    return mean(means)


def listwise_softmax_by_loop(
    pairs: ScoredPairs, logq: bool = True, label_smoothing: float = 0.0, rating_weight: bool = False
) -> float:
    def term(user: User, positive: int) -> float:
        logits = [user.score[i] - (user.log_q[i] if logq else 0.0) for i in user.kept]
        return cross_entropy(logits, user.kept.index(positive), label_smoothing)

    return by_positives(pairs, term, rating_weight, needs_negatives=False)


def sampled_softmax_by_loop(
    pairs: ScoredPairs,
    logq: bool = True,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    rating_weight: bool = False,
) -> float:
    def term(user: User, positive: int) -> float:
        classes = [positive, *user.negatives]
        logits = [user.score[i] / temperature - (user.log_q[i] if logq else 0.0) for i in classes]
        return cross_entropy(logits, 0, label_smoothing)

    return by_positives(pairs, term, rating_weight)


def infonce_by_loop(pairs: ScoredPairs, temperature: float = 1.0, **options: Any) -> float:
    return sampled_softmax_by_loop(pairs, logq=False, temperature=temperature, **options)


def bpr_by_loop(pairs: ScoredPairs, label_smoothing: float = 0.0, rating_weight: bool = False) -> float:
    def term(user: User, positive: int) -> float:
        # of two classes, which the difference and 0 are the logits of
        rows = [[user.score[positive] - user.score[i], 0.0] for i in user.negatives]
        return mean([cross_entropy(logits, 0, label_smoothing) for logits in rows])

    return by_positives(pairs, term, rating_weight)


def margin_by_loop(pairs: ScoredPairs, margin: float = 1.0, rating_weight: bool = False) -> float:
    def term(user: User, positive: int) -> float:
        return mean([max(0.0, margin - user.score[positive] + user.score[i]) for i in user.negatives])

    return by_positives(pairs, term, rating_weight)


def by_cells(
    pairs: ScoredPairs,
    term: Callable[[User, int], float],
    positive_weight: float,
    negative_weight: float,
    rating_weight: bool,
) -> float:
    users = [User(pairs, row) for row in range(len(pairs.scores))]
    means = []
    for user, weight in zip(users, weights(users, rating_weight), strict=True):
        by_class = {i: positive_weight if i in user.positives else negative_weight for i in user.kept}
        if sum(by_class.values()) > 0:
            total = sum(by_class[i] * weight.get(i, 1.0) * term(user, i) for i in user.kept)
            means.append(total / sum(by_class.values()))
    return mean(means)


def bce_by_loop(
    pairs: ScoredPairs,
    label_smoothing: float = 0.0,
    rating_weight: bool = False,
    positive_weight: float = 1.0,
    negative_weight: float = 1.0,
) -> float:
    def term(user: User, i: int) -> float:
        chance = sigmoid(user.score[i])
        label = float(i in user.positives) * (1 - label_smoothing) + label_smoothing / 2
        return -label * math.log(chance) - (1 - label) * math.log(1 - chance)

    return by_cells(pairs, term, positive_weight, negative_weight, rating_weight)


def mse_by_loop(
    pairs: ScoredPairs,
    target: str = "rating",
    rating_weight: bool = False,
    positive_weight: float = 1.0,
    negative_weight: float = 1.0,
) -> float:
    def term(user: User, i: int) -> float:
        rating = user.rating[i]
        wanted = rating if rating is not None and target == "rating" else float(i in user.positives)
        return (user.score[i] - wanted) ** 2

    return by_cells(pairs, term, positive_weight, negative_weight, rating_weight)


def gain(user: User, i: int, rating_gain: bool) -> float:
    if i not in user.positives:
        return 0.0
    rating = user.rating[i]
    return rating if rating is not None and rating_gain else 1.0


def listnet_by_loop(pairs: ScoredPairs, rating_gain: bool = True, gain_scale: float = 1.0) -> float:
    means = []
    for row in range(len(pairs.scores)):
        user = User(pairs, row)
        wanted = [math.exp(gain_scale * gain(user, i, rating_gain)) for i in user.kept]
        if len(set(wanted)) > 1:
            given = [math.exp(user.score[i]) for i in user.kept]
            means.append(-sum(w / sum(wanted) * math.log(g / sum(given)) for w, g in zip(wanted, given, strict=True)))
    return mean(means)


def lambdarank_by_loop(pairs: ScoredPairs, rating_gain: bool = False, sigma: float = 1.0) -> float:
    """|ΔNDCG| by computing NDCG, exchanging two items and computing it again."""

    def dcg(ranked: list[int], user: User) -> float:
        return sum(gain(user, i, rating_gain) / math.log2(1 + rank) for rank, i in enumerate(ranked, 1))

    means = []
    for row in range(len(pairs.scores)):
        user = User(pairs, row)
        gains = {i: gain(user, i, rating_gain) for i in user.kept}
        if len(set(gains.values())) < 2:
            continue
        ranked = sorted(user.kept, key=lambda i: -user.score[i])
        ideal = dcg(sorted(user.kept, key=lambda i: -gains[i]), user)
        total = 0.0
        for i in user.kept:
            for j in user.kept:
                if gains[i] > gains[j]:
                    exchanged = [{i: j, j: i}.get(item, item) for item in ranked]
                    delta = abs(dcg(ranked, user) - dcg(exchanged, user)) / ideal
                    total -= delta * math.log(sigmoid(sigma * (user.score[i] - user.score[j])))
        means.append(total)
    return mean(means)


def weighted_sum_by_loop(pairs: ScoredPairs, parts: list[dict[str, Any]] = PARTS) -> float:
    total = 0.0
    for part in parts:
        options = {key: value for key, value in part["loss"].items() if key != "name"}
        total += part["weight"] * LOOPS[part["loss"]["name"]](pairs, **options)
    return total


LOOPS: dict[str, Callable[..., float]] = {
    name.removesuffix("_by_loop"): value for name, value in list(globals().items()) if name.endswith("_by_loop")
}

SMOOTHED = [{"label_smoothing": 0.3}, {"rating_weight": True}, {"label_smoothing": 0.1, "rating_weight": True}]
CLASSES = [{"positive_weight": 4.0}, {"negative_weight": 0.25, "rating_weight": True}, {"negative_weight": 0.0}]
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "bce": [*SMOOTHED, *CLASSES],
    "bpr": SMOOTHED,
    "cross_entropy": [
        {"negative_weight": 0.25},
        {"class_weights": (1.0, 2.0, 0.5, 3.0), "label_smoothing": 0.2},
        {"negative_weight": 0.0},
    ],
    "infonce": [*SMOOTHED, {"temperature": 0.5}, {"temperature": 3.0, "label_smoothing": 0.2}],
    "lambdarank": [{"rating_gain": True}, {"sigma": 0.5}, {"sigma": 2.0, "rating_gain": True}],
    "level_bce": [{"negative_weight": 0.25}, {"label_weights": (1.0, 2.0, 0.5)}, {"negative_weight": 0.0}],
    "listnet": [{"rating_gain": False}, {"gain_scale": 2.5}],
    "listwise_softmax": [*SMOOTHED, {"logq": False}, {"logq": False, "label_smoothing": 0.2}],
    "margin": [{"margin": 0.1}, {"margin": 4.0, "rating_weight": True}],
    "mse": [{"target": "label"}, {"rating_weight": True}, *CLASSES],
    "sampled_softmax": [*SMOOTHED, {"logq": False}],
    "weighted_sum": [{"parts": [{"weight": 3.0, "loss": {"name": "mse", "target": "label"}}]}],
}
CASES = [(name, options) for name in SCORED for options in ({}, *OPTIONS[name])]


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("seed", range(5))
def test_a_loss_is_the_loops(name: str, options: dict[str, Any], seed: int) -> None:
    pairs = case(seed)
    assert pairs.excluded.any()
    assert (pairs.rating.isnan() & pairs.positive).any()
    assert loss_of(name, pairs, **options).item() == pytest.approx(LOOPS[name](pairs, **options), rel=1e-9)


@pytest.mark.parametrize(("name", "options"), [(name, options) for name in SCORED for options in OPTIONS[name]])
def test_every_option_does_something(name: str, options: dict[str, Any]) -> None:
    for key, value in options.items():
        assert loss_of(name, case(0), **{key: value}).item() != pytest.approx(loss_of(name, case(0)).item(), rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_of_a_config_is_tried_and_has_its_default(name: str) -> None:
    config = plugins.config_class(FOLDER, name)
    fields = {key: field.default for key, field in config.model_fields.items() if key != "name"}
    assert fields.keys() == {key for options in OPTIONS[name] for key in options}
    parameters = dict(inspect.signature(plugins.load(FOLDER, name).loss).parameters)
    assert parameters.pop("pairs")
    assert parameters.keys() == fields.keys()
    for key, parameter in parameters.items():
        assert parameter.default == fields[key] or parameter.default is parameter.empty


# What holds for every loss -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCORED)
def test_every_loss_is_a_finite_scalar_with_finite_gradients(name: str) -> None:
    pairs = case(0, dtype=torch.float32)
    pairs.scores.requires_grad_()
    loss = loss_of(name, pairs)
    loss.backward()
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    gradient = pairs.scores.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.any()


@pytest.mark.parametrize("name", sorted(set(SCORED) - {"mse", "listnet", "listwise_softmax", "weighted_sum"}))
def test_gradients_raise_positives_and_lower_negatives(name: str) -> None:
    for seed in range(5):
        pairs = case(seed)
        pairs.scores.requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(name, pairs), pairs.scores)
        assert (gradient[pairs.positive] <= 0).all()
        assert (gradient[pairs.negative] >= 0).all()
        assert gradient[pairs.positive].any()
        assert gradient[pairs.negative].any()


@pytest.mark.parametrize("name", ["listnet", "listwise_softmax"])
def test_gradients_of_a_shared_softmax_are_share_minus_target(name: str) -> None:
    # positives compete with each other, so one that has more than its share is lowered
    pairs = pairs_of([[0.0, math.log(2), 0.0]], [[1, 1, 0]])
    pairs.scores.requires_grad_()
    target = {"listwise_softmax": [0.5, 0.5, 0.0], "listnet": [1.0, 1.0, math.exp(-1)]}[name]
    expected = [share - wanted / sum(target) for share, wanted in zip([0.25, 0.5, 0.25], target, strict=True)]
    (gradient,) = torch.autograd.grad(loss_of(name, pairs), pairs.scores)
    assert gradient[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_excluded_cells_do_not_matter_and_get_no_gradient(name: str, options: dict[str, Any]) -> None:
    pairs = case(1)
    assert pairs.excluded.any()
    assert (~pairs.rating.isnan() & pairs.excluded).any()
    pairs.scores.requires_grad_()
    loss = loss_of(name, pairs, **options)
    (gradient,) = torch.autograd.grad(loss, pairs.scores)
    assert gradient.isfinite().all()
    assert (gradient[pairs.excluded] == 0).all()
    for value in (1e4, -1e4, math.inf, -math.inf, math.nan):
        moved = replace(
            pairs,
            scores=pairs.scores.detach().masked_fill(pairs.excluded, value).requires_grad_(),
            rating=pairs.rating.masked_fill(pairs.excluded, 77.0),
        )
        again = loss_of(name, moved, **options)
        assert again.item() == loss.item()
        assert torch.equal(torch.autograd.grad(again, moved.scores)[0], gradient)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_order_of_users_and_candidates_does_not_matter(name: str, options: dict[str, Any]) -> None:
    pairs = case(2)
    columns, rows = torch.tensor([3, 0, 8, 1, 7, 2, 6, 5, 4]), torch.tensor([4, 2, 0, 1, 3])

    def moved(values: Tensor) -> Tensor:
        return values[columns] if values.ndim == 1 else values[rows][:, columns]

    turned = ScoredPairs(*(moved(value) for value in vars(pairs).values() if isinstance(value, Tensor)))
    assert loss_of(name, turned, **options).item() == pytest.approx(loss_of(name, pairs, **options).item(), rel=1e-12)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_log_q_may_be_each_users_own(name: str, options: dict[str, Any]) -> None:
    pairs = case(3)
    own = replace(pairs, log_q=torch.stack([pairs.log_q] * 5))
    assert loss_of(name, own, **options).item() == loss_of(name, pairs, **options).item()
    own = replace(pairs, log_q=pairs.log_q + torch.randn(5, 9, generator=torch.Generator().manual_seed(0)).double())
    assert loss_of(name, own, **options).item() == pytest.approx(LOOPS[name](own, **options), rel=1e-9)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_loss_has_the_gradient_of_its_differences(name: str, options: dict[str, Any]) -> None:
    pairs = case(4, users=3, items=6)
    scores = pairs.scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss_of(name, replace(pairs, scores=s), **options), (scores,))


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("empty", ["no positives", "no negatives", "all excluded", "all empty"])
def test_a_degenerate_row_is_the_loops_without_nan(name: str, options: dict[str, Any], empty: str) -> None:
    pairs = case(5)
    for row in range(5) if empty == "all empty" else [1, 3]:
        if empty == "no positives":
            pairs.positive[row] = False
        elif empty == "no negatives":
            pairs.excluded[row] = ~pairs.positive[row]
        else:
            pairs.positive[row], pairs.excluded[row] = False, True
    pairs.scores.requires_grad_()
    loss = loss_of(name, pairs, **options)
    assert loss.item() == pytest.approx(LOOPS[name](pairs, **options), rel=1e-9)
    (gradient,) = torch.autograd.grad(loss, pairs.scores)  # there is a graph in any case
    assert gradient.isfinite().all()
    if empty == "all empty":
        assert loss.item() == 0
        assert not gradient.any()


@pytest.mark.parametrize("name", NEEDS_BOTH)
def test_a_user_without_negatives_leaves_the_mean_to_the_others(name: str) -> None:
    whole = pairs_of([[1.0, 0.0], [5.0, 9.0], [7.0, 8.0]], [[1, 0], [1, 1], [0, 0]])
    alone = pairs_of([[1.0, 0.0]], [[1, 0]])
    assert loss_of(name, whole).item() == pytest.approx(loss_of(name, alone).item())


@pytest.mark.parametrize(("name", "options"), CASES)
def test_large_scores_stay_finite(name: str, options: dict[str, Any]) -> None:
    pairs = case(2, dtype=torch.float32)
    pairs = replace(pairs, scores=(pairs.scores * 1e4).requires_grad_())
    loss = loss_of(name, pairs, **options)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, pairs.scores)[0].isfinite().all()


@pytest.mark.parametrize("name", SCORED)
def test_thirty_steps_on_free_scores_put_positives_above_negatives(name: str) -> None:
    pairs = case(6)
    pairs = replace(pairs, log_q=torch.full((9,), -math.log(9), dtype=torch.float64))
    scores = (pairs.scores / 3).requires_grad_()
    optimizer = torch.optim.Adam([scores], lr=0.3, betas=(0.5, 0.9))  # a long memory would overshoot
    values = []
    for _ in range(31):
        loss = loss_of(name, replace(pairs, scores=scores))
        values.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert values[-1] < values[0]
    for row in range(5):
        lowest = scores[row][pairs.positive[row]].min()
        assert lowest > scores[row][pairs.negative[row]].max()
    if name == "mse":
        rated = pairs.positive & ~pairs.rating.isnan()
        assert (scores[rated] - pairs.rating[rated]).abs().max() < 0.5


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_survives_its_configs_json(name: str) -> None:
    config = build_plugin(FOLDER, "name", {"name": name, **OPTIONS[name][0]}, "loss")
    again = build_plugin(FOLDER, "name", json.loads(config.model_dump_json()), "loss")
    assert again == config
    assert again.model_dump_json() == config.model_dump_json()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "bce", "label_smoothing": 1.0}, "loss.label_smoothing is 1.0"),
        ({"name": "bce", "positive_weight": 0.0}, "loss.positive_weight is 0.0"),
        ({"name": "mse", "target": "stars"}, "loss.target is 'stars'"),
        ({"name": "margin", "margin": -1.0}, "loss.margin is -1.0"),
        ({"name": "infonce", "temperature": 0}, "loss.temperature is 0"),
        ({"name": "bpr", "margin": 1.0}, "unknown key loss.margin"),
        ({"name": "cross_entropy", "class_weights": [1.0, 0.0]}, "loss.class_weights.1 is 0.0"),
        ({"name": "level_bce", "negative_weight": -1.0}, "loss.negative_weight is -1.0"),
    ],
)
def test_an_option_out_of_range_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(RecpeftError, match=message):
        build_plugin(FOLDER, "name", config, "loss")


# Each by hand ------------------------------------------------------------------------------------------


def test_worked_examples() -> None:
    # Scores log 2, 0, 0 and one positive: the difference of log 2 has a sigmoid of 2/3, the softmax is 1/2, 1/4, 1/4.
    two = math.log(2)
    pairs = pairs_of([[two, 0.0, 0.0]], [[1, 0, 0]], rating=[[4.0, math.nan, math.nan]])
    half = {name: loss_of(name, pairs).item() for name in SCORED}
    assert half["bpr"] == pytest.approx(-math.log(2 / 3))
    assert half["margin"] == pytest.approx(1 - two)
    assert half["infonce"] == half["sampled_softmax"] == pytest.approx(two)
    assert half["listwise_softmax"] == pytest.approx(two)
    assert half["bce"] == pytest.approx((-math.log(2 / 3) - 2 * math.log(1 / 2)) / 3)
    assert half["mse"] == pytest.approx((two - 4) ** 2 / 3)
    # The gain of 4 has the chance e^4 / (e^4 + 2) to be first.
    first = math.exp(4) / (math.exp(4) + 2)
    assert half["listnet"] == pytest.approx(first * two + (1 - first) * 2 * two)
    # Rank 1 exchanged with rank 2 or 3: NDCG falls from 1 to 1 / log2(3) or to 1/2.
    assert half["lambdarank"] == pytest.approx(-math.log(2 / 3) * (1 - 1 / math.log2(3) + 1 / 2))


def test_listwise_softmax_by_hand() -> None:
    # One user, scores 0: two positives of three items, shares 1/3 each, so the loss is log 3.
    pairs = replace(pairs_of([[0.0] * 3], [[1, 1, 0]]), log_q=torch.tensor([0.5, 0.25, 0.25]).log())
    assert listwise_softmax.loss(pairs, logq=False).item() == pytest.approx(math.log(3))
    # Divided by q the weights are 2, 4, 4: the positives' shares are 0.2 and 0.4.
    assert listwise_softmax.loss(pairs, logq=True).item() == pytest.approx(-(math.log(0.2) + math.log(0.4)) / 2)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("logq", [True, False])
def test_listwise_softmax_is_to_the_bit_what_records_were_made_with(seed: int, logq: bool) -> None:
    def as_it_was(scores: Tensor, pairs: ScoredPairs) -> Tensor:
        logits = scores - pairs.log_q if logq else scores
        logits = logits.masked_fill(pairs.excluded, float("-inf"))
        log_share = logits.log_softmax(dim=1).masked_fill(~pairs.positive, 0.0)
        return -(log_share.sum(dim=1) / pairs.positive.sum(dim=1)).mean()

    pairs = case(seed, users=3 + seed, items=40, dtype=torch.float32)
    before, now = pairs.scores.clone().requires_grad_(), pairs.scores.clone().requires_grad_()
    expected, found = as_it_was(before, pairs), listwise_softmax.loss(replace(pairs, scores=now), logq=logq)
    assert found.item() == expected.item()
    assert torch.equal(torch.autograd.grad(found, now)[0], torch.autograd.grad(expected, before)[0])


def test_a_user_with_many_positives_weighs_as_much_as_one_with_few() -> None:
    # Both users have the same scores; the mean over users is of each one's own mean.
    pairs = pairs_of([[1.0, 2.0, 3.0]] * 2, [[1, 1, 0], [0, 0, 1]])
    share = pairs.scores[0].exp() / pairs.scores[0].exp().sum()
    expected = (-(share[0].log() + share[1].log()) / 2 - share[2].log()) / 2
    assert listwise_softmax.loss(pairs).item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_positive_that_is_the_only_candidate_costs_nothing() -> None:
    pairs = pairs_of([[-5.0, 9.0]], [[1, 0]], excluded=[[0, 1]])
    for name in ("listwise_softmax", *NEEDS_BOTH, "listnet", "lambdarank"):
        assert loss_of(name, pairs).item() == 0


@pytest.mark.parametrize("name", ["bpr", "infonce", "margin", "sampled_softmax"])
def test_a_positive_rated_three_times_as_high_weighs_three_times_as_much(name: str) -> None:
    # One positive a user, so that a weight within the user alone would change nothing.
    scores, positive = [[0.5, 0.1, 0.2], [0.3, 0.9, 0.4]], [[1, 0, 0], [0, 1, 0]]
    nan = math.nan
    pairs = pairs_of(scores, positive, rating=[[1.0, nan, nan], [nan, 3.0, nan]])
    alone = [loss_of(name, pairs_of([s], [p])).item() for s, p in zip(scores, positive, strict=True)]
    expected = (0.5 * alone[0] + 1.5 * alone[1]) / 2
    assert loss_of(name, pairs, rating_weight=True).item() == pytest.approx(expected)


@pytest.mark.parametrize("rating", [math.nan, 0.0, -1.0])
@pytest.mark.parametrize("name", ["bce", "bpr", "infonce", "listwise_softmax", "margin", "mse", "sampled_softmax"])
def test_without_a_rating_above_zero_positives_weigh_alike(name: str, rating: float) -> None:
    pairs = case(7)
    pairs = replace(pairs, rating=torch.full_like(pairs.rating, rating))
    assert loss_of(name, pairs, rating_weight=True).item() == loss_of(name, pairs).item()


def test_lambdarank_prefers_a_high_rating_to_a_low_one_only_by_rating_gain() -> None:
    pairs = pairs_of([[0.0, 1.0, -1.0]], [[1, 1, 0]], rating=[[5.0, 1.0, math.nan]])
    pairs.scores.requires_grad_()
    (by_rating,) = torch.autograd.grad(loss_of("lambdarank", pairs, rating_gain=True), pairs.scores)
    (alike,) = torch.autograd.grad(loss_of("lambdarank", pairs), pairs.scores)
    assert by_rating[0, 1] > 0 > alike[0, 1]


# Weighted sums -----------------------------------------------------------------------------------------


def test_a_weighted_sum_is_the_sum_of_its_parts_and_may_hold_another() -> None:
    pairs = case(8)
    inner = {"name": "weighted_sum", "parts": [{"loss": {"name": "margin", "margin": 2.0}}]}
    parts = [{"weight": 1.5, "loss": {"name": "bpr"}}, {"weight": 0.3, "loss": inner}]
    config = build_plugin(FOLDER, "name", {"name": "weighted_sum", "parts": parts}, "loss")
    expected = 1.5 * bpr_by_loop(pairs) + 0.3 * margin_by_loop(pairs, margin=2.0)
    found = weighted_sum.loss(pairs, **config.model_dump(exclude={"name"}))
    assert found.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "loss.parts"),
        ("bpr", "loss.parts is 'bpr'"),
        ([{"loss": {"name": "bprr"}}], "loss.parts.0.loss.name: unknown name 'bprr'"),
        ([{"loss": {"name": "bpr"}}, {"loss": {"name": "bpr", "margn": 1}}], "unknown key loss.parts.1.loss.margn"),
        ([{"loss": "bpr"}], "loss.parts.0.loss is 'bpr'; give a mapping"),
        ([{"weight": -1.0, "loss": {"name": "bpr"}}], "loss.parts.0.weight is -1.0"),
        ([{"weight": 1.0}], "loss.parts.0.loss is missing"),
        ([{"wieght": 1.0, "loss": {"name": "bpr"}}], "unknown key loss.parts.0.wieght; did you mean weight"),
    ],
)
def test_a_mistake_in_a_part_names_the_part(parts: Any, message: str) -> None:
    with pytest.raises(RecpeftError, match=message):
        build_plugin(FOLDER, "name", {"name": "weighted_sum", "parts": parts}, "loss")


def test_a_run_with_a_weighted_sum_survives_its_json_and_has_its_references() -> None:
    raw = {
        "study": "s",
        "data": {"source": "movielens", "path": "x"},
        "backbone": {"name": "b"},
        "adapter": {"method": "lora"},
        "formulation": {"name": "two_tower"},
        "loss": {"name": "weighted_sum", "parts": PARTS},
    }
    run = build_run(raw)
    assert isinstance(run, TextRun)
    again = build_run(json.loads(run.model_dump_json()))
    assert again == run
    assert again.run_id == run.run_id
    other = build_run({**raw, "loss": {"name": "weighted_sum", "parts": PARTS[:1]}})
    assert other.run_id != run.run_id
    # Nothing is learnt by the zero-shot row, so both cells share it; the control keeps its loss.
    assert reference(run, "zero_shot") == reference(other, "zero_shot")
    frozen = reference(run, "frozen")
    assert isinstance(frozen, TextRun)
    assert frozen.loss == run.loss


# Levels ------------------------------------------------------------------------------------------------

LEVELS = (1.0, 2.0, 3.5, 5.0)
LEVEL_CASES = [(name, options) for name in OF_LEVELS for options in ({}, *OPTIONS[name])]


def levelled(pairs: ScoredPairs, name: str, seed: int = 0) -> ScoredPairs:
    """With drawn logits for what the loss ``name`` learns, and a third of the negatives rated too (disliked)."""
    size = len(LEVELS) - (name == "level_bce")
    draw = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(*pairs.scores.shape, size, generator=draw, dtype=pairs.scores.dtype)
    disliked = pairs.negative & (torch.rand(pairs.scores.shape, generator=draw) < 1 / 3)
    rating = (
        torch.randint(1, 6, pairs.scores.shape, generator=draw).to(pairs.rating.dtype).where(disliked, pairs.rating)
    )
    return replace(pairs, logits=logits, levels=torch.tensor(LEVELS), rating=rating)


def place(rating: float | None, positive: bool) -> int:
    """Which of ``LEVELS`` a pair has."""
    if rating is None:
        return len(LEVELS) - 1 if positive else 0
    return max([k for k, level in enumerate(LEVELS) if level <= rating], default=0)


def cross_entropy_of_levels_by_torch(
    pairs: ScoredPairs,
    class_weights: tuple[float, ...] | None = None,
    label_smoothing: float = 0.0,
    negative_weight: float = 1.0,
) -> float:
    """torch's own mean over each user's pairs; a negative's weight as that many of it in a hundred."""
    means = []
    weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float64)
    for row in range(len(pairs.scores)):
        user, logits, targets = User(pairs, row), [], []
        for i in user.kept:
            known = user.rating[i] is not None or i in user.positives
            times = 100 if known else round(100 * negative_weight)
            logits += [pairs.logits[row, i]] * times  # type: ignore[index]
            targets += [place(user.rating[i], i in user.positives)] * times
        if logits:
            found = torch.nn.functional.cross_entropy(
                torch.stack(logits), torch.tensor(targets), weights, label_smoothing=label_smoothing
            )
            means.append(found.item())
    return mean(means)


def level_bce_by_torch(
    pairs: ScoredPairs, label_weights: tuple[float, ...] = (1.0, 1.0, 1.0), negative_weight: float = 1.0
) -> float:
    """As above; labels' weights add up to how many there are."""
    means = []
    weights = torch.tensor(label_weights, dtype=torch.float64)
    for row in range(len(pairs.scores)):
        user, logits, targets = User(pairs, row), [], []
        for i in user.kept:
            known = user.rating[i] is not None or i in user.positives
            times = 100 if known else round(100 * negative_weight)
            rating = LEVELS[place(user.rating[i], i in user.positives)]
            logits += [pairs.logits[row, i]] * times  # type: ignore[index]
            targets += [[float(rating >= level) for level in LEVELS[1:]]] * times
        if logits:
            found = torch.nn.functional.binary_cross_entropy_with_logits(
                torch.stack(logits), torch.tensor(targets).double(), weights * 3 / weights.sum()
            )
            means.append(found.item())
    return mean(means)


ORACLES: dict[str, Callable[..., float]] = {
    "cross_entropy": cross_entropy_of_levels_by_torch,
    "level_bce": level_bce_by_torch,
}


@pytest.mark.parametrize(("name", "options"), LEVEL_CASES)
@pytest.mark.parametrize("seed", range(5))
def test_a_loss_of_levels_is_torchs_over_each_users_pairs(name: str, options: dict[str, Any], seed: int) -> None:
    pairs = levelled(case(seed), name, seed)
    assert loss_of(name, pairs, **options).item() == pytest.approx(ORACLES[name](pairs, **options), rel=1e-9)


@pytest.mark.parametrize(("name", "options"), [(name, options) for name in OF_LEVELS for options in OPTIONS[name]])
def test_every_option_of_a_loss_of_levels_does_something(name: str, options: dict[str, Any]) -> None:
    pairs = levelled(case(0), name)
    for key, value in options.items():
        assert loss_of(name, pairs, **{key: value}).item() != pytest.approx(loss_of(name, pairs).item(), rel=1e-3)


def test_losses_of_levels_by_hand() -> None:
    """One user: an item rated 3.5 of levels 1, 3, 5 and a drawn negative."""
    nan = math.nan
    pairs = pairs_of([[0.0, 0.0, 0.0]], [[1, 0, 0]], excluded=[[0, 0, 1]], rating=[[3.5, nan, 5.0]])
    levels = torch.tensor([1.0, 3.0, 5.0])

    def of(name: str, logits: list[list[float]], **options: Any) -> float:
        given = replace(pairs, logits=torch.tensor([logits]).double(), levels=levels)
        return loss_of(name, given, **options).item()

    two = math.log(2)
    # Shares 1/4, 1/2, 1/4 of which the second is right, and 1/2, 1/4, 1/4 of which the first is.
    classes = [[0.0, two, 0.0], [two, 0.0, 0.0], [nan, nan, nan]]
    assert of("cross_entropy", classes) == pytest.approx(two)
    classes[1] = [0.0, two, 0.0]  # now the negative's share is 1/4
    assert of("cross_entropy", classes) == pytest.approx((two + 2 * two) / 2)
    assert of("cross_entropy", classes, negative_weight=0.0) == pytest.approx(two)
    assert of("cross_entropy", classes, negative_weight=0.5) == pytest.approx((two + two) / 1.5)
    assert of("cross_entropy", classes, class_weights=(3, 1, 9)) == pytest.approx((two + 3 * 2 * two) / 4)
    # At least 3? yes, with 2/3; at least 5? no, with 1/2. The negative: twice no, with 1/3 and 1/2.
    labels = [[two, 0.0], [two, 0.0], [nan, nan]]
    rated, negative = [-math.log(2 / 3), two], [-math.log(1 / 3), two]
    assert of("level_bce", labels) == pytest.approx(sum(rated + negative) / 4)
    assert of("level_bce", labels, negative_weight=0.0) == pytest.approx(sum(rated) / 2)
    expected = (3 * (rated[0] + negative[0]) + rated[1] + negative[1]) / 8
    assert of("level_bce", labels, label_weights=(3.0, 1.0)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rating", "level"),
    [(1.0, 0), (0.0, 0), (-3.0, 0), (1.99, 0), (2.0, 1), (3.4, 1), (3.5, 2), (4.9, 2), (5.0, 3), (9.0, 3)],
)
def test_a_rating_between_two_levels_is_the_lower(rating: float, level: int) -> None:
    # Disliked: a negative with a rating learns it as well.
    for positive in ([[1, 0]], [[0, 1]]):
        pairs = pairs_of([[0.0, 0.0]], positive, rating=[[rating, math.nan]])
        logits = torch.zeros(1, 2, 4, dtype=torch.float64)
        logits[0, 0, level] = logits[0, 1, 3 if positive[0][1] else 0] = 50.0
        found = loss_of("cross_entropy", replace(pairs, logits=logits, levels=torch.tensor(LEVELS)))
        assert found.item() == pytest.approx(0, abs=1e-6)


def test_a_rating_that_is_a_level_in_float32_has_it() -> None:
    levels = torch.tensor([1.1, 2.2, 3.3, 4.4])
    pairs = pairs_of([[0.0] * 4], [[1] * 4])
    pairs = replace(pairs, rating=torch.tensor([[1.1, 2.2, 3.3, 4.4]]), levels=levels)
    right = 50 * torch.eye(4, dtype=torch.float64).unsqueeze(0)
    assert loss_of("cross_entropy", replace(pairs, logits=right)).item() < 1e-6


@pytest.mark.parametrize(("name", "options"), LEVEL_CASES)
def test_excluded_cells_and_scores_have_no_part_in_a_loss_of_levels(name: str, options: dict[str, Any]) -> None:
    pairs = levelled(case(1), name)
    assert pairs.logits is not None
    pairs.logits.requires_grad_()
    loss = loss_of(name, pairs, **options)
    (gradient,) = torch.autograd.grad(loss, pairs.logits)
    assert gradient.isfinite().all()
    assert (gradient[pairs.excluded] == 0).all()
    assert gradient[pairs.positive].any(dim=-1).all()
    drawn = pairs.negative & pairs.rating.isnan()
    assert gradient[pairs.negative & ~drawn].any(dim=-1).all()
    assert gradient[drawn].any() == (options.get("negative_weight") != 0.0)
    for value in (1e4, -1e4, math.inf, -math.inf, math.nan):
        moved = replace(
            pairs,
            scores=torch.full_like(pairs.scores, value),
            logits=pairs.logits.detach().masked_fill(pairs.excluded.unsqueeze(-1), value).requires_grad_(),
            rating=pairs.rating.masked_fill(pairs.excluded, 77.0),
        )
        again = loss_of(name, moved, **options)
        assert again.item() == loss.item()
        assert moved.logits is not None
        assert torch.equal(torch.autograd.grad(again, moved.logits)[0], gradient)


@pytest.mark.parametrize(("name", "options"), LEVEL_CASES)
def test_a_loss_of_levels_has_the_gradient_of_its_differences_and_stays_finite(
    name: str, options: dict[str, Any]
) -> None:
    pairs = levelled(case(4, users=3, items=6), name)
    assert pairs.logits is not None
    logits = pairs.logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss_of(name, replace(pairs, logits=z), **options), (logits,))
    large = replace(pairs, logits=(1e4 * logits).float())
    found = loss_of(name, large, **options)
    assert found.shape == ()
    assert found.isfinite()


@pytest.mark.parametrize("name", OF_LEVELS)
def test_users_without_pairs_of_weight_leave_the_mean_of_levels_to_the_others(name: str) -> None:
    pairs = levelled(case(5), name)
    pairs.positive[1], pairs.excluded[1] = False, True
    pairs.positive[3], pairs.rating[3] = False, math.nan  # drawn negatives alone
    for weight in (1.0, 0.0):
        found = loss_of(name, pairs, negative_weight=weight)
        assert found.item() == pytest.approx(ORACLES[name](pairs, negative_weight=weight), rel=1e-9)
    pairs.positive[:], pairs.excluded[:] = False, True
    assert loss_of(name, pairs).item() == 0


@pytest.mark.parametrize("name", OF_LEVELS)
def test_a_loss_of_levels_without_their_logits_is_a_sentence(name: str) -> None:
    other = {"cross_entropy": "level_bce", "level_bce": "cross_entropy"}[name]
    kind = {"cross_entropy": "classes", "level_bce": "labels"}[name]
    for pairs in (case(0), levelled(case(0), other)):
        with pytest.raises(RecpeftError, match=f"loss {name} learns logits of {kind}, which .* use .*output: {kind}"):
            loss_of(name, pairs)


def test_ratings_and_ranking_are_taught_together() -> None:
    pairs = levelled(case(3), "cross_entropy")
    parts = [{"weight": 0.5, "loss": {"name": "cross_entropy"}}, {"weight": 2.0, "loss": {"name": "bpr"}}]
    expected = 0.5 * cross_entropy_of_levels_by_torch(pairs) + 2.0 * bpr_by_loop(pairs)
    assert loss_of("weighted_sum", pairs, parts=parts).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", SCORED)
def test_losses_of_scores_take_any_formulation(name: str) -> None:
    config: Any = build_plugin(FOLDER, "name", {"name": name, **NEEDED.get(name, {})}, "loss")
    for logits in (None, LevelLogits("classes", 5), LevelLogits("labels", 4)):
        assert config.refusal("two_tower", logits) is None


def test_a_sum_refuses_what_its_parts_refuse() -> None:
    inner = {"name": "weighted_sum", "parts": [{"loss": {"name": "level_bce"}}]}
    config: Any = build_plugin(FOLDER, "name", {"name": "weighted_sum", "parts": [{"loss": {"name": "bpr"}}]}, "loss")
    assert config.refusal("two_tower", None) is None
    config = build_plugin(FOLDER, "name", {"name": "weighted_sum", "parts": [*PARTS, {"loss": inner}]}, "loss")
    assert config.refusal("two_tower", None) == (
        "loss level_bce learns logits of labels but formulation two_tower gives scores alone; use formulation "
        "{name: cross_encoder, output: labels}, or another loss"
    )
    assert config.refusal("cross_encoder", LevelLogits("labels", 4)) is None
