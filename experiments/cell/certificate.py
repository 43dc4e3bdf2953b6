"""Certify a record's numbers: hashes of the inputs, proofs, and measurements on the model itself.

``recpeft certify`` (``check_certificate``) recomputes all of it with the functions of this file.
``docs/certificate.md`` explains each field and its good values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from datamodules import TextPairDataModule
from datamodules._module import evaluated_users
from datamodules._sampled import unavailable
from experiments.cell.assemble import make_data, trainer_options
from experiments.cell.cost import give_back
from experiments.cell.data import Prepared
from experiments.cell.saved_run import trained_module
from experiments.config.evaluation import EvaluationConfig
from experiments.config.run import RunConfig, TextRun
from experiments.records.record import RunFolder
from experiments.records.versions import git_state
from lightning_modules import RecModule
from lightning_modules import _backbone as backbones
from lightning_modules._diagnostics import failure, sample_scores
from recpeft import plugins
from recpeft.config import digest, plain

_LEAKS = (
    "test_rows",
    "test_rows_before_train_end",
    "users_out_of_order",
    "duplicates_across_splits",
    "users_new_in_test",
    "items_new_in_test",
)
"""Entries of the split's audit that reveal a leak or back a claim about new users and items."""

_USERS_AT_ONCE = 1024
"""Number of users per block; the mask of allowed items takes (users, items) bytes."""


def certificate(
    config: RunConfig,
    prepared: Prepared,
    folder: RunFolder,
    record: dict[str, Any],
    candidates: pl.DataFrame | None,
    sample: Tensor | None = None,
) -> dict[str, Any]:
    """Return the certificate of a run whose files are written and whose ``record`` lacks only the certificate.

    A text model is loaded again, as another process would load it; the caller must have released the first. If loading
    fails, ``reload.error`` gives the reason.

    Args:
        candidates: (user, item) pairs ranked at test; None is the catalogue, or for ``rated`` the test pairs.
        sample: ``sample_scores`` of the tested model.
    """
    found = of_any(prepared, folder, record)
    lists, scored = pl.read_parquet(folder.lists("test")), config.diversify is None
    found["invalid_outputs"] = invalid_outputs(prepared, config.evaluation, lists, candidates, scored)
    if isinstance(config, TextRun) and config.diversify is None:
        found["invariance"] = invariance(record["diagnostics"])
        try:
            found |= _of_model(config, prepared, folder, sample)
        except Exception as error:  # the record reports it; the test's numbers remain valid
            found["reload"] = {"error": failure(error)}
    return found


def of_any(prepared: Prepared, folder: RunFolder, record: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a certificate that every record has, judged lists included."""
    return {
        "hashes": hashes(prepared, record) | {"results": results_hash(record), "files": file_hashes(folder)},
        "leak_audit": leak_audit(prepared),
        "tie_rate": record["test"]["tie_rate"],
        **surroundings(record),
    }


def hashes(prepared: Prepared, record: dict[str, Any]) -> dict[str, str]:
    """Return the hashes of a run's inputs, 16 hex digits each; inputs that a run lacks are left out."""
    data, parts = prepared.record, {part: record.get(part, {}) for part in ("prompt", "candidates", "proposals")}
    found = {
        "data": data["hash"],
        "split": data["split"]["hash"],
        "statistics": data["statistics"]["hash"],
        **{part: parts[part].get("hash") for part in ("candidates", "proposals", "prompt")},
        "backbone": record.get("backbone", {}).get("identity"),
        "config": record["run_id"],
    }
    return {name: value for name, value in found.items() if value is not None}


def results_hash(record: dict[str, Any]) -> str:
    """Return the hash of the numbers that the record reports."""
    return digest(plain({part: record.get(part) for part in ("trace", "test", "intervals")}))


def file_hashes(folder: RunFolder) -> dict[str, str]:
    """Return the first 16 hex digits of the SHA-256 of each numeric file beside the record."""
    files = [folder.per_user, folder.per_pair, folder.lists("validation"), folder.lists("test"), folder.head]
    files += sorted(folder.adapter.glob("*.safetensors"))
    return {path.relative_to(folder.path).as_posix(): _file_hash(path) for path in files if path.exists()}


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def leak_audit(prepared: Prepared) -> dict[str, int]:
    """Return the audit's counts; ``hashes.statistics`` identifies the rows that popularity and the like count."""
    audit = prepared.record["split"]["audit"]
    return {name: audit[name] for name in _LEAKS}


def surroundings(record: dict[str, Any]) -> dict[str, Any]:
    """Return the properties of machine and sources that numbers may depend on."""
    return {
        "versions": record["versions"],
        "device": record["device"],
        "threads": {"configured": record["threads"], "torch": torch.get_num_threads()},
        "git": git_state(),
    }


# Outputs -------------------------------------------------------------------------------------------------


def invalid_outputs(
    prepared: Prepared, evaluation: EvaluationConfig, lists: pl.DataFrame, candidates: pl.DataFrame | None, scored: bool
) -> dict[str, Any]:
    """Count the invalid and the missing places of the test lists.

    A place counts once in ``share``, even if it has several faults.

    Args:
        lists: user, item (the data's own ids), rank, score, as stored on disk.
        candidates: as in ``certificate``.
        scored: whether the lists have scores; reordered lists have none.
    """
    users_of, items_of = prepared.dataset.users, prepared.dataset.items
    lists = lists.join(users_of.select(user="raw_id", row="user"), on="user", how="left", maintain_order="left")
    lists = lists.join(items_of.select(item="raw_id", column="item"), on="item", how="left", maintain_order="left")
    user, item = (lists[name].fill_null(-1).to_numpy() for name in ("row", "column"))  # -1: not in the data
    outside = np.ones(lists.height, bool)
    missing, places = 0, lists.height
    for users, allowed in _allowed(prepared, evaluation, candidates):
        at = np.flatnonzero(np.isin(user, users))
        place = np.searchsorted(users, user[at])
        outside[at] = (item[at] < 0) | ~allowed[place, item[at]]
        expected = np.minimum(allowed.sum(1), max(*evaluation.k, evaluation.depth))
        short = np.maximum(expected - np.bincount(place, minlength=len(users)), 0).sum()
        missing, places = missing + int(short), places + int(short)
    repeated = lists.select(pl.struct("user", "item").is_first_distinct().not_()).to_series().to_numpy()
    finite = np.isfinite(lists["score"].fill_null(np.nan).to_numpy()) | (not scored)
    counts = {"outside_candidates": outside, "repeated": repeated, "score_not_finite": ~finite}
    return _share(
        {name: int(found.sum()) for name, found in counts.items()} | {"missing": missing},
        int((outside | repeated | ~finite).sum()) + missing,
        places,
    )


def invalid_places(
    prepared: Prepared,
    evaluation: EvaluationConfig,
    filled: np.ndarray,
    unusable: dict[str, int],
    candidates: pl.DataFrame | None,
) -> dict[str, Any]:
    """Do as ``invalid_outputs`` for another system's lists, cut at the largest of ``evaluation.k``.

    Args:
        filled: (U,) number of places that each test user's list fills.
        unusable: reason why places count as misses -> number of such places; a place counts once.
    """
    expected = np.concatenate(
        [np.minimum(allowed.sum(1), max(evaluation.k)) for _, allowed in _allowed(prepared, evaluation, candidates)]
    )
    missing = int(np.maximum(expected - filled, 0).sum())
    of_all = int(np.maximum(expected, filled).sum())
    return _share({**unusable, "missing": missing}, sum(unusable.values()) + missing, of_all)


def _share(counts: dict[str, int], invalid: int, places: int) -> dict[str, Any]:
    return {"share": invalid / places if places else 0.0, "places": places, **counts}


def _allowed(
    prepared: Prepared, evaluation: EvaluationConfig, candidates: pl.DataFrame | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield blocks of test users (U,) and the items allowed in each user's list, (U, I) bool.

    Computed from the split's rows, independently of the masks that evaluation uses.
    """
    split, dataset = prepared.split, prepared.dataset
    rated = evaluation.candidates.kind == "rated"
    held_out = split.test if rated else split.liked(split.test)
    ranked = split.test.select("user", "item") if rated else candidates
    every = evaluated_users(held_out, evaluation.test_users, at_test=True)
    known = split.known(at_test=True).select("user", "item")
    for start in range(0, len(every), _USERS_AT_ONCE):
        users = every[start : start + _USERS_AT_ONCE]
        shape = len(users), dataset.num_items
        allowed = np.ones(shape, bool) if ranked is None else _marked(ranked, users, shape)
        if evaluation.mask_seen:
            allowed &= ~_marked(known, users, shape)
        outside = unavailable(dataset, users)
        yield users, allowed if outside is None else allowed & ~outside


def _marked(pairs: pl.DataFrame, users: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return (U, I) bool: whether ``pairs`` contains user and item; ``users`` must ascend."""
    part = pairs.filter(pl.col("user").is_in(users.tolist()))
    found = np.zeros(shape, bool)
    found[np.searchsorted(users, part["user"].to_numpy()), part["item"].to_numpy()] = True
    return found


# The model -----------------------------------------------------------------------------------------------


def _of_model(config: TextRun, prepared: Prepared, folder: RunFolder, sample: Tensor | None) -> dict[str, Any]:
    """Return the measurements on the model reloaded from ``folder``."""
    found: dict[str, Any] = {}
    give_back()  # frees the tested model before another one is loaded
    backbone = backbones.load(**config.backbone.model_dump())
    data = make_data(config, prepared, backbone.tokenizer)
    proof = label_proof(config, backbone.tokenizer, data)
    if proof:
        found["label_proof"] = proof
    module = trained_module(config, prepared, backbone, data, folder)
    if sample is not None:
        with evaluating(config, module):
            again = sample_scores(module, data)
        assert again is not None
        difference = float((again - sample).abs().max())
        found["reload"] = {"largest_difference_in_score_sd": in_deviations(difference, float(sample.std()))}
    return found


@contextmanager
def evaluating(config: TextRun, module: RecModule) -> Iterator[None]:
    """Place ``module`` on the device and in the precision that a run's test uses."""
    trainer = Trainer(logger=False, enable_checkpointing=False, **trainer_options(config, Path()))
    module.to(trainer.strategy.root_device)
    with torch.no_grad(), trainer.precision_plugin.test_step_context():
        yield


def label_proof(config: TextRun, tokenizer: Any, data: TextPairDataModule) -> dict[str, Any]:
    """Return each answer's token id and the number of prompts it was proven on; empty if no answers are read.

    Raises:
        RecpeftError: the answers cannot be told apart.
    """
    labels = getattr(plugins.load("lightning_modules", config.formulation.name), "labels", None)
    token_ids = labels(config.formulation, tokenizer, data.prompt) if labels is not None else {}
    prompts = min(data.prompt.num_proven, data.prompt.num_items)
    return {"token_ids": token_ids, "prompts": prompts} if token_ids else {}


def invariance(diagnostics: dict[str, Any]) -> dict[str, Any]:
    """Return the largest change of a score under changes that must not affect it, in standard deviations of the scores.

    Args:
        diagnostics: the findings of ``Diagnostics``.
    """
    if "error" in diagnostics:
        return diagnostics
    deviation = diagnostics["standard_deviation"]
    causes = {"padding": "padding", "batch_size": "batch", "whole_text": "whole_text"}
    changes = {
        f"{name}_largest_change_in_score_sd": in_deviations(diagnostics[key], deviation)
        for name, key in causes.items()
        if key in diagnostics
    }
    return {"users": diagnostics["users"], **changes}


def in_deviations(change: float, deviation: float) -> float | None:
    """Return a change of scores in units of their standard deviation; None if all scores are equal."""
    return change / deviation if deviation else None
