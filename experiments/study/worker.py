"""A process that runs a study's runs one by one as they are handed to it: what is imported once serves them all.

It reads a line of JSON for each task from its standard input, and answers on its standard output with lines that begin
with ``MARK``; all other lines there are what the run prints. At the end of its input it saves and stops.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from recpeft import stopping
from recpeft.errors import DiskError, RecpeftError
from recpeft.stopping import Interrupted

MARK = "\x1e"
"""ASCII's record separator, before each answer."""


def main(out: Path) -> None:
    """Serve until the input ends."""
    stopping.listen()
    tasks: queue.Queue[dict[str, Any] | None] = queue.Queue()
    threading.Thread(target=_read, args=(tasks,), daemon=True).start()

    from experiments.cell.train import preflight
    from experiments.config.run import build_run
    from experiments.study.serial import run_cell

    _answer("ready")
    while (task := tasks.get()) is not None and not stopping.asked():
        configs = [build_run(raw) for raw in task["runs"]]
        try:
            if task["do"] == "preflight":
                preflight(configs, out)
                _answer("checked")
            else:
                outcome = run_cell(configs[0], out)
                _answer(
                    "ended",
                    state=outcome.state,
                    value=outcome.value,
                    seconds=outcome.seconds,
                    error=outcome.error,
                    trace=outcome.trace,
                )
        except Interrupted:
            break
        except RecpeftError as error:  # a full disk, or data that are missing: no run could do better
            _answer("refused", error=str(error), disk=isinstance(error, DiskError), trace=traceback.format_exc())
            break


def _read(tasks: queue.Queue[dict[str, Any] | None]) -> None:
    """Tasks as they come; at the end of the input, whose other side has ended or wants no more, ask to stop."""
    for line in sys.stdin:
        tasks.put(json.loads(line))
    stopping.ask("the end of the process that hands out runs")
    tasks.put(None)


def _answer(what: str, **values: Any) -> None:
    print(MARK + json.dumps({"what": what} | values), flush=True)  # noqa: T201 (for a program)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
