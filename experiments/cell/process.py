"""Entry point of a process that ``launch.start`` starts to train a cell together with others."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path

from recpeft import stopping
from recpeft.errors import RecpeftError
from recpeft.terminal import guard


def main(folder: Path, out: Path) -> None:
    """Run the cell whose config is in ``folder``; write an error there and exit."""
    stopping.listen()  # before the imports that take seconds
    guard()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    stopping.watch([folder / stopping.STOP_FILE])

    from experiments.cell.launch import leave, place
    from experiments.cell.train import run
    from experiments.config.run import build_run

    try:
        run(build_run(json.loads((folder / "config.json").read_text(encoding="utf-8"))), out)
    except Exception as error:
        text = {
            "kind": type(error).__name__,
            "sentence": str(error) if isinstance(error, RecpeftError) else f"{type(error).__name__}: {error}",
            "traceback": "".join(traceback.format_exception(error)),
            "time": time.time(),
        }
        written = folder / f".error-{place().number}"
        written.write_text(json.dumps(text), encoding="utf-8")
        written.replace(folder / f"error-{place().number}.json")
        leave()


def _end_with_parent() -> None:
    """End this process when its parent ends, so that two never run one cell."""
    os.read(0, 1)  # returns only when the parent's end of the pipe closes
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
