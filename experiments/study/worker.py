"""Worker process that executes the runs handed to it one by one, so that heavy imports happen once.

It reads one line of JSON per task from standard input, and answers on standard output with lines that begin with
``MARK``; all other lines there are output of the run. At the end of its input it saves and stops.
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
"""Prefix of each answer: ASCII's record separator."""


def main(out: Path) -> None:
    """Execute tasks until the input ends."""
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
        except RecpeftError as error:  # a full disk or missing data would end every run
            _answer("refused", error=str(error), disk=isinstance(error, DiskError), trace=traceback.format_exc())
            break


def _read(tasks: queue.Queue[dict[str, Any] | None]) -> None:
    """Queue tasks as they arrive; request a stop at the end of the input, when the parent has ended or closed it."""
    for line in sys.stdin:
        tasks.put(json.loads(line))
    stopping.ask("the end of the process that hands out runs")
    tasks.put(None)


def _answer(what: str, **values: Any) -> None:
    print(MARK + json.dumps({"what": what} | values), flush=True)  # noqa: T201 (for a program)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
