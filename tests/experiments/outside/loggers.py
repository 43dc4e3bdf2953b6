"""Lightning loggers from outside: one that writes what it is told as lines of JSON, one that fails at step 2."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger


class Lines(Logger):
    name = "lines"
    version = 0

    def __init__(self, path: str, title: str = "") -> None:
        super().__init__()
        self._path = Path(path)
        self._write({"title": title})

    def _write(self, row: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(row, default=str) + "\n")

    def log_hyperparams(self, params: Any) -> None:
        self._write({"hyperparameters": params})

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._write({"step": step} | metrics)

    def finalize(self, status: str) -> None:
        self._write({"status": status})


class Fails(Lines):
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, step)
        if step == 2:
            raise ConnectionError("the tracker's server is gone")
