"""One of the processes that train a cell together, as ``launch.start`` starts them."""

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
    """Run the cell whose config is in ``folder``; an error is written there and ends the process."""
    stopping.listen()  # before what takes seconds to import
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
    """End this process when the one that started it has ended, or two would run one cell."""
    os.read(0, 1)  # nothing ever comes but the end
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
