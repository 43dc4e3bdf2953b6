"""Two stages: what the first proposes and nothing else, in the second's order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from experiments import load_runs
from experiments.cell.assemble import make_data, make_module
from experiments.cell.candidates import Candidates, frozen_candidates, with_proposals
from experiments.cell.data import Prepared, prepare
from experiments.cell.train import preflight, run
from experiments.config.run import RunConfig, TextRun, build_run
from experiments.records.record import RunFolder, run_folder
from lightning_modules import load, two_stage
from recpeft.errors import RecpeftError
from tests.lightning_modules.test_listwise_verbalizer import write_decoder

pytestmark = pytest.mark.usefixtures("one_thread")

USERS, ITEMS = 60, 96


def configured(first: dict[str, Any], size: int = 12, data: dict[str, Any] | None = None, **sections: Any) -> TextRun:
    """A two_stage run over made-up data; its backbone is never loaded."""
    source = {"source": "synthetic", "num_users": USERS, "num_items": ITEMS, "interactions_per_user": 12}
    made = build_run(
        {
            "study": "stages",
            "data": {**source, **(data or {})},
            "backbone": {"name": "nowhere"},
            "adapter": {"method": "lora"},
            "formulation": {"name": "two_stage", "first": first, "size": size, "second": {"name": "two_tower"}},
            "loss": {"name": "bpr"},
            "evaluation": {"k": [5], "monitor": "ndcg@5"},
            **sections,
        }
    )
    assert isinstance(made, TextRun)
    return made


def proposed(config: TextRun, study: Path | None = None) -> tuple[Candidates, Candidates | None, Prepared]:
    of = prepare(config.data)
    frozen = frozen_candidates(of, config.evaluation, None)
    found = with_proposals(config, of, frozen, study)
    assert found is not None
    return found, frozen, of


def sets(frame: pl.DataFrame) -> dict[int, set[int]]:
    return {key[0]: set(rows["item"]) for key, rows in frame.group_by("user")}


def known_of(of: Prepared, at_test: bool) -> np.ndarray:
    known = np.zeros((USERS, ITEMS))
    for frame in (of.split.train, of.split.validation) if at_test else (of.split.train,):
        known[frame["user"].to_numpy(), frame["item"].to_numpy()] = 1
    return known


EASE = {"name": "ease", "l2": [20.0]}
UNIFORM = {"kind": "uniform", "size": 30}


# What is proposed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_seen", [True, False])
@pytest.mark.parametrize("candidates", [{"kind": "full"}, UNIFORM])
def test_ease_proposes_its_best_items_of_those_that_are_ranked(candidates: dict[str, Any], mask_seen: bool) -> None:
    evaluation = {"k": [5], "monitor": "ndcg@5", "candidates": candidates, "mask_seen": mask_seen}
    found, frozen, of = proposed(configured(EASE, evaluation=evaluation))
    train = known_of(of, at_test=False)
    inverse = np.linalg.inv(train.T @ train + 20.0 * np.eye(ITEMS))
    weight = np.eye(ITEMS) - inverse / np.diag(inverse)
    for at_test in (False, True):
        known = known_of(of, at_test)
        held_out = of.split.test if at_test else of.split.validation
        assert set(found.frames[at_test]["user"]) == set(held_out["user"])
        for user, items in sets(found.frames[at_test]).items():
            scores = known[user] @ weight
            if mask_seen:
                scores[known[user] == 1] = -np.inf
            if frozen is not None:
                scores[sorted(set(range(ITEMS)) - sets(frozen.frames[at_test])[user])] = -np.inf
            best = np.sort(scores)[::-1]
            assert best[11] - best[12] > 1e-7  # no tie at the boundary
            assert items == set(np.argsort(-scores)[:12].tolist())


def test_popularity_proposes_what_train_has_most_and_draws_among_equals() -> None:
    found, _, of = proposed(configured({"name": "popularity"}))
    counts, known = known_of(of, at_test=False).sum(axis=0), known_of(of, at_test=True)
    for user, items in sets(found.test).items():
        own = set(np.flatnonzero(known[user]).tolist())
        left = set(range(ITEMS)) - items - own
        assert len(items) == 12
        assert not items & own
        assert min(counts[item] for item in items) >= max(counts[item] for item in left)


def test_fewer_candidates_than_it_proposes_are_all_proposed() -> None:
    evaluation = {"k": [5], "monitor": "ndcg@5", "candidates": {"kind": "uniform", "size": 9}}
    found, frozen, _ = proposed(configured(EASE, size=40, evaluation=evaluation))
    assert frozen is not None
    assert sets(found.test) == sets(frozen.test)
    with pytest.raises(
        RecpeftError, match=r"a first stage is to give 90 items, but a user has only 86 .*formulation\.size"
    ):
        proposed(configured(EASE, size=90))


def test_other_formulations_rank_the_candidates_as_they_are() -> None:
    plain = configured(EASE, formulation={"name": "two_tower"}, evaluation={"k": [5], "monitor": "ndcg@5"})
    of = prepare(plain.data)
    assert with_proposals(plain, of, None, None) is None
    frozen = Candidates(of.split.validation, of.split.test)
    assert with_proposals(plain, of, frozen, None) is frozen


# The file ----------------------------------------------------------------------------------------------


def test_proposals_are_drawn_once_and_read_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = proposed(configured(EASE), tmp_path)[0]
    (path,) = tmp_path.glob("proposals-*.parquet")
    with monkeypatch.context() as patched:
        patched.setattr("experiments.cell.candidates._scorer", lambda *_: pytest.fail("drawn anew"))
        again = proposed(configured(EASE, loss={"name": "infonce"}), tmp_path)[0]
    assert again.hash == first.hash == pl.read_parquet(path)["hash"][0]
    changes: list[dict[str, Any]] = [
        {"first": {"name": "popularity"}},
        {"first": {"name": "ease", "l2": [30.0]}},
        {"size": 13},
        {"data": {"data_seed": 1}},
        {"data": {"split": "random_ratio"}},
        {"evaluation": {"k": [5], "monitor": "ndcg@5", "candidates": UNIFORM}},
        {"evaluation": {"k": [5], "monitor": "recall@5"}},
        {"evaluation": {"k": [5], "monitor": "ndcg@5", "mask_seen": False}},
    ]
    for change in changes:
        proposed(configured(**{"first": EASE, **change}), tmp_path)
    assert len(list(tmp_path.glob("proposals-*.parquet"))) == 1 + len(changes)


@pytest.mark.parametrize("change", ["item", "dropped", "truncated"])
def test_an_altered_file_is_refused(change: str, tmp_path: Path) -> None:
    proposed(configured(EASE), tmp_path)
    (path,) = tmp_path.glob("proposals-*.parquet")
    table = pl.read_parquet(path)
    if change == "item":
        item = pl.when(pl.int_range(pl.len()) == 7).then(ITEMS - 1 - pl.col("item")).otherwise("item")
        table.with_columns(item.cast(pl.Int32).alias("item")).write_parquet(path)
    elif change == "dropped":
        table.head(table.height - 1).write_parquet(path)
    else:
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(RecpeftError, match=r"proposals-.*\.parquet is not whole or was altered; remove it"):
        proposed(configured(EASE), tmp_path)


# Runs --------------------------------------------------------------------------------------------------


K = ["evaluation.k=[1, 3]", "evaluation.monitor=ndcg@3"]
"""Four films of the user's own colour are unseen at test, one of them the test film."""


def staged(study_file: Path, first: str, size: int = 3, *overrides: str, second: str = "two_tower") -> TextRun:
    formulation = f"formulation={{name: two_stage, first: {first}, size: {size}, second: {{name: {second}}}}}"
    (config,) = load_runs(study_file, [formulation, "training.max_steps=3", "loss={name: bpr}", *K, *overrides])
    assert isinstance(config, TextRun)
    return config


@pytest.fixture(scope="module")
def finished(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, dict[str, Any]]:
    """A trained two-tower of the small world, to be a first stage."""
    out = tmp_path_factory.mktemp("first")
    (config,) = load_runs(study_file, ["training.learning_rate=2.0e-2", "training.max_steps=3", *K])
    return run_folder(out, config.study, config.run_id), run(config, out)


def per_user(folder: RunFolder, metric: str) -> dict[str, float]:
    return dict(pl.read_parquet(folder.per_user).select("raw_id", metric).iter_rows())


def test_lists_hold_what_was_proposed_alone_in_the_seconds_order(study_file: Path) -> None:
    config = staged(study_file, "{name: popularity}", 9)
    of = prepare(config.data)
    found = with_proposals(config, of, None, None)
    assert found is not None
    backbone = load(config.backbone.name)
    data = make_data(config, of, backbone.tokenizer, found.frames)
    module = make_module(config, of, backbone.model, backbone, prompt=data.prompt).eval()
    allowed, users, outside = sets(found.test), 0, 0
    with torch.no_grad():
        catalogue, batches = data.test_dataloader()
        for part in catalogue:
            module.encode_catalogue(part)
        for batch in batches:
            everything = module.score(batch)
            ranked = module._rank(batch)
            assert ranked is not None
            lists = ranked.lists
            for row, user in enumerate(lists.user.tolist()):
                best = sorted(allowed[user], key=lambda item: -float(everything[row, item]))[:3]
                assert lists.item[row, :3].tolist() == best
                relevant = set(batch.relevant[1][batch.relevant[0] == row].tolist())
                assert int(lists.num_relevant[row]) == len(relevant)
                outside += len(relevant - allowed[user])
                users += 1
    assert users == 40
    assert outside > 0  # what was not proposed counts as missed


def test_as_many_as_the_list_is_long_are_the_first_stages_own_list(study_file: Path, tmp_path: Path) -> None:
    """Three proposals in whatever order have the first stage's recall@3 for every user."""
    *_, ease = load_runs(study_file, ["references=[ease]", "include=[]", *K])[:1]
    plain, two = run(ease, tmp_path), staged(study_file, "{name: ease}")
    record = run(two, tmp_path)
    assert record["status"] == "done"
    own = per_user(run_folder(tmp_path, two.study, two.run_id), "recall@3")
    assert own == per_user(run_folder(tmp_path, ease.study, ease.run_id), "recall@3")
    assert record["test"]["recall@3"] == pytest.approx(plain["test"]["recall@3"])
    assert record["test"]["ndcg@3"] != pytest.approx(plain["test"]["ndcg@3"])
    assert record["monitor"] == "ndcg@3"


def test_a_finished_two_tower_proposes_its_own_best_items(
    finished: tuple[RunFolder, dict[str, Any]], study_file: Path, tmp_path: Path
) -> None:
    folder, record = finished
    config = staged(study_file, f"{{run: '{folder.path}'}}", 3, "training.max_steps=1")
    found = run(config, tmp_path)
    own = per_user(run_folder(tmp_path, config.study, config.run_id), "recall@3")
    assert own == per_user(folder, "recall@3")
    assert found["test"]["recall@3"] == pytest.approx(record["test"]["recall@3"])
    assert len(set(own.values())) > 1
    assert json.loads(json.dumps(found["config"]))["formulation"]["first"] == {"run": str(folder.path)}
    assert build_run(found["config"]).run_id == config.run_id


def test_a_run_of_other_data_or_another_split_or_none_is_refused(
    finished: tuple[RunFolder, dict[str, Any]], study_file: Path, tmp_path: Path
) -> None:
    folder, record = finished
    of = prepare(staged(study_file, "{name: ease}").data)

    def refused(first: Path, *overrides: str) -> str:
        config = staged(study_file, f"{{run: '{first}'}}", 3, *overrides)
        with pytest.raises(RecpeftError) as error:
            with_proposals(config, prepare(config.data), None, None)
        return str(error.value)

    assert refused(folder.path, "data.filters=[{min_rating: 4}]").startswith(f"the data of {folder.path} had the hash")
    sentence = refused(folder.path, "data.split=random_ratio")
    other = prepare(staged(study_file, "{name: ease}", 3, "data.split=random_ratio").data).record["split"]["hash"]
    assert sentence.startswith(f"the split of {folder.path} had the hash {record['data']['split']['hash']}, and")
    assert sentence.endswith(f"here it is {other}; use what it was trained on.")
    assert "holds no record (result.json); give a run's folder" in refused(tmp_path)
    (ease,) = load_runs(study_file, ["references=[ease]", "include=[]", *K])[:1]
    run(ease, tmp_path)
    assert "is a ease run, which has no text model" in refused(run_folder(tmp_path, ease.study, ease.run_id).path)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "result.json").write_text(json.dumps(record | {"status": "failed", "error": "no room"}))
    assert "is no finished run (no room); run it again first" in refused(broken)
    assert of.record["hash"] == record["data"]["hash"]


def test_a_listwise_verbalizer_ranks_what_popularity_proposes(study_file: Path, tmp_path: Path) -> None:
    backbone = write_decoder(tmp_path / "decoder")
    options = [f"backbone.name={backbone}", "prompt.max_user_tokens=64", "adapter={method: lora, rank: 2}"]
    config = staged(study_file, "{name: popularity}", 6, *options, second="listwise_verbalizer, size: 6")
    preflight([config], tmp_path)
    record = run(config, tmp_path)
    assert record["status"] == "done"
    assert record["diagnostics"]["order"]["lists"] == 4
    assert record["candidates"] == {"kind": "full", "hash": None}
    (path,) = (tmp_path / config.study).glob("proposals-*.parquet")
    table = pl.read_parquet(path)
    assert (table.group_by("part", "user").len()["len"] == 6).all()
    assert record["proposals"] == {"size": 6, "hash": table["hash"][0]}
    held_out = prepare(config.data).split.test.select("user", "item")
    within = held_out.join(table.filter(pl.col("part") == "test"), on=["user", "item"], how="semi")
    # Who is proposed nothing relevant finds nothing, and there are such users.
    own = per_user(run_folder(tmp_path, config.study, config.run_id), "recall@3")
    found = {str(user + 1) for user in within["user"]}
    assert 0 < len(found) < 40
    assert all(value == 0 for user, value in own.items() if user not in found)


def test_a_first_stage_that_is_no_finished_run_is_refused_before_the_first_run(
    study_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecpeftError, match="holds no record"):
        preflight([staged(study_file, f"{{run: '{tmp_path / 'nowhere'}'}}", 6)], tmp_path)


# What cannot be ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("formulation", "sections", "sentence"),
    [
        (
            {"size": 4},
            {},
            "formulation.size is 4, fewer than the 5 items of the longest list in evaluation.k; raise it",
        ),
        (
            {},
            {"evaluation": {"k": [5], "monitor": "auc", "candidates": "rated"}, "data": {"liked_from": 4}},
            "evaluation.candidates.kind is rated, where nothing is proposed",
        ),
        (
            {"second": {"name": "two_stage", "first": EASE, "second": {"name": "two_tower"}}},
            {},
            "second is two_stage too; name what ranks, such as verbalizer",
        ),
        (
            {"size": 21, "second": {"name": "listwise_verbalizer"}},
            {},
            "size is 21 but second listwise_verbalizer ranks at most 20; lower it",
        ),
        (
            {"size": 9, "second": {"name": "listwise_verbalizer", "size": 8}},
            {},
            "size is 9 but second listwise_verbalizer ranks at most 8; lower it",
        ),
        ({"second": {"name": "two_towers"}}, {}, "formulation.second"),
        ({"first": {"name": "esae"}}, {}, "formulation.first"),
        ({"first": {"run": "runs/a", "name": "ease"}}, {}, "formulation.first"),
    ],
)
def test_what_cannot_be_is_one_sentence(formulation: dict[str, Any], sections: dict[str, Any], sentence: str) -> None:
    whole = {"name": "two_stage", "first": EASE, "size": 12, "second": {"name": "two_tower"}, **formulation}
    with pytest.raises(RecpeftError) as error:
        configured(EASE, **{"formulation": whole, **sections})
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_second_stage_with_a_drawn_head_is_not_ranked_by_untrained(study_file: Path) -> None:
    with pytest.raises(
        RecpeftError, match=r"adapter\.method is zero_shot but the head of formulation two_stage is drawn"
    ):
        staged(study_file, "{name: ease}", 3, "adapter={method: zero_shot}", second="cross_encoder")


def test_it_is_read_and_taught_as_its_second_stage() -> None:
    def of(**second: Any) -> two_stage.Config:
        return two_stage.Config.model_validate({"first": EASE, "size": 10, "second": second})

    assert of(name="two_tower").form == "single"
    assert of(name="verbalizer").form == "pair"
    listwise = of(name="listwise_verbalizer")
    assert (listwise.form, listwise.proposes, listwise.max_candidates) == ("list", 10, None)
    classes = of(name="cross_encoder", output="classes")
    assert classes.starts_at_random
    assert classes.level_logits is not None
    assert (classes.level_logits.kind, classes.level_logits.count) == ("classes", 5)
    made: RunConfig = configured(EASE)
    assert build_run(made.model_dump(mode="json")) == made


def test_more_candidates_than_letters_are_refused_before_the_first_run(study_file: Path, tmp_path: Path) -> None:
    backbone = write_decoder(tmp_path / "decoder")
    options = [f"backbone.name={backbone}", "prompt.max_user_tokens=64", *K, "loss={name: bpr}"]
    candidates = "evaluation.candidates={kind: uniform, size: 6}"
    for size, refused in ((7, False), (6, True)):
        formulation = f"formulation={{name: listwise_verbalizer, size: {size}}}"
        runs = load_runs(study_file, [*options, candidates, formulation])
        if not refused:
            preflight(runs, tmp_path)
            continue
        sentence = (
            r"ranks at most 6 items, but 40 users have more candidates, up to 7; lower evaluation\.candidates\.size"
        )
        with pytest.raises(RecpeftError, match=sentence):
            preflight(runs, tmp_path)
