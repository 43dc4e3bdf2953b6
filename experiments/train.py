"""One run from config to record."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch

from datamodules import RecDataset
from datamodules._prompts import PromptAssembler
from experiments._cost import Cost
from experiments._data import prepare
from experiments._evaluation import ranking_metrics
from experiments._ranker_run import run_ranker
from experiments._surroundings import versions
from experiments._text_run import run_text
from experiments.config import RankerRun, RunConfig, TextRun
from experiments.grid import is_reference
from experiments.results import SCHEMA, run_folder, write_record
from lightning_modules import _backbone as backbones
from recpeft.config import digest
from recpeft.errors import RecpeftError


def preflight(configs: list[RunConfig]) -> None:
    """Check what can be checked before the first run: data, groups, backbones, prompts.

    Raises:
        RecpeftError: as the step that fails says it.
    """
    checked = set()
    for config in configs:
        prepared = prepare(config.data)
        ranking_metrics(prepared, config.evaluation)
        if isinstance(config, TextRun):
            source = config.backbone.model_dump(include={"name", "revision", "trust_remote_code"})
            prompt = digest([config.data.model_dump(mode="json"), config.prompt.model_dump(), source])
            if prompt not in checked:
                checked.add(prompt)
                _check_prompt(config, prepared.dataset, source)


def _check_prompt(config: TextRun, dataset: RecDataset, source: dict[str, Any]) -> None:
    """Whether every item and user has a text under the backbone's tokenizer, and it fits the backbone."""
    PromptAssembler(backbones.load_tokenizer(**source), dataset.items, **config.prompt.model_dump())
    limit = backbones.max_tokens(**source)
    for key in ("max_user_tokens", "max_item_tokens"):
        value = getattr(config.prompt, key)
        if limit is not None and value > limit:
            raise RecpeftError(
                f"prompt.{key} is {value} but {config.backbone.name} has positions for {limit} tokens; lower it."
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
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "status": "done",
        "run_id": config.run_id,
        "method": config.method,
        "width": config.width,
        "reference": is_reference(config),
        "config": config.model_dump(mode="json"),
        "data": prepared.record,
        "versions": versions(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": config.threads,
    }
    with Cost() as cost:
        parts = (
            run_ranker(config, prepared, folder)
            if isinstance(config, RankerRun)
            else run_text(config, prepared, folder)
        )
    record |= parts
    record["costs"] |= {
        "wall_seconds": cost.seconds,
        "peak_memory_bytes": cost.peak_memory_bytes,
        "added_memory_bytes": cost.added_memory_bytes,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_record(folder, record)
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    return record
