"""One run from config to record."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from adapters import Adapter
from experiments._assemble import make_data
from experiments._candidates import frozen_candidates
from experiments._cost import Cost
from experiments._data import audit_line, prepare, warnings
from experiments._evaluation import ranking_metrics
from experiments._ranker_run import run_ranker
from experiments._surroundings import versions
from experiments._text_run import run_text
from experiments.config import RankerRun, RunConfig, TextRun
from experiments.grid import is_reference
from experiments.results import SCHEMA, run_folder, write_record
from lightning_modules import _backbone as backbones
from lightning_modules._optimizers import check_optimizer
from recpeft import plugins
from recpeft.config import digest
from recpeft.errors import RecpeftError


def preflight(configs: list[RunConfig], out: Path) -> None:
    """Check what can be checked before the first run: data, groups, candidates, backbones, prompts.

    Each split's audit is printed, and what of it a reader of the results must know.

    Raises:
        RecpeftError: as the step that fails says it.
    """
    prompts: set[str] = set()
    skeletons: dict[str, PreTrainedModel] = {}
    audited: set[str] = set()
    for config in configs:
        prepared = prepare(config.data)
        ranking_metrics(prepared, config.evaluation)
        candidates = frozen_candidates(prepared, config.evaluation, out / config.study)
        line = audit_line(prepared.record, candidates.hash if candidates else None)
        if line not in audited:
            audited.add(line)
            print("\n".join([line, *(f"WARNING: {text}" for text in warnings(prepared.record))]), flush=True)
        if isinstance(config, TextRun):
            _check_machine(config)
            source = config.backbone.source
            if digest(source) not in skeletons:
                skeletons[digest(source)] = backbones.skeleton(**source)
            _check_backbone(config, skeletons[digest(source)])
            shared = config.model_dump(
                mode="json",
                include={"data": True, "prompt": True, "formulation": True, "training": {"negatives", "balance"}},
            )
            prompt = digest([shared, source])
            if prompt not in prompts:
                prompts.add(prompt)
                # Also fills the token cache for all cells that share the prompt.
                tokenizer = backbones.load_tokenizer(**source)
                data = make_data(config, prepared, tokenizer)
                check = getattr(plugins.load("lightning_modules", config.formulation.name), "check", None)
                if check is not None:
                    check(config.formulation, skeletons[digest(source)], data.prompt, tokenizer)


def _check_machine(config: TextRun) -> None:
    """Whether this machine can do what ``training`` asks for."""
    check_optimizer(config.training.optimizer)
    if config.training.precision == "16-mixed" and not torch.cuda.is_available():
        raise RecpeftError(
            "training.precision is 16-mixed, which needs a CUDA device, and there is none; use bf16-mixed."
        )


def _check_backbone(config: TextRun, skeleton: PreTrainedModel) -> None:
    """Whether the backbone has what width, adapter and training need, and positions for the longest prompt."""
    backbones.check_quantisable(skeleton, config.backbone.width, config.backbone.skip_modules)
    if config.training.gradient_checkpointing == "layers":
        backbones.check_layer_checkpointing(skeleton)
    Adapter(config.adapter).check(skeleton)
    limit = getattr(skeleton.config, "max_position_embeddings", None)
    virtual = config.adapter.positions()
    for key in ("max_user_tokens", "max_item_tokens"):
        value = getattr(config.prompt, key)
        if limit and value + virtual > limit:
            beside = f" and adapter.num_virtual_tokens {virtual}" if virtual else ""
            raise RecpeftError(
                f"prompt.{key} is {value}{beside} but {config.backbone.name} has positions for {limit} tokens; "
                "lower it."
            )


def run(config: RunConfig, out: Path = Path("runs")) -> dict[str, Any]:
    """Run ``config``, or go on from its last checkpoint, and write its record.

    Args:
        out: the record is ``<out>/<study>/<run_id>/result.json``.
    Returns:
        The record.
    Raises:
        RecpeftError: what the user can mend.
    """
    folder = run_folder(out, config.study, config.run_id)
    torch.set_num_threads(config.threads)
    prepared = prepare(config.data)
    candidates = frozen_candidates(prepared, config.evaluation, out / config.study)
    frames = (candidates.validation, candidates.test) if candidates else None
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "status": "done",
        "run_id": config.run_id,
        "method": config.method,
        "width": config.width,
        "reference": is_reference(config),
        "config": config.model_dump(mode="json"),
        "monitor": config.evaluation.monitored,
        "data": prepared.record,
        "candidates": {"kind": config.evaluation.candidates.kind, "hash": candidates.hash if candidates else None},
        "versions": versions(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": config.threads,
    }
    with Cost() as cost:
        parts = (
            run_ranker(config, prepared, folder, frames)
            if isinstance(config, RankerRun)
            else run_text(config, prepared, folder, frames)
        )
    record |= parts
    record["audit"] = audit_line(
        prepared.record, candidates.hash if candidates else None, record.get("prompt", {}).get("hash")
    )
    record["costs"] |= {
        "wall_seconds": cost.seconds,
        "peak_memory_bytes": cost.peak_memory_bytes,
        "added_memory_bytes": cost.added_memory_bytes,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    written = write_record(folder, record)
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    return written
