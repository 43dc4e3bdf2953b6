"""Several sources as one: nobody is matched across domains, and each user ranks their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError
from scipy.sparse import csr_array
from transformers import AutoTokenizer

from datamodules import RecDataset, TextPairDataModule, joint, split, synthetic
from datamodules._sampled import unavailable
from experiments.cell.data import Prepared, prepare
from experiments.cell.ranker import _measure
from experiments.cell.suite import ranking_metrics
from experiments.config.evaluation import EvaluationConfig
from metrics import RankedLists
from metrics._suite import Ranked
from recpeft.errors import RecpeftError


def domain(**options: Any) -> dict[str, Any]:
    return {"source": "synthetic", "num_users": 12, "num_items": 40, "interactions_per_user": 5, **options}


BOTH = {"films": domain(data_seed=1), "books": domain(num_users=9, data_seed=2)}


def config(domains: dict[str, Any] | None = None, **options: Any) -> joint.Config:
    return joint.Config.model_validate({"source": "joint", "domains": domains or BOTH, **options})


def rows_by_name(data: RecDataset) -> set[tuple[str, str, int]]:
    named = data.interactions.join(data.users.select("user", u="raw_id"), on="user")
    return set(named.join(data.items.select("item", i="raw_id"), on="item").select("u", "i", "timestamp").rows())


def test_every_domains_rows_are_there_under_ids_with_its_name() -> None:
    expected = set()
    for name, part in BOTH.items():
        one = synthetic.load(synthetic.Config(**part))
        expected |= {(f"{name}:{user}", f"{name}:{item}", time) for user, item, time in rows_by_name(one)}
    data = joint.load(config())
    assert rows_by_name(data) == expected
    assert data.users["user"].to_list() == list(range(21))
    assert data.items["item"].to_list() == list(range(80))
    assert data.users["raw_id"].n_unique() == 21
    for table in (data.users, data.items):
        assert table["domain"].to_list() == [raw.partition(":")[0] for raw in table["raw_id"]]
    assert data.name == "books+films"
    # Titles went with their items.
    titles = dict(synthetic.load(synthetic.Config(**BOTH["films"])).items.select("raw_id", "title").iter_rows())
    films = data.items.filter(pl.col("domain") == "films")
    assert {raw.removeprefix("films:"): title for raw, title in films.select("raw_id", "title").iter_rows()} == titles


def test_the_order_in_which_domains_are_written_changes_nothing() -> None:
    assert joint.load(config(dict(reversed(BOTH.items())))).hash() == joint.load(config()).hash()


def write_books(folder: Path, **options: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "loans.csv").write_text("user_id,item_id,timestamp\n1,1,100\n1,2,200\n2,1,100\n2,2,250\n")
    (folder / "books.csv").write_text("item_id,title,pages,categories\n1,Ulysses,700,Novel\n2,Emma,400,Romance\n")
    return {"source": "tabular", "path": str(folder), "interactions": "loans.csv", "items": "books.csv", **options}


def test_columns_that_a_domain_does_not_have_are_null_and_mixed_types_are_text(tmp_path: Path) -> None:
    mixed = config({"books": write_books(tmp_path), "films": domain()}, split="random_ratio")
    data = joint.load(mixed)
    books = data.items["domain"] == "books"
    assert data.items.filter(books)["pages"].null_count() == 0
    assert data.items.filter(~books)["pages"].null_count() == 40
    assert data.users.filter(pl.col("domain") == "books")["favourite"].to_list() == [None, None]
    assert data.interactions.filter(pl.col("user") < 2)["rating"].to_list() == [None] * 4
    assert data.interactions.schema == {"user": pl.Int32, "item": pl.Int32, "rating": pl.Float32, "timestamp": pl.Int64}
    # Lists stay lists, since evaluation reads them; a text is a list of one.
    assert data.items.filter(books)["categories"].to_list() == [["Novel"], ["Romance"]]
    assert data.items.filter(~books)["categories"].list.len().unique().to_list() == [1]
    assert ranking_metrics(prepare(mixed), EvaluationConfig()).categories.sum(1).tolist() == [1] * 42
    first = joint._stacked([pl.DataFrame({"item": [0], "x": [["a", "b"]]}), pl.DataFrame({"item": [1], "x": [7]})])
    assert first["x"].to_list() == ["a, b", "7"]


def test_filters_within_a_domain_see_that_domain_alone() -> None:
    films = domain(data_seed=1, filters=[{"min_rating": 4}])
    data = joint.load(config({"films": films, "books": BOTH["books"]}))
    of_films = data.users.filter(pl.col("domain") == "films")["user"]
    ratings = data.interactions.with_columns(film=pl.col("user").is_in(of_films.implode()))
    assert ratings.filter("film")["rating"].min() == 4
    assert ratings.filter(~pl.col("film"))["rating"].min() == 1


def test_a_domain_is_named_once_and_there_are_two_of_them() -> None:
    with pytest.raises(ValidationError, match="at least 2"):
        config({"films": domain()})


def test_a_domain_with_a_split_of_its_own_is_refused() -> None:
    for own in ("leave_one_out", {"kind": "per_user_temporal", "seed": 3}):
        with pytest.raises(ValidationError, match=r"domains\.films has a split of its own; write it beside domains"):
            config({"films": domain(split=own), "books": domain()})
    assert config(split="leave_one_out").split.kind == "leave_one_out"


def test_a_mistake_within_a_domain_is_told_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(
        (ValidationError, RecpeftError), match=r"data\.domains\.films: .*no_such_source|data\.domains\.films"
    ):
        config({"films": {"source": "no_such_source"}, "books": domain()})
    with pytest.raises((ValidationError, RecpeftError), match=r"data\.domains\.films\.num_uesrs"):
        config({"films": domain(num_uesrs=3), "books": domain()})
    with pytest.raises(RecpeftError, match=r"data\.domains\.films: filter \{k_core: 40\} leaves none"):
        joint.load(config({"films": domain(filters=[{"k_core": 40}]), "books": domain()}))
    with pytest.raises(RecpeftError, match=r"data\.domains\.films: .*nowhere"):
        joint.load(config({"films": write_books(tmp_path) | {"path": str(tmp_path / "nowhere")}, "books": domain()}))


def test_the_config_goes_through_a_record_and_back() -> None:
    whole = config(split={"kind": "cross_domain", "test_domain": "books"})
    assert joint.Config.model_validate(whole.model_dump(mode="json")) == whole
    assert hash(whole) != hash(config())


# Nobody ranks another domain's items ---------------------------------------------------------------------


def test_items_of_other_domains_are_unavailable() -> None:
    data = joint.load(config())
    users = np.asarray([3, 20, 0])
    found = unavailable(data, users)
    assert found is not None
    for row, user in enumerate(users.tolist()):
        for item in range(80):
            assert found[row, item] == (data.users["domain"][user] != data.items["domain"][item])
    assert unavailable(synthetic.load(synthetic.Config(**domain())), users % 12) is None


def test_batches_of_users_say_what_is_unavailable_to_them(tiny_backbone: Path) -> None:
    data = joint.load(config())
    module = TextPairDataModule(data, split(data, "per_user_temporal"), AutoTokenizer.from_pretrained(tiny_backbone))
    for loader in (module.val_dataloader(), module.test_dataloader()):
        for batch in loader[1]:
            films = torch.tensor([name == "films" for name in data.users["domain"]])[batch.user]
            of_items = torch.tensor([name == "films" for name in data.items["domain"]])
            assert torch.equal(batch.unavailable, films[:, None] != of_items)


class Listens:
    """Takes what a suite of metrics is given."""

    def __init__(self) -> None:
        self.lists: list[RankedLists] = []

    def reset(self) -> None: ...

    def update(self, ranked: Ranked) -> None:
        self.lists.append(ranked.lists)

    def compute(self) -> dict[str, float]:
        return {}


class Constant:
    def score(self, users: np.ndarray, history: csr_array) -> torch.Tensor:
        return torch.zeros(history.shape)


def test_rankers_list_items_of_the_users_own_domain_alone() -> None:
    prepared: Prepared = prepare(config())
    listens: Any = Listens()
    evaluation = EvaluationConfig(k=(30,), monitor="ndcg@30", depth=30)
    _measure(listens, Constant(), prepared, evaluation, True, prepared.split.test, None)  # type: ignore[arg-type]
    (lists,) = listens.lists
    assert len(lists.user) == 21
    for user, row in zip(lists.user.tolist(), lists.item.tolist(), strict=True):
        assert -1 not in row
        assert {prepared.dataset.items["domain"][item] for item in row} == {prepared.dataset.users["domain"][user]}
