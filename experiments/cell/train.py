"""Execute one run, from config to record."""

from __future__ import annotations

import difflib
import shutil
import time
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
from transformers import PreTrainedModel

from adapters import Adapter
from datamodules._assembler import PromptAssembler
from experiments.cell import launch
from experiments.cell.assemble import make_data
from experiments.cell.candidates import Candidates, check_first_stage, frozen_candidates, with_proposals
from experiments.cell.certificate import certificate
from experiments.cell.cost import Cost
from experiments.cell.data import Prepared, audit_line, prepare, warnings
from experiments.cell.embeddings import embeddings_record
from experiments.cell.ranker import run_ranker
from experiments.cell.reorder import run_diversified, stage_inputs
from experiments.cell.sample_lists import examples
from experiments.cell.suite import make_suite
from experiments.cell.surroundings import device_name
from experiments.cell.text import AfterValidation, run_text
from experiments.cell.tracking import Tracking, check_trackers
from experiments.config.grid import is_reference
from experiments.config.run import RankerRun, RunConfig, TextRun
from experiments.records.layout import SCHEMA, FailedRecord
from experiments.records.record import RunFolder, read_record, run_folder, write_record
from experiments.records.versions import git_state, versions
from lightning_modules import _backbone as backbones
from lightning_modules._backbone import BackboneConfig
from lightning_modules._optimizers import check_optimizer
from metrics import RankingMetrics
from recpeft import plugins, processes
from recpeft.config import digest
from recpeft.errors import RecpeftError
from recpeft.terminal import say


def preflight(configs: list[RunConfig], out: Path) -> None:
    """Check everything that can be checked before the first run: data, groups, candidates, backbones, prompts.

    Print each split's audit, with warnings that readers of the results must know.

    Raises:
        RecpeftError: a check fails.
    """
    checked = _Checked()
    audited: set[str] = set()
    for config in configs:
        check_trackers(config.trackers)
        prepared = prepare(config.data)
        metrics = make_suite(prepared, config.evaluation).ranking
        candidates = frozen_candidates(prepared, config.evaluation, out / config.study)
        if config.diversify is not None:
            stage_inputs(config, prepared)
        line = audit_line(prepared.record, candidates.hash if candidates else config.evaluation.candidates.kind)
        if line not in audited:
            audited.add(line)
            noted = [f"WARNING: {text}" for text in warnings(prepared.record, config.evaluation.mask_seen)]
            say("\n".join([line, *noted]))
        if isinstance(config, TextRun):
            _check_machine(config)
            skeleton = checked.skeleton(config)
            _check_backbone(config, skeleton)
            _check_candidates(config, candidates)
            check_first_stage(config, prepared)
            _check_early_stopping(config, metrics)
            # Checked for each cell, since its adapter's virtual tokens count.
            _check_positions(config, skeleton, checked.prompt(config, prepared, skeleton))


class _Checked:
    """Backbones and prompts, checked once for all cells that share them."""

    def __init__(self) -> None:
        self._files: set[BackboneConfig] = set()
        self._skeletons: dict[str, PreTrainedModel] = {}
        self._prompts: dict[str, PromptAssembler] = {}

    def skeleton(self, config: TextRun) -> PreTrainedModel:
        """Return the backbone's model without weights, and check its files."""
        if config.backbone not in self._files:
            self._files.add(config.backbone)
            backbones.check_files(**config.backbone.model_dump(exclude={"compute_dtype"}))
        key = digest(config.backbone.source)
        if key not in self._skeletons:
            self._skeletons[key] = backbones.skeleton(**config.backbone.source)
        return self._skeletons[key]

    def prompt(self, config: TextRun, prepared: Prepared, skeleton: PreTrainedModel) -> PromptAssembler:
        """Return the prompt, checked against vocabulary and formulation; this fills the token cache."""
        parts = {"training": {"negatives", "balance", "examples"}}
        shared = config.model_dump(mode="json", include={"data": True, "prompt": True, "formulation": True, **parts})
        key = digest([shared, config.backbone.source])
        if key not in self._prompts:
            tokenizer = backbones.load_tokenizer(**config.backbone.source)
            prompt = self._prompts[key] = make_data(config, prepared, tokenizer).prompt
            backbones.check_vocabulary(config.backbone.name, skeleton, tokenizer, prompt.largest_id)
            check = getattr(plugins.load("lightning_modules", config.formulation.name), "check", None)
            if check is not None:
                check(config.formulation, skeleton, prompt, tokenizer)
        return self._prompts[key]


def _check_machine(config: TextRun) -> None:
    """Raise ``RecpeftError`` if this machine cannot do what ``training`` asks for."""
    launch.check(config)
    check_optimizer(config.training.optimizer)
    if config.training.precision == "16-mixed" and not torch.cuda.is_available():
        raise RecpeftError(
            "training.precision is 16-mixed, which needs a CUDA device, and there is none; use bf16-mixed."
        )


def _check_backbone(config: TextRun, skeleton: PreTrainedModel) -> None:
    """Raise ``RecpeftError`` if the backbone lacks what width, adapter or training need."""
    backbones.check_quantisable(skeleton, config.backbone.width, config.backbone.skip_modules)
    if config.training.gradient_checkpointing == "layers":
        backbones.check_layer_checkpointing(skeleton)
    Adapter(config.adapter).check(skeleton)


def _check_positions(config: TextRun, skeleton: PreTrainedModel, prompt: PromptAssembler) -> None:
    """Raise ``RecpeftError`` if the backbone has too few positions for the longest text."""
    limit = backbones.longest_text(skeleton)
    longest = int(prompt.items(np.arange(prompt.num_items)).lengths.max())
    texts = {"prompt.max_user_tokens": config.prompt.max_user_tokens, "prompt.max_item_tokens": longest}
    if prompt.form == "list":
        size = config.formulation.list_size or 1
        choices = sum(map(len, prompt.choices(size)))
        texts = {"the text of prompt.max_user_tokens and a list": config.prompt.max_user_tokens}
        texts["the text of prompt.max_user_tokens and a list"] += choices + size * longest + len(prompt.tail)
    elif prompt.read_together:
        texts = {"the text of prompt.max_user_tokens and an item": config.prompt.max_user_tokens + longest}
    virtual = config.adapter.positions()
    for what, length in texts.items():
        if limit and length + virtual > limit:
            beside = f" and adapter.num_virtual_tokens {virtual}" if virtual else ""
            raise RecpeftError(
                f"{what} is {length}{beside} but {config.backbone.name} has positions for {limit} tokens; lower "
                "prompt.max_user_tokens or prompt.max_item_tokens."
            )


def _check_candidates(config: TextRun, candidates: Candidates | None) -> None:
    """Raise ``RecpeftError`` if the formulation cannot rank as many items as the evaluation gives a user."""
    most = config.formulation.max_candidates
    if most is None or candidates is None:
        return
    for frame in candidates.frames:
        counts = frame.group_by("user").len()["len"].to_numpy()
        if counts.max() > most:
            raise RecpeftError(
                f"formulation {config.formulation.name} ranks at most {most} items, but {(counts > most).sum()} users "
                f"have more candidates, up to {counts.max()}; lower evaluation.candidates.size, or use a data.split "
                "that holds out fewer items, such as leave_one_out."
            )


def _check_early_stopping(config: TextRun, metrics: RankingMetrics) -> None:
    """Raise ``RecpeftError`` if early stopping monitors a metric that is not measured."""
    stopping = config.training.early_stopping
    if stopping is None or stopping.monitor is None:
        return
    with catch_warnings():
        simplefilter("ignore")  # nothing has been measured yet; only the names matter
        stamp = config.evaluation.candidates.stamp
        known = {*metrics.compute(), *(name + stamp for name in config.evaluation.measured), "train/loss"}
    if stopping.monitor not in known:
        close = difflib.get_close_matches(stopping.monitor, known, 3)
        hint = f", such as {', '.join(close)}" if close else ""
        raise RecpeftError(
            f"training.early_stopping.monitor is {stopping.monitor!r}, which is not measured; name a metric of a "
            f"record's trace{hint}."
        )


def run(config: RunConfig, out: Path | str = Path("runs")) -> dict[str, Any]:
    """Run ``config``, or resume it from its last checkpoint, and write its record.

    If it asks for several processes, start them, unless this is one of them: then all of them must call this.

    Args:
        out: the record is ``<out>/<study>/<run_id>/result.json``.
    Returns:
        The record.
    Raises:
        RecpeftError: an error that the user can fix.
    """
    out = Path(out)
    if launch.are_to_be_started(config):
        return launch.start(config, out)
    launch.join()
    if launch.wanted(config) > 1:
        return processes.of_first(_run(config, out))
    if config.diversify is not None:
        _base_run(config, out)  # by all processes together
    record: dict[str, Any] = {}
    if processes.number() == 0:
        with processes.alone():
            record = _run(config, out)
    return processes.of_first(record)


def _run(config: RunConfig, out: Path) -> dict[str, Any]:
    folder = run_folder(out, config.study, config.run_id)
    torch.set_num_threads(config.threads)
    git_state()  # read now, before somebody edits the sources during a long run
    prepared = prepare(config.data)
    base = None if config.diversify is None else _base_run(config, out)
    with Tracking(config, prepared.record["name"], folder) as tracking:
        record = _record(config, out, folder, prepared, base, tracking)
        if processes.number() > 0:
            return record
        tracking.finish(record)
    written = write_record(folder, record)
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    folder.progress.unlink(missing_ok=True)
    return written


def _record(
    config: RunConfig, out: Path, folder: RunFolder, prepared: Prepared, base: RunFolder | None, tracking: Tracking
) -> dict[str, Any]:
    """Train or fit, test, and return the record.

    Args:
        base: folder of the run whose lists are reordered; None if none are.
    """
    study = out / config.study
    candidates = frozen_candidates(prepared, config.evaluation, study)
    record = _beginning(config, prepared, candidates)
    ranked = with_proposals(config, prepared, candidates, study) if isinstance(config, TextRun) else candidates
    frames, tested, sample = ranked.frames if ranked else None, ranked.test if ranked else None, None
    hashed = record["candidates"]["hash"] or config.evaluation.candidates.kind
    if base is not None:
        record |= run_diversified(config, prepared, base, folder, frames)
        record["examples"] = examples(folder, prepared, config.evaluation)
        record["audit"] = audit_line(prepared.record, hashed)
        record["certificate"] = certificate(config, prepared, folder, record, tested)
        record["costs"]["finished"] = _now()
        return record
    with Cost() as cost:
        if isinstance(config, RankerRun):
            parts = run_ranker(config, prepared, folder, frames)
        else:
            parts, sample = run_text(config, prepared, folder, frames, tracking)
    record |= parts
    record["audit"] = audit_line(prepared.record, hashed, record.get("prompt", {}).get("hash"))
    record["costs"] |= {
        "wall_seconds": cost.seconds,
        "peak_memory_bytes": max(processes.gathered(cost.peak_memory_bytes)),
        "added_memory_bytes": max(processes.gathered(cost.added_memory_bytes)),
        "finished": _now(),
    }
    if isinstance(config, TextRun) and config.formulation.proposes is not None:
        record["proposals"] = {"size": config.formulation.proposes, "hash": ranked.hash if ranked else None}
    if processes.number() > 0:  # the first one writes
        return record
    start = time.perf_counter()
    with processes.alone():
        record["examples"] = examples(folder, prepared, config.evaluation)
        record["certificate"] = certificate(config, prepared, folder, record, tested, sample)
    record["costs"]["certificate_seconds"] = time.perf_counter() - start
    return record


def _beginning(config: RunConfig, prepared: Prepared, candidates: Candidates | None) -> dict[str, Any]:
    """Return the record's part that is known before anything is trained."""
    return {
        "schema": SCHEMA,
        "status": "done",
        "run_id": config.run_id,
        "method": config.method,
        "width": config.width,
        "reference": is_reference(config),
        "config": config.model_dump(mode="json", exclude={"trackers"}),
        "monitor": config.evaluation.monitored,
        "data": prepared.record,
        "candidates": {"kind": config.evaluation.candidates.kind, "hash": candidates.hash if candidates else None},
        "embeddings": embeddings_record(prepared, config.evaluation.embeddings),
        "versions": versions(),
        "device": device_name(),
        "threads": config.threads,
    }


def run_trial(config: TextRun, out: Path, watch: AfterValidation) -> dict[str, Any]:
    """Train and validate ``config``, or resume it from its last checkpoint, without reading the test split.

    ``run`` with the same config continues from there with the test.

    Returns:
        The ``trace``, and its ``best`` epoch.
    """
    torch.set_num_threads(config.threads)
    prepared = prepare(config.data)
    candidates = frozen_candidates(prepared, config.evaluation, out / config.study)
    ranked = with_proposals(config, prepared, candidates, out / config.study)
    folder = run_folder(out, config.study, config.run_id)
    # No trackers: if this run is the one tested later, they receive its rows from the checkpoint then.
    tracking = Tracking(config.model_copy(update={"trackers": ()}), prepared.record["name"], folder)
    parts, _ = run_text(config, prepared, folder, ranked.frames if ranked else None, tracking, watch)
    return parts


def _base_run(config: RunConfig, out: Path) -> RunFolder:
    """Return the folder of the run whose lists are reordered; run it first if needed.

    Raises:
        RecpeftError: that run failed.
    """
    base = config.undiversified
    folder = run_folder(out, base.study, base.run_id)
    record = processes.of_first(read_record(folder))
    if record is None:
        run(base, out)
    elif isinstance(record, FailedRecord):
        raise RecpeftError(f"the run whose lists are reordered, {base.run_id}, failed: {record.error}")
    return folder


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
