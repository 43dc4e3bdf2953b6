"""Made-up text with a planted preference, which a model that works must find. For tests and benchmarks.

Every item belongs to a topic and says so in its title, by the topic's own words; every user has a favourite topic
and takes ``loyalty`` of their items from it, the others from anywhere. Ids are dealt out at random, so neither an
id nor popularity says anything: what can be learnt is learnt from text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveInt, model_validator

from datamodules._source import SourceConfig
from recpeft.config import Seed

if TYPE_CHECKING:
    import numpy as np

    from datamodules._dataset import RecDataset

TOPICS = {
    "space": "rocket orbit lunar comet nebula astronaut galaxy meteor",
    "cooking": "recipe kitchen flavour bread spice oven sauce harvest",
    "music": "melody guitar rhythm concert violin chorus jazz ballad",
    "ocean": "reef tide whale harbour sailor coral lagoon anchor",
    "crime": "detective alibi murder clue heist witness prison verdict",
    "sports": "stadium goal sprint coach league trophy marathon referee",
    "magic": "wizard dragon spell castle potion oracle goblin rune",
    "garden": "rose orchard meadow seed blossom ivy hedge tulip",
}
GROUPS = ["A", "B"]


class Config(SourceConfig):
    """A catalogue and users of any size."""

    num_users: int = Field(default=200, gt=0, le=10**7)
    num_items: int = Field(default=160, gt=0, le=10**7)
    interactions_per_user: PositiveInt = 20
    """Number of distinct items per user, at times within one year."""
    loyalty: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Share of a user's items from the favourite topic; the others are from anywhere, and 0 plants no preference."""
    data_seed: Seed = 0

    @model_validator(mode="after")
    def _there_are_enough_items(self) -> Config:
        if self.interactions_per_user > self.num_items // len(TOPICS):
            raise ValueError(
                f"interactions_per_user is {self.interactions_per_user}, more than the {self.num_items // len(TOPICS)} "
                "items of a topic; raise num_items"
            )
        return self


def load(config: Config) -> RecDataset:
    """Return the data set, which depends only on the config."""
    import numpy as np
    import polars as pl

    from datamodules._dataset import RecDataset

    draw = np.random.default_rng([config.data_seed, 11])
    topics = list(TOPICS)
    topic = draw.permutation(np.arange(config.num_items) % len(topics))  # of each item
    items = pl.DataFrame(
        {
            "item": np.arange(config.num_items, dtype=np.int32),
            "raw_id": [f"i{item:09d}" for item in range(config.num_items)],
            "title": _titles(topic, topics, draw),
            "categories": [[topics[number]] for number in topic.tolist()],
        }
    )
    favourite = draw.integers(0, len(topics), config.num_users)
    users = pl.DataFrame(
        {
            "user": np.arange(config.num_users, dtype=np.int32),
            "raw_id": [f"u{user:09d}" for user in range(config.num_users)],
            "favourite": [topics[number] for number in favourite.tolist()],
            "group": [GROUPS[number] for number in draw.integers(0, len(GROUPS), config.num_users).tolist()],
        }
    )
    item = _choices(config, topic, favourite, draw)  # (users, interactions)
    user = np.repeat(np.arange(config.num_users, dtype=np.int32), config.interactions_per_user)
    loved = topic[item.ravel()] == favourite[user]
    time = 1_500_000_000 + np.sort(draw.integers(0, 365 * 86_400, item.shape), axis=1)
    interactions = pl.DataFrame(
        {
            "user": user,
            "item": item.ravel().astype(np.int32),
            "rating": np.where(loved, draw.integers(4, 6, len(user)), draw.integers(1, 4, len(user))).astype(
                np.float32
            ),
            "timestamp": time.ravel().astype(np.int64),
        }
    )
    return RecDataset("synthetic", interactions.sort("user", "item"), users, items)


def _titles(topic: np.ndarray, topics: list[str], draw: np.random.Generator) -> list[str]:
    """Return titles of three words of the item's topic and a number, which distinguishes equal words."""
    words = [TOPICS[name].split() for name in topics]
    chosen = draw.integers(0, 8, (len(topic), 3)).tolist()
    return [
        f"{' '.join(words[number][place] for place in places)} {item + 1}"
        for item, (number, places) in enumerate(zip(topic.tolist(), chosen, strict=True))
    ]


def _choices(config: Config, topic: np.ndarray, favourite: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Draw distinct items of each user, in a random order, (users, interactions)."""
    import numpy as np

    rows = []
    own = [np.flatnonzero(topic == number) for number in range(len(TOPICS))]
    for number in favourite.tolist():
        loyal = int(draw.binomial(config.interactions_per_user, config.loyalty))
        first = draw.choice(own[number], loyal, replace=False)
        others = draw.choice(config.num_items, min(2 * config.interactions_per_user, config.num_items), replace=False)
        rest = others[~np.isin(others, first)][: config.interactions_per_user - loyal]
        rows.append(draw.permutation(np.concatenate([first, rest])))
    return np.stack(rows)
