"""What the runner costs of a study: twelve cells of a few steps, one after another and in two processes at a time.

    .venv/bin/python benchmarks/runner.py

MiniLM with LoRA on MovieLens-100K, 8 steps a cell and a test of 300 users. The overhead is the wall time of the whole
command less the cells' own time for each worker (``costs.wall_seconds`` of the records: loading, training, validation,
test, writing), over the wall time; process starts, imports, data, checks and the table are in it. About five minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

QUICKSTART = Path(__file__).parents[1] / "experiments" / "configs" / "quickstart.yaml"
CHANGES = {
    "extends": str(QUICKSTART),
    "study": "runner",
    "references": [],
    "include": [],
    "grid": {"backbone.width": ["none", "nf4"], "adapter.rank": [4, 16]},
    "seeds": [0, 1, 2],
    "training": {"max_steps": 8, "steps_per_epoch": 8},
    "evaluation": {"test_users": 300},
}


def overhead(workers: int, folder: Path) -> None:
    """Run the study, and print what of its wall time is none of the cells' own."""
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(CHANGES))
    out = folder / str(workers)
    command = [sys.executable, "-m", "experiments.cli", "run", str(file), "--out", str(out), "--workers", str(workers)]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, env=os.environ)
    wall = time.perf_counter() - start
    records = [json.loads(path.read_text()) for path in out.glob("runner/*/result.json")]
    own = [record["costs"]["wall_seconds"] for record in records]
    share = 1 - sum(own) / workers / wall
    print(f"{workers} at a time: {len(own)} cells, {sum(own):.0f} s of their own, {wall:.0f} s: overhead {share:.1%}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for workers in (1, 2):
            overhead(workers, Path(folder))
