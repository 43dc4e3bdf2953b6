"""What a run measures of its own scores: nothing on a module that is exact, and every error that is planted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from datamodules import RecDataset, Split, TextPairDataModule
from datamodules._batching import TextBatch, UserBatch
from experiments.cell.train import run
from experiments.config.grid import load_runs
from experiments.records.layout import FinishedRecord
from experiments.records.record import read_record, run_folder
from experiments.reporting._notes import write_notes
from lightning_modules import RankingCallback, TwoTower, load
from lightning_modules._diagnostics import ITEMS, USERS, Diagnostics, diagnose, sample_scores
from lightning_modules._rec_module import RecModule
from lightning_modules._verbalizer_impl import Verbalizer
from lightning_modules.losses.bpr import loss
from metrics import RankingMetrics
from tests.lightning_modules.test_listwise_verbalizer import write_decoder

pytestmark = pytest.mark.usefixtures("one_thread")

Made = Callable[..., tuple[Any, TextPairDataModule]]


class BatchMean(TwoTower):
    """All scores of a batch rise with the mean of its users' numbers."""

    def score(self, users: UserBatch, candidates: Tensor | None = None) -> Tensor:
        return super().score(users, candidates) + 0.5 * users.user.double().mean().float()


class Widths(TwoTower):
    """Reads padding."""

    def score(self, users: UserBatch, candidates: Tensor | None = None) -> Tensor:
        return super().score(users, candidates) + 0.25 * users.texts.buckets[0].input_ids.shape[1]


class Shifted(Verbalizer):
    """What is computed once for all items of a user is not what the whole text gives."""

    def states(self, users: TextBatch, *arguments: Any) -> Tensor:
        return super().states(users, *arguments) * 1.01


class Rolling(TextPairDataModule):
    """Serves each test user with candidates of its own, as many as its number says, and labels."""

    def test_batches(self, users: Any) -> Any:
        (batch,) = super().test_batches(users)
        lists = [[*range(1 + user % 3), -1, -1, -1][:4] for user in users.tolist()]
        longest = max(sum(item >= 0 for item in row) for row in lists)
        return [replace(batch, candidates=torch.tensor(lists)[:, :longest])]


@pytest.fixture(scope="module")
def folders(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"single": tiny_backbone, "pair": write_decoder(tmp_path_factory.mktemp("decoder"))}


@pytest.fixture
def made(world: tuple[RecDataset, Split], folders: dict[str, Path]) -> Made:
    """A module that has encoded the catalogue, and what feeds it."""

    def made(kind: Any, serves: type[TextPairDataModule] = TextPairDataModule, catalogue: bool = True) -> Any:
        form = "pair" if issubclass(kind, Verbalizer) else "single"
        dataset, parts = world
        backbone = load(str(folders[form]))
        data = serves(dataset, parts, backbone.tokenizer, form=form, history=4, max_user_tokens=64)  # type: ignore[arg-type]
        rows = (
            {"answer_rows": 0.1 * torch.randn(2, 64, generator=torch.Generator().manual_seed(0))}
            if form == "pair"
            else {}
        )
        module = kind(backbone.model, num_items=dataset.num_items, loss=loss, k=5, **rows).eval()
        with torch.no_grad():
            for items in data.catalogue() if catalogue else ():
                module.encode_catalogue(items)
        return module, data

    return made


@pytest.mark.parametrize("kind", [TwoTower, Verbalizer])
@torch.no_grad()
def test_an_exact_module_moves_by_nothing(kind: type[RecModule], made: Made) -> None:
    found = diagnose(*made(kind))
    assert found["users"] == USERS
    assert found["batch"] < 1e-5
    assert found["padding"] < 1e-5
    assert found["standard_deviation"] > 0.01
    assert found.get("whole_text", 0.0) < 1e-5
    assert ("whole_text" in found) == (kind is Verbalizer)


@pytest.mark.parametrize("kind", [TwoTower, Verbalizer])
@torch.no_grad()
def test_the_scores_of_one_batch_of_items_are_those_among_the_catalogue(kind: type[RecModule], made: Made) -> None:
    module, data = made(kind)
    (users,) = data.test_batches(data.test_users[:USERS])
    found = sample_scores(made(kind, catalogue=False)[0], data)
    assert found is not None
    assert torch.allclose(found, module.score(users, torch.arange(ITEMS)), atol=1e-5)


@torch.no_grad()
def test_a_score_that_depends_on_the_batch_is_seen_and_measured(made: Made) -> None:
    module, data = made(BatchMean)
    found = diagnose(module, data)
    assert data.test_users[:USERS].tolist() == [0, 1, 2, 3]
    assert found["batch"] == pytest.approx(0.5 * 1.5, abs=1e-4)  # of users 0 and 3, whose mean is 1.5 together
    assert found["padding"] < 1e-5


@torch.no_grad()
def test_a_score_that_reads_padding_is_seen_and_measured(made: Made) -> None:
    found = diagnose(*made(Widths))
    assert found["padding"] == pytest.approx(0.25 * 9, abs=1e-4)  # nine tokens more


@pytest.mark.parametrize("room", [0, 4])
@torch.no_grad()
def test_texts_are_padded_by_no_more_than_the_backbone_has_positions_for(room: int, made: Made) -> None:
    module, data = made(Widths)
    (batch,) = data.test_batches(data.test_users[:USERS])
    longest = max(part.input_ids.shape[1] for part in batch.texts.buckets)
    module.backbone.config.max_position_embeddings = longest + room
    table = module.backbone.embeddings
    table.position_embeddings.weight.data = table.position_embeddings.weight.data[: longest + room]
    found = diagnose(module, data)
    assert found["batch"] is not None
    assert ("padding" in found) == (room > 0)
    assert found.get("padding", 0.25 * room) == pytest.approx(0.25 * room, abs=1e-4)


@torch.no_grad()
def test_states_that_are_not_the_whole_texts_are_seen(made: Made) -> None:
    module, data = made(Shifted)
    found, exact = diagnose(module, data), diagnose(*made(Verbalizer))
    assert exact["whole_text"] < 1e-5
    # A hundredth of the largest of the five scores that are compared.
    (batch,) = data.test_batches(data.test_users[:USERS])
    scores = module.score(batch, torch.arange(5))[0] / 1.01
    assert found["whole_text"] == pytest.approx(0.01 * float(scores.abs().max()), rel=1e-2)
    assert found["batch"] < 1e-5


@pytest.mark.parametrize("kind", [TwoTower, Verbalizer])
@torch.no_grad()
def test_lists_of_different_lengths_are_compared_where_they_have_items(kind: type[RecModule], made: Made) -> None:
    module, data = made(kind, Rolling)
    found = diagnose(module, data)
    assert found["batch"] < 1e-5
    assert found["padding"] < 1e-5


def test_what_is_read_for_it_is_no_part_of_the_test(made: Made) -> None:
    _, data = made(Verbalizer)
    categories = torch.ones(data.dataset.num_items, 1, dtype=torch.bool)
    counts = torch.ones(data.dataset.num_items, dtype=torch.int64)
    read: dict[str, tuple[int, int]] = {}
    for name, extra in (("without", []), ("before", [Diagnostics()]), ("after", [Diagnostics()])):
        ranking = RankingCallback(RankingMetrics([5], categories, counts, 40, {}, names=["ndcg"]))
        module, data = made(Verbalizer, catalogue=False)
        module.tokens_read = 100
        callbacks: list[Any] = [*extra, ranking] if name == "before" else [ranking, *extra]
        trainer = Trainer(
            accelerator="cpu",
            callbacks=callbacks,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
        )
        trainer.test(module, data, verbose=False)
        read[name] = module.tokens_read, ranking.test_tokens
        for diagnostics in extra:
            assert diagnostics.found["batch"] < 1e-5
    assert read["without"][1] == read["without"][0] - 100 > 0
    assert read["before"] == read["after"] == read["without"]


@pytest.mark.parametrize(
    "part", ["lightning_modules._diagnostics.diagnose", "experiments.cell.certificate.trained_module"]
)
def test_a_diagnostic_that_fails_costs_no_result(
    part: str, study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory\nleft")

    monkeypatch.setattr(part, fail)
    (config,) = load_runs(study_file, ["training.max_steps=1"])
    record = run(config, tmp_path)
    assert record["status"] == "done"
    assert record["test"]["ndcg@5"] >= 0
    assert record["backbone"]["linear_layers"] == {"none": 13}
    error = {"error": "OutOfMemoryError: no memory left"}
    places = (record["diagnostics"], record["certificate"]["invariance"], record["certificate"]["reload"])
    failed = (0, 1) if part.endswith("diagnose") else (2,)
    assert [place == error for place in places] == [number in failed for number in range(3)]
    written = read_record(run_folder(tmp_path, config.study, config.run_id))
    assert isinstance(written, FinishedRecord)
    notes = [note for note in write_notes([written], []) if "could not be measured" in note]
    assert len(notes) == 1
    assert "OutOfMemoryError: no memory left" in notes[0]


@pytest.mark.parametrize(
    ("formulation", "width"),
    [("two_tower", "none"), ("verbalizer", "none"), ("listwise_verbalizer", "none"), ("verbalizer", "int8")],
)
def test_a_runs_record_has_them(
    formulation: str, width: str, study_file: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    backbone = folders["single" if formulation == "two_tower" else "pair"]
    overrides = [
        f"formulation={{name: {formulation}}}",
        f"backbone.name={backbone}",
        f"backbone.width={width}",
        "prompt.max_user_tokens=64",
        "training.max_steps=2",
        "training.users_per_step=4",
        "evaluation.candidates={kind: uniform, size: 9}",
        "loss={name: bpr}",
        "adapter={method: lora, rank: 2}",
    ]
    (config,) = load_runs(study_file, overrides)
    run(config, tmp_path)
    record = json.loads(run_folder(tmp_path, config.study, config.run_id).record.read_text())
    found = record["diagnostics"]
    assert found["users"] == USERS
    # The outlier columns of LLM.int8 are those of the batch: a number, and no claim.
    assert 0 <= found["batch"] < (1e-4 if width == "none" else 1)
    assert 0 <= found["padding"] < (1e-4 if width == "none" else 1)
    assert found["standard_deviation"] > 0
    assert record["certificate"]["reload"]["largest_difference_in_score_sd"] == 0
    assert 0 <= record["test"]["tie_rate"] <= 1
    assert ("whole_text" in found) == (formulation == "verbalizer")
    assert ("order" in found) == (formulation == "listwise_verbalizer")
    if "order" in found:
        assert found["order"]["lists"] == USERS
        assert 0 <= found["order"]["best_changes"] <= 1
        assert -1 <= found["order"]["kendall_tau"] <= 1
    assert ITEMS >= 10
