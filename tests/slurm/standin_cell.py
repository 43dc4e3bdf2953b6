"""A cell for tests of the cluster: it counts steps, saves when told to stop, and fails where its plan says so.

``standin_cell.py FOLDER INDEX`` reads ``FOLDER/plan.json``: ``steps`` and ``seconds`` a step, ``hold`` (cells that,
started for the first time, go on until they are told to stop) and ``fail`` (cells that fail).
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType

told: list[int] = []


def hear(number: int, frame: FrameType | None) -> None:
    told.append(number)


for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, hear)

folder, index = Path(sys.argv[1]), int(sys.argv[2])
plan = json.loads((folder / "plan.json").read_text())
progress = folder / f"progress-{index}.json"
# Steps of each start, and the signals that ended one.
state = json.loads(progress.read_text()) if progress.exists() else {"starts": [], "signals": []}
state["starts"].append(0)
began = time.time()
while sum(state["starts"]) < plan["steps"] or (index in plan["hold"] and len(state["starts"]) == 1):
    time.sleep(plan["seconds"])
    state["starts"][-1] += 1
    progress.with_suffix(".steps").write_text(str(sum(state["starts"])))
    if told:
        state["signals"].append(signal.Signals(told[0]).name)
        progress.write_text(json.dumps(state))
        sys.exit(75)
progress.write_text(json.dumps(state))
failed = index in plan["fail"]
record = {"status": "failed", "error": f"cell {index} fails by design"} if failed else {"status": "done"}
record |= {"began": began, "ended": time.time()}
(folder / f"record-{index}.json").write_text(json.dumps(record))
sys.exit(1 if failed else 0)
