"""Check a finished run's certificate by recomputing it from the files on disk."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor

from datamodules import TextPairDataModule
from experiments.cell.assemble import make_data
from experiments.cell.candidates import Candidates, frozen_candidates, with_proposals
from experiments.cell.certificate import (
    evaluating,
    file_hashes,
    in_deviations,
    invalid_outputs,
    invariance,
    label_proof,
    leak_audit,
    results_hash,
    surroundings,
)
from experiments.cell.data import Prepared, prepare
from experiments.cell.reorder import stored_lists
from experiments.cell.saved_run import config_of, finished_record, trained_module
from experiments.cell.suite import HeldOut, ranking_metrics
from experiments.cell.surroundings import device_name, quiet
from experiments.config.run import RunConfig, TextRun
from experiments.finished.judge import judged_id
from experiments.records.layout import FinishedRecord
from experiments.records.record import RunFolder, read_table
from experiments.records.versions import versions
from lightning_modules import RecModule
from lightning_modules import _backbone as backbones
from lightning_modules._diagnostics import ITEMS, USERS, diagnose, failure
from metrics import match
from metrics._judged import among
from recpeft.config import plain
from recpeft.errors import RecpeftError
from recpeft.terminal import say, say_json

State = Literal["holds", "no longer holds", "differs", "not checked"]

TOLERANCE = 1e-3
"""Maximum change of scores, in their standard deviation: float32 differs by 1e-5 between machines, faults by 0.1 up."""

_NOISE = 3
"""Factor by which recomputed scores may move further than they moved with the batch size: LLM.int8's outlier columns
and half precision make scores depend on the batch."""

_PER_USER, _LISTS = "hashes.files.per_user.parquet", "hashes.files.test_lists.parquet"


@dataclass(frozen=True)
class Check:
    """Check of one field of a certificate, or of the consistency of files with the record."""

    field: str
    """Dotted key in the certificate, or a name if the check is not in the certificate."""
    state: State
    recorded: Any = None
    now: Any = None
    note: str = ""


def check_certificate(run: Path) -> list[Check]:
    """Check a run's certificate, and whether the record's numbers match the files beside it.

    Nothing is written. Different versions, devices or sources are reported but are no failure; the number of threads
    is set to the run's.

    Args:
        run: a finished run's folder, ``runs/<study>/<run_id>``.
    Raises:
        RecpeftError: ``run`` is no finished run or has no certificate, or its data cannot be read.
    """
    quiet()
    folder, record = RunFolder(run), finished_record(run)
    if record.certificate is None:
        raise RecpeftError(f"{run} has no certificate, which this version writes; run it again to have one.")
    config = config_of(run, record)
    torch.set_num_threads(config.threads)
    prepare.cache_clear()  # the files may have changed since this process read them
    prepared = prepare(config.data)

    found = _Checks(record.certificate.json_values)
    hashes = {name: prepared.record[name]["hash"] for name in ("statistics", "split")}
    hashes |= {"data": prepared.record["hash"], "results": results_hash(record.json_values)}
    judged = record.config.json_values.get("recommendations")
    hashes["config"] = judged_id(judged, config) if judged else config.run_id
    for name, value in hashes.items():
        found.put(f"hashes.{name}", value)
    found.put("hashes.files", file_hashes(folder))
    found.put("leak_audit", leak_audit(prepared))
    here = {"versions": versions(), "device": device_name(), "threads": config.threads}
    for name, value in surroundings(here).items():
        found.put(name, value, otherwise="differs")
    found.put("record.data", plain(prepared.record) == record.data.json_values, recorded=True)
    candidates = _candidates(found, config, prepared, run.parent)
    same = all(found.hold(f"hashes.{name}") for name in ("data", "split", "candidates", "proposals"))
    if found.hold(_PER_USER):
        _check_means(found, record, read_table(folder, folder.per_user))
    if judged:
        found.leave(("tie_rate", "invalid_outputs"), "the file of recommendations is not kept")
    elif same and found.hold(_LISTS) and found.hold(_PER_USER):
        _check_lists(found, record, folder, config, prepared, candidates)
    if config.diversify is not None:
        base = run.parent / record.reordered.run_id if record.reordered else run
        found.leave(("hashes.prompt", "hashes.backbone"), f"of the run that was reordered; certify {base}")
    elif isinstance(config, TextRun) and same:
        _check_model(found, folder, config, prepared, candidates)
    return found.checks


class _Checks:
    """Checks of a certificate's fields; a field that is never compared stays "not checked"."""

    def __init__(self, recorded: dict[str, Any]) -> None:
        note = "what it is worked out from is another by now"
        self._found = {
            field: Check(field, "not checked", value, note=note) for field, value in _leaves(recorded).items()
        }

    @property
    def checks(self) -> list[Check]:
        return list(self._found.values())

    def recorded(self, field: str) -> Any:
        return self._found[field].recorded if field in self._found else None

    def hold(self, field: str) -> bool:
        """Return whether a field still holds; a field that the certificate lacks counts as holding."""
        return field not in self._found or self._found[field].state == "holds"

    def below(self, place: str) -> list[str]:
        """Return the fields at ``place`` and below it."""
        return [field for field in self._found if field == place or field.startswith(f"{place}.")]

    def put(
        self, place: str, now: Any, *, otherwise: State = "no longer holds", recorded: Any = None, note: str = ""
    ) -> None:
        """Compare the current value of ``place``, and of all fields below it, with the recorded one.

        Args:
            now: the current value.
            otherwise: state of a field whose value has changed.
            recorded: recorded value of a field that the certificate lacks.
        """
        fields = _leaves(now, place)
        for field in dict.fromkeys([*self.below(place), *fields]):
            was = recorded if field not in self._found else self.recorded(field)
            state = "holds" if fields.get(field) == was else otherwise
            self._found[field] = Check(field, state, was, fields.get(field), note)

    def put_score_change(self, place: str, now: dict[str, Any], against: str = "") -> None:
        """Check a change of scores; it holds if it is small, or comparable to changes already recorded.

        The limit is ``TOLERANCE``, or ``_NOISE`` times the recorded change with the batch size or of the field itself.
        """
        batch = self.recorded("invariance.batch_size_largest_change_in_score_sd") or 0.0
        for field, value in _leaves(now, place).items():
            was = self.recorded(field)
            most = max(TOLERANCE, _NOISE * batch, _NOISE * (was or 0.0))
            holds = value == was or (value is not None and value <= most)  # NaN does not hold
            note = f"{against}at most {most:.1g} holds"
            self._found[field] = Check(field, "holds" if holds else "no longer holds", was, value, note)

    def lose(self, place: str, why: str) -> None:
        """Mark the fields at ``place`` as no longer holding, because they cannot be recomputed."""
        for field in self.below(place):
            self._found[field] = replace(self._found[field], state="no longer holds", note=why)

    def leave(self, places: tuple[str, ...], why: str) -> None:
        """Note why the fields at ``places`` cannot be checked, which does not count against the run."""
        for field in (field for place in places for field in self.below(place)):
            self._found[field] = replace(self._found[field], note=why)


def _leaves(tree: Any, place: str = "") -> dict[str, Any]:
    """Flatten a nested dict to dotted keys below ``place``; a value that is no dict gets the key ``place``."""
    if not isinstance(tree, dict):
        return {place: tree}
    parts = ((f"{place}.{name}" if place else str(name), part) for name, part in tree.items())
    return {field: value for name, part in parts for field, value in _leaves(part, name).items()}


def _candidates(found: _Checks, config: RunConfig, prepared: Prepared, study: Path) -> Candidates | None:
    """Return the ranked candidates stored beside the runs; draw them again if they are missing."""
    ranked = None
    for name in ("candidates", "proposals"):
        try:
            if name == "candidates":
                ranked = frozen_candidates(prepared, config.evaluation, study, keep=False)
            elif isinstance(config, TextRun):
                ranked = with_proposals(config, prepared, ranked, study, keep=False)
        except RecpeftError as error:
            found.lose(f"hashes.{name}", str(error))
            return None
        if found.below(f"hashes.{name}"):
            found.put(f"hashes.{name}", ranked.hash if ranked else None)
    return ranked


# The numbers ---------------------------------------------------------------------------------------------


def _check_means(found: _Checks, record: FinishedRecord, per_user: pl.DataFrame) -> None:
    """Check that the record's metrics are the means of its users' values."""
    names = [name for name in per_user.columns if name in record.test]
    means = {name: per_user[name].fill_nan(None).mean() for name in names}
    _put_metrics(found, "record.test from per_user.parquet", record.test, means)


def _put_metrics(found: _Checks, field: str, recorded: dict[str, Any], now: dict[str, Any]) -> None:
    other = [name for name, value in now.items() if not _equal(recorded.get(name), value)]
    note = "; ".join(f"{name} {_shown(recorded.get(name))}, now {_shown(now[name])}" for name in other[:3])
    found.put(field, len(now) - len(other), recorded=len(now), note=note or "values that agree")


def _equal(recorded: float | None, now: float | None) -> bool:
    """Compare values except for their last digits, which depend on the order of sums; null stands for NaN."""
    first, second = (math.nan if value is None else float(value) for value in (recorded, now))
    return math.isclose(first, second, rel_tol=1e-6, abs_tol=1e-9) or (math.isnan(first) and math.isnan(second))


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"


def _check_lists(
    found: _Checks,
    record: FinishedRecord,
    folder: RunFolder,
    config: RunConfig,
    prepared: Prepared,
    candidates: Candidates | None,
) -> None:
    """Check metrics, ties and invalid places of the lists on disk."""
    evaluation, scored = config.evaluation, config.diversify is None
    ranked, lists = candidates.test if candidates else None, read_table(folder, folder.lists("test"))
    found.put("invalid_outputs", invalid_outputs(prepared, evaluation, lists, ranked, scored))
    users, item, score = stored_lists(folder, "test", prepared)
    k, places = max(evaluation.k), item.shape[1]
    if not scored:
        found.leave(("tie_rate",), "of the scores that made the lists, before they were reordered")
    elif places <= k < prepared.dataset.num_items and places == max(k, evaluation.depth):
        found.leave(("tie_rate",), "lists end at evaluation.k, where the next score may be equal")
    else:
        tied = (score[:, 1:] == score[:, :-1])[:, :k].any(dim=1)
        found.put("tie_rate", tied.double().mean().item())

    ranking = ranking_metrics(prepared, evaluation)
    split, num_users = prepared.split, prepared.dataset.num_users
    pairs, shown = HeldOut(split.liked(split.test), num_users), HeldOut(split.test, num_users)
    for part in torch.arange(len(users)).split(1024):
        relevant = pairs.of(users[part])
        made = relevant.grading(match(users[part], item[part], relevant.pairs, prepared.dataset.num_items))
        if evaluation.candidates.kind == "rated":
            made = replace(made, shown=shown.of(users[part]).pairs)
        ranking.update(made.top(min(k, places)))
    # Ties and sizes are not list metrics; every list metric has its cut-off in its name.
    again = {name: value for name, value in ranking.compute().items() if "@" in name}
    _put_metrics(found, "record.test from test_lists.parquet", record.test, again)
    per_user, columns = read_table(folder, folder.per_user), ranking.per_user()
    names = [name for name in columns if name in per_user.columns]
    close = [np.allclose(per_user[n], columns[n].numpy(), rtol=1e-6, atol=1e-9, equal_nan=True) for n in names]
    found.put("per_user.parquet from test_lists.parquet", sum(close), recorded=len(names), note="columns that agree")


# The model -----------------------------------------------------------------------------------------------


def _check_model(
    found: _Checks, folder: RunFolder, config: TextRun, prepared: Prepared, candidates: Candidates | None
) -> None:
    """Check prompt and labels with the current tokenizer, and the scores of the reloaded model."""
    try:
        backbone = backbones.load(**config.backbone.model_dump())
    except RecpeftError as error:
        found.lose("hashes.backbone", str(error))
        return
    found.put("hashes.backbone", backbone.identity)
    data = make_data(config, prepared, backbone.tokenizer, candidates.frames if candidates else None)
    found.put("hashes.prompt", data.prompt.hash)
    try:
        proof = label_proof(config, backbone.tokenizer, data)
    except RecpeftError as error:
        found.lose("label_proof", str(error))
    else:
        if proof:
            found.put("label_proof", proof)
    try:
        module = trained_module(config, prepared, backbone, data, folder)
    except RecpeftError as error:
        found.lose("reload", str(error))
        return
    try:
        _check_scores(found, module, folder, config, prepared, data)
    except Exception as error:  # for example out of memory; the other checks remain valid
        for place in ("invariance", "reload"):
            found.lose(place, failure(error))


def _check_scores(
    found: _Checks,
    module: RecModule,
    folder: RunFolder,
    config: TextRun,
    prepared: Prepared,
    data: TextPairDataModule,
) -> None:
    """Check the invariances of the reloaded model's scores, and that they equal those on disk."""
    with evaluating(config, module):
        for items in data.catalogue():
            module.encode_catalogue(move_data_to_device(items, module.device))
        diagnosed = diagnose(module, data)
        moved = invariance(diagnosed)
        found.put("invariance.users", moved.pop("users"))
        found.put_score_change("invariance", moved)
        if found.hold(_LISTS) and found.hold(_PER_USER):
            difference = _from_stored(module, data, folder, prepared)
            change = in_deviations(difference, diagnosed["standard_deviation"])
            against = "against test_lists.parquet; "
            found.put_score_change("reload", {"largest_difference_in_score_sd": change}, against)


def _from_stored(module: RecModule, data: TextPairDataModule, folder: RunFolder, prepared: Prepared) -> float:
    """Return the largest difference between recomputed and stored scores, over some users' best items."""
    users = data.test_users[:USERS]
    every, item, score = stored_lists(folder, "test", prepared)
    row = torch.searchsorted(every, torch.from_numpy(users))
    item, score = item[row, :ITEMS], score[row, :ITEMS]
    (batch,) = data.test_batches(users)
    batch = move_data_to_device(batch, module.device)
    found: Tensor
    if batch.candidates is None:
        found = module.score(batch, item.to(module.device))
    else:
        scores = module.score(batch, batch.candidates)
        owner = torch.arange(len(scores), device=module.device) if batch.owner is None else batch.owner
        every_item = among(scores, batch.candidates, owner, len(users), module.num_items)
        found = every_item.gather(1, item.clamp(min=0).to(module.device))
    return float((found.cpu() - score).masked_fill(item < 0, 0.0).abs().max())


def show(run: Path, checks: list[Check], as_json: bool = False) -> None:
    """Print a line for each check, or all checks as JSON."""
    counts = Counter(check.state for check in checks)
    if as_json:
        found = {"run": str(run), "holds": not counts["no longer holds"], "checks": [asdict(check) for check in checks]}
        say_json(plain(found))
        return
    for check in checks:
        was, now = (_value(value) for value in (check.recorded, check.now))
        text = now if check.state == "holds" else was if check.state == "not checked" else f"recorded {was}, now {now}"
        note = f" ({check.note})" if check.note else ""
        say(f"{check.state:15s}  {check.field}: {text}{note}")
    say(f"{run}: {', '.join(f'{number} {state}' for state, number in counts.items())}")


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
