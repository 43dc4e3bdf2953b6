"""Held-out interactions alone, liked or not: AUC as TALLRec has it, each pair behind its own history."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from records import written_records
from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]

from datamodules import TextPairDataModule
from experiments import load_runs
from experiments.cell.assemble import make_data
from experiments.cell.data import prepare
from experiments.cell.train import preflight, run
from experiments.config.run import RunConfig, TextRun
from experiments.records.record import RunFolder, run_folder
from experiments.reporting import write_report
from lightning_modules import load
from metrics._judged import JudgedPairs, replicates
from rankers.popularity import Popularity
from recpeft.errors import RecpeftError

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_USERS, NUM_ITEMS, EACH = 24, 20, 10
LIKED_FROM = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small world's layout: who likes red films rates them 4 or 5 and blue ones 1 to 3, and the other way round."""
    folder = tmp_path_factory.mktemp("rated")
    draw = np.random.default_rng(3)
    rows = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user in range(NUM_USERS):
        for place, item in enumerate(draw.permutation(NUM_ITEMS)[:EACH]):
            low, high = (4, 6) if item % 2 == user % 2 else (1, 4)
            rows.append(f"{user + 1}\t{item + 1}\t{draw.integers(low, high)}\t{880_000_000 + 1000 * place + user}")
    (folder / "ml-100k.inter").write_text("\n".join(rows) + "\n")
    items = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    items += [f"{n + 1}\t{('blue', 'red')[n % 2]} film {n}\t{1990 + n % 10}\tDrama" for n in range(NUM_ITEMS)]
    (folder / "ml-100k.item").write_text("\n".join(items) + "\n")
    users = ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"]
    users += [f"{user + 1}\t{20 + user}\t{'MF'[user % 2]}\tother\t00000" for user in range(NUM_USERS)]
    (folder / "ml-100k.user").write_text("\n".join(users) + "\n")
    return folder


def configured(study_file: Path, data: Path, *overrides: str, rolling: bool = True) -> list[RunConfig]:
    """TALLRec's recipe on the small world."""
    return load_runs(
        study_file,
        [
            f"data={{source: movielens, path: '{data}', liked_from: {LIKED_FROM}, split: {{kind: per_user_temporal, "
            "ratios: [0.6, 0.2, 0.2]}}",
            "training={max_steps: 4, steps_per_epoch: 2, users_per_step: 16, examples: interactions, "
            "negatives: {in_batch: false}, learning_rate: 5.0e-3}",
            "loss={name: bce}",
            f"evaluation={{k: [1], monitor: auc, candidates: {{kind: rated, rolling: {str(rolling).lower()}}}}}",
            *overrides,
        ],
    )


def name(rolling: bool) -> str:
    return "auc/rolling" if rolling else "auc/rated"


def held_out(config: RunConfig) -> pl.DataFrame:
    """Every test pair under the data's own ids, with its label."""
    of = prepare(config.data)
    users, items = of.dataset.users["raw_id"], of.dataset.items["raw_id"]
    test = of.split.test
    return pl.DataFrame(
        {
            "user": users.gather(test["user"]),
            "item": items.gather(test["item"]),
            "liked": test["rating"] >= LIKED_FROM,
        }
    ).sort("user", "item")


@pytest.fixture(scope="module")
def study(study_file: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of a study: popularity, EASE, the control and LoRA, all rolling."""
    out = tmp_path_factory.mktemp("runs")
    runs = configured(study_file, data, "references=[popularity, ease, frozen]", "include=[]")
    preflight(runs, out)
    for config in runs:
        run(config, out)
    return out / runs[0].study  # type: ignore[return-value]


def found(study: Path, method: str) -> tuple[RunFolder, dict[str, Any]]:
    return next((folder, record) for folder, record in written_records(study) if record["method"] == method)


# A run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "frozen", "popularity", "ease"])
def test_a_record_has_the_auc_of_all_test_pairs_with_its_interval(
    method: str, study: Path, study_file: Path, data: Path
) -> None:
    folder, record = found(study, method)
    assert record["status"] == "done"
    assert record["monitor"] == "auc/rolling"
    assert record["candidates"] == {"kind": "rated", "hash": None}
    pairs = pl.read_parquet(folder.per_pair)
    (config,) = configured(study_file, data)
    expected = held_out(config)
    assert pairs.select("user", "item", "liked").sort("user", "item").equals(expected)
    assert expected.height == 2 * NUM_USERS
    assert 0.2 < expected["liked"].mean() < 0.8  # type: ignore[operator]
    assert record["test"]["pairs/rolling"] == expected.height
    auc = roc_auc_score(pairs["liked"], pairs["score"])
    assert record["test"]["auc/rolling"] == pytest.approx(auc, abs=1e-9)
    interval = record["intervals"]["auc/rolling"]
    assert interval["users"] == NUM_USERS
    assert 0 <= interval["low"] <= auc <= interval["high"] <= 1
    for row in record["trace"]:
        assert 0 <= row["validation"]["auc/rolling"] <= 1
    assert json.loads(folder.record.read_text()) == json.loads(json.dumps(record))


def test_what_is_liked_is_learnt(study: Path) -> None:
    """The items' colours say it all; a control whose backbone is fixed says less."""
    _, record = found(study, "lora")
    assert record["trace"][-1]["train_loss"] < record["trace"][0]["train_loss"]
    values = [row["validation"]["auc/rolling"] for row in record["trace"]]
    assert record["training"]["best_step"] == record["trace"][values.index(max(values))]["step"]


@pytest.mark.parametrize("method", ["popularity", "ease"])
def test_a_ranker_scores_each_pair_behind_what_its_user_liked_before(
    method: str, study: Path, study_file: Path, data: Path
) -> None:
    folder, record = found(study, method)
    (config,) = configured(study_file, data)
    of = prepare(config.data)
    liked = {(user, item) for user, item, rating, _ in of.split.ordered().drop("part").iter_rows() if rating >= 4}
    train = np.zeros((NUM_USERS, NUM_ITEMS))
    for user, item in of.split.train.select("user", "item").iter_rows():
        train[user, item] = (user, item) in liked
    if method == "popularity":
        weight = None
    else:
        inverse = np.linalg.inv(train.T @ train + record["chosen"]["l2"] * np.eye(NUM_ITEMS))
        weight = np.eye(NUM_ITEMS) - inverse / np.diag(inverse)
    pairs = {(row["user"], row["item"]): row["score"] for row in pl.read_parquet(folder.per_pair).iter_rows(named=True)}
    users, items = of.dataset.users["raw_id"], of.dataset.items["raw_id"]
    ordered = of.split.ordered()
    for user, item, _, time in of.split.test.iter_rows():
        before = ordered.filter((pl.col("user") == user) & (pl.col("timestamp") < time))["item"].to_list()
        history = np.zeros(NUM_ITEMS)
        history[[other for other in before if (user, other) in liked]] = 1
        score = train.sum(axis=0)[item] if weight is None else float((history @ weight)[item])
        assert pairs[users[user], items[item]] == pytest.approx(score, abs=1e-4)


def test_the_report_has_each_runs_interval_and_the_paired_difference(study: Path) -> None:
    write_report(study, page=False)
    text = (study / "report.md").read_text()
    drawn = {}
    for method in ("lora", "ease", "frozen"):
        pairs = pl.read_parquet(found(study, method)[0].per_pair).sort("user", "item")
        user = torch.from_numpy(pairs["user"].rank("dense").to_numpy().astype(np.int64))
        score, liked = (torch.from_numpy(pairs[column].to_numpy().copy()) for column in ("score", "liked"))
        drawn[method] = replicates(JudgedPairs(user, user, score, liked)).numpy()
    value = {method: found(study, method)[1]["test"]["auc/rolling"] for method in drawn}
    low, high = np.nanquantile(drawn["lora"], [0.025, 0.975])
    assert f"{value['lora']:.4f} [{low:.3f}, {high:.3f}]" in text
    rows = {line for line in text.splitlines() if line.startswith("| lora, none minus")}
    assert len(rows) == 2
    for method in ("ease", "frozen"):
        ends = np.nanquantile(drawn["lora"] - drawn[method], [0.025, 0.975])
        difference = f"{value['lora'] - value[method]:+.4f} | [{ends[0]:+.4f}, {ends[1]:+.4f}] |"
        assert [row for row in rows if method in row and row.endswith(difference)], rows


@pytest.mark.parametrize("rolling", [True, False])
def test_a_list_holds_a_users_held_out_items_alone(rolling: bool, study_file: Path, data: Path, tmp_path: Path) -> None:
    """Two held-out items a user: who ranks them by a coin has the liked one first in half of all cases."""
    (config,) = configured(study_file, data, "adapter={method: zero_shot}", rolling=rolling)
    record = run(config, tmp_path)
    folder = run_folder(tmp_path, config.study, config.run_id)
    pairs = pl.read_parquet(folder.per_pair)
    auc = roc_auc_score(pairs["liked"], pairs["score"])
    assert record["test"][name(rolling)] == pytest.approx(auc, abs=1e-9)
    values = dict(pl.read_parquet(folder.per_user).select("raw_id", f"hit_rate@1{name(rolling)[3:]}").iter_rows())
    for (user,), rows in pairs.group_by("user"):
        if rows["liked"].any():
            best = rows.sort("score")["liked"][-1]
            assert values[user] == float(best)
        else:
            assert values.get(user) is None or np.isnan(values[user])


def test_a_constant_scorer_gets_exactly_chance_and_its_ties_are_in_the_record(
    study_file: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Popularity, "score", lambda self, users, history: torch.zeros(history.shape))
    config = configured(study_file, data, "references=[popularity]", "include=[]")[0]
    record = run(config, tmp_path)
    assert record["test"]["auc/rolling"] == 0.5
    assert record["intervals"]["auc/rolling"] == {"low": 0.5, "high": 0.5, "users": NUM_USERS}
    assert record["test"]["tie_rate"] == 1


# What is read ------------------------------------------------------------------------------------------


def served(study_file: Path, data: Path, rolling: bool) -> tuple[TextPairDataModule, Any, Any]:
    (config,) = configured(study_file, data, "prompt.history=20", "prompt.max_user_tokens=128", rolling=rolling)
    assert isinstance(config, TextRun)
    of = prepare(config.data)
    backbone = load(config.backbone.name)
    return make_data(config, of, backbone.tokenizer), of, backbone.tokenizer


def films(texts: Any, tokenizer: Any) -> list[list[int]]:
    """The numbers of the films that each text names, in its order."""
    read: list[list[int]] = [[]] * texts.size
    for bucket in texts.buckets:
        for row, ids, mask in zip(bucket.row.tolist(), bucket.input_ids, bucket.attention_mask.bool(), strict=True):
            read[row] = [int(number) for number in re.findall(r"film (\d+)", tokenizer.decode(ids[mask]))]
    return read


@pytest.mark.parametrize("at_test", [False, True])
def test_a_rolling_text_names_exactly_what_its_user_did_before(at_test: bool, study_file: Path, data: Path) -> None:
    serves, of, tokenizer = served(study_file, data, rolling=True)
    numbers = [int(raw) - 1 for raw in of.dataset.items["raw_id"]]
    _, batches = serves.test_dataloader() if at_test else serves.val_dataloader()
    ordered, part = of.split.ordered(), of.split.test if at_test else of.split.validation
    seen = 0
    for batch in batches:
        named = films(batch.texts, tokenizer)
        assert batch.candidates.shape == (len(named), 1)
        for row, owner in enumerate(batch.owner.tolist()):
            user, item = int(batch.user[owner]), int(batch.candidates[row, 0])
            rows = ordered.filter(pl.col("user") == user)["item"].to_list()
            assert named[row] == [numbers[other] for other in rows[: rows.index(item)]]
            (rating,) = part.filter((pl.col("user") == user) & (pl.col("item") == item))["rating"]
            assert bool(batch.liked[row, 0]) == (rating >= LIKED_FROM)
            seen += 1
    assert seen == part.height


def test_without_rolling_a_text_names_what_was_known_when_the_part_began(study_file: Path, data: Path) -> None:
    serves, of, tokenizer = served(study_file, data, rolling=False)
    numbers = [int(raw) - 1 for raw in of.dataset.items["raw_id"]]
    _, batches = serves.test_dataloader()
    known = of.split.known(at_test=True)
    for batch in batches:
        assert batch.owner is None
        for row, named in enumerate(films(batch.texts, tokenizer)):
            user = int(batch.user[row])
            assert named == [numbers[item] for item in known.filter(pl.col("user") == user)["item"]]
            test = of.split.test.filter(pl.col("user") == user)
            assert batch.candidates[row].tolist() == test["item"].to_list()
            assert batch.liked[row].tolist() == (test["rating"] >= LIKED_FROM).to_list()


def test_a_training_batch_has_interactions_with_their_own_label_alone(study_file: Path, data: Path) -> None:
    serves, of, tokenizer = served(study_file, data, rolling=True)
    known, numbers = of.split.known(at_test=False), [int(raw) - 1 for raw in of.dataset.items["raw_id"]]
    labels = set()
    for index in range(3):
        batch = serves.train_batch(index)
        named = films(batch.users, tokenizer)
        cells = ~batch.excluded
        assert (cells.sum(dim=1) == 1).all()
        for row, column in cells.nonzero().tolist():
            item, liked = int(batch.item[column]), bool(batch.positive[row, column])
            users = [
                user
                for user in range(NUM_USERS)
                if item in (own := known.filter(pl.col("user") == user)["item"].to_list())
                and [numbers[other] for other in own[: own.index(item)]] == named[row]
            ]
            ratings = known.filter(pl.col("user").is_in(users) & (pl.col("item") == item))["rating"]
            assert len(ratings) == 1
            assert liked == (ratings[0] >= LIKED_FROM)
            labels.add(liked)
    assert labels == {True, False}


# What is refused ---------------------------------------------------------------------------------------


def test_rated_items_need_the_line_between_likes_and_dislikes(study_file: Path, data: Path) -> None:
    with pytest.raises(
        RecpeftError, match=r"candidates\.kind is rated, which needs data\.liked_from, the lowest rating"
    ):
        configured(study_file, data, "data.liked_from=null", "training.negatives.in_batch=true")
    with pytest.raises(RecpeftError, match=r"candidates\.kind is rated, which needs data\.liked_from"):
        configured(study_file, data, "data.liked_from=null", "training.negatives.in_batch=true", "references=[ease]")


@pytest.mark.parametrize("rolling", [True, False])
def test_a_list_whose_items_are_set_against_each_other_judges_no_pair(
    study_file: Path, data: Path, rolling: bool
) -> None:
    with pytest.raises(RecpeftError, match=r"listwise_verbalizer sets the items of a list against each other"):
        configured(study_file, data, "formulation={name: listwise_verbalizer, size: 2}", rolling=rolling)


def test_a_metric_of_grades_is_measured_of_rankers_too(study_file: Path, data: Path, tmp_path: Path) -> None:
    overrides = ["references=[popularity]", "evaluation.metrics=[ndcg_linear]"]
    popularity = configured(study_file, data, *overrides)[0]
    record = run(popularity, tmp_path)
    assert 0 < record["test"]["ndcg_linear@1/rolling"] <= 1


def test_the_line_between_likes_and_dislikes_is_the_datas_unless_the_prompt_has_its_own(
    study_file: Path, data: Path
) -> None:
    for overrides, expected in (([], 2.0), (["prompt.liked_from=4.5"], 4.5)):
        (config,) = configured(study_file, data, "data.liked_from=2", *overrides)
        assert isinstance(config, TextRun)
        made = make_data(config, prepare(config.data), load(config.backbone.name).tokenizer)
        assert made.prompt.config.liked_from == expected


def test_a_loss_that_needs_other_items_is_refused_where_an_example_has_one(study_file: Path, data: Path) -> None:
    nothing = r"loss bpr sets items of a user against each other, but training\.examples: interactions gives each"
    with pytest.raises(RecpeftError, match=nothing):
        configured(study_file, data, "loss={name: bpr}")
    with pytest.raises(RecpeftError, match="loss weighted_sum sets"):
        configured(study_file, data, "loss={name: weighted_sum, parts: [{loss: {name: bpr}}]}")
    configured(study_file, data, "loss={name: weighted_sum, parts: [{loss: {name: bpr}}, {loss: {name: mse}}]}")
    configured(study_file, data, "loss={name: bpr}", "training.negatives={in_batch: true}")
