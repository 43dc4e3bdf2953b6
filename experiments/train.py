"""One run from config to record."""

from __future__ import annotations

import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from experiments._cost import Cost
from experiments._data import prepare
from experiments._evaluation import ranking_metrics
from experiments._ranker_run import run_ranker
from experiments._text_run import run_text
from experiments.config import RankerRun, RunConfig, TextRun
from experiments.grid import is_reference
from experiments.results import SCHEMA, run_folder, write_record
from lightning_modules import _backbone as backbones
from recpeft import __version__


def preflight(configs: list[RunConfig]) -> None:
    """Check what can be checked before the first run: data, groups, backbones.

    Raises:
        RecpeftError: as the step that fails says it.
    """
    for config in configs:
        prepared = prepare(config.data)
        ranking_metrics(prepared, config.evaluation)
        if isinstance(config, TextRun):
            backbones.check_reachable(config.backbone.name, config.backbone.revision)


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
        "versions": _versions(),
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


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "peft", "bitsandbytes", "lightning", "torchmetrics", "polars", "numpy")
    return {"recpeft": __version__, "python": platform.python_version()} | {n: version(n) for n in names}
