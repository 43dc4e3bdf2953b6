"""The processes of a cell that has several: who this one is, how they find each other, and how they are started.

They are started by torchrun or by ``srun``, or by ``start``, where nobody has done so. It does not use torchrun, which
kills its processes 30 seconds after a signal, dies of USR1, and exits with 1 whatever their codes were: ``start`` asks
them to stop by a file, waits until they have saved, and reads from files what ended them.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NoReturn

from adapters import Adapter
from experiments.config.run import RunConfig, TextRun
from experiments.records.record import read_record, run_folder
from recpeft import processes, stopping
from recpeft.errors import DiskError, RecpeftError

FOLDER = "RECPEFT_PROCESSES"
"""Environment variable with the folder through which ``start`` speaks with its processes."""

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others: while the first one tests statistics, or a slow disk writes."""

GRACE_SECONDS = 20
"""How long the others have to end themselves when one has failed; they stand in an exchange that will not come."""


@dataclass(frozen=True)
class Place:
    """Which process of a cell this is."""

    number: int
    """Its number, from 0."""
    processes: int
    local_number: int
    """Its number on this machine, which is that of its GPU."""
    by: Literal["nobody", "start", "torchrun", "slurm"]
    """Who started it."""


def place() -> Place:
    """Who this process is, from what its starter left in the environment."""
    env = os.environ
    if env.get(FOLDER) or env.get("TORCHELASTIC_RUN_ID"):
        by: Literal["start", "torchrun"] = "start" if env.get(FOLDER) else "torchrun"
        return Place(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env["LOCAL_RANK"]), by)
    # Of a step under srun; SLURM_NTASKS stands in the batch script too, which is no such process.
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return Place(int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_LOCALID"]), by="slurm")
    return Place(0, 1, 0, "nobody")


def wanted(config: RunConfig) -> int:
    """How many processes train ``config``; what learns no text, or reorders lists, has one."""
    return config.distributed.processes if isinstance(config, TextRun) and config.diversify is None else 1


def are_to_be_started(config: RunConfig) -> bool:
    """Whether ``config`` has several processes and this is none of them."""
    return wanted(config) > 1 and place().processes == 1


def check(config: TextRun) -> None:
    """Raise ``RecpeftError`` where the processes that ``config`` asks for cannot be had here."""
    import torch

    asked, here = config.distributed, place()
    if here.processes > 1 and config.diversify is None and here.processes != asked.processes:
        raise RecpeftError(
            f"this is one of {here.processes} processes that {here.by} started, but distributed asks for "
            f"{asked.devices} devices on {asked.num_nodes} nodes; set distributed to what is started."
        )
    if here.processes == 1 and asked.num_nodes > 1:
        raise RecpeftError(
            f"distributed.num_nodes is {asked.num_nodes}, but recpeft run starts processes on one machine alone; use "
            "recpeft slurm submit, or start it by torchrun on each machine (docs/several-gpus.md)."
        )
    if asked.processes == 1:
        return
    if asked.shards and Adapter(config.adapter).reads_gradients:
        raise RecpeftError(
            f"adapter.method {config.adapter.method} reads the gradients of whole matrices, of which a process has a "
            "share alone under distributed.strategy fsdp; use ddp."
        )
    devices = torch.cuda.device_count() if torch.cuda.is_available() else None
    if devices is not None and devices < asked.devices:
        raise RecpeftError(f"distributed.devices is {asked.devices}, but there are {devices} CUDA devices; lower it.")


def check_shares(batches: int) -> None:
    """Raise ``RecpeftError`` where an epoch's ``batches`` are not equally many for each process."""
    if batches % processes.count():
        raise RecpeftError(
            f"an epoch has {batches} batches, which {processes.count()} processes (distributed) cannot share evenly; "
            "set training.steps_per_epoch, the steps of an epoch."
        )


def join() -> None:
    """Meet the cell's other processes, if there are any, before anything is done that they must not do twice."""
    import torch

    here = place()
    if here.processes == 1 or torch.distributed.is_initialized():
        return
    how = "env://"
    if here.by == "start":
        how = f"file://{os.environ[FOLDER]}/meeting"
    elif here.by == "slurm":
        from lightning.pytorch.plugins.environments import SLURMEnvironment

        if os.environ.get("SLURM_STEP_NUM_NODES") == "1":  # a node's name need not be known to itself
            os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        # Each of the two leaves what it finds in the environment: the step's first host, a port by the job's number.
        _ = SLURMEnvironment(auto_requeue=False).main_address, SLURMEnvironment(auto_requeue=False).main_port
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(here.local_number)
        backend = "cpu:gloo,cuda:nccl"
    torch.distributed.init_process_group(
        backend, init_method=how, rank=here.number, world_size=here.processes, timeout=PATIENCE
    )
    if here.number > 0:  # what is to be said, the first process says
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for as long as the process lives)


def trainer_options(config: TextRun) -> dict[str, Any]:
    """What Lightning's Trainer is told of the processes."""
    from lightning.pytorch.plugins.environments import (
        LightningEnvironment,
        SLURMEnvironment,
        TorchElasticEnvironment,
    )

    if processes.count() == 1:
        # Under SLURM Lightning would take the job's tasks for its own processes, and requeue by a handler of its own.
        return {"devices": 1, "plugins": [LightningEnvironment()]}
    by_slurm = place().by == "slurm"
    return {
        "devices": config.distributed.devices,
        "num_nodes": config.distributed.num_nodes,
        "plugins": [SLURMEnvironment(auto_requeue=False) if by_slurm else TorchElasticEnvironment()],
        "strategy": _strategy(config.distributed.shards),
    }


def _strategy(shards: bool) -> Any:
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

    if shards:  # Lightning's FSDPStrategy is torch's first form, whose modules cannot be tested once they were trained
        return ModelParallelStrategy(processes.count(), 1, save_distributed_checkpoint=False, timeout=PATIENCE)
    # Unused parameters: a BERT's pooler, trained by adapter full, has no part in any loss. Nothing changes buffers.
    return DDPStrategy(find_unused_parameters=True, forward_sync_buffers=False, timeout=PATIENCE)


def start(config: RunConfig, out: Path) -> dict[str, Any]:
    """Run ``config`` in as many processes of this machine as it asks for, and return the record.

    Raises:
        RecpeftError: what ended the first of them that failed, in its own sentence; ``Interrupted`` and
            ``DiskError`` stay what they are.
    """
    processes = wanted(config)
    with tempfile.TemporaryDirectory(prefix="recpeft-") as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(config.model_dump(mode="json")), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "experiments.cell.process", str(folder), str(out)]
        running = [
            # The pipe's end tells a process that this one is gone, whatever ended it.
            subprocess.Popen(  # noqa: S603 (our own module)
                command, env=os.environ | _environment(number, processes, folder), stdin=subprocess.PIPE
            )
            for number in range(processes)
        ]
        try:
            failed = _look_after(running, folder)
        finally:
            for process in running:
                process.kill()  # nothing, where it has ended
                process.wait()
                if process.stdin is not None:
                    process.stdin.close()
        if failed:
            raise _what_ended(folder, failed)
    record = read_record(run_folder(out, config.study, config.run_id))
    assert record is not None
    return record.json_values


def _environment(number: int, processes: int, folder: Path) -> dict[str, str]:
    """As torchrun has it, which Lightning reads."""
    numbers = {
        "RANK": number,
        "LOCAL_RANK": number,
        "GROUP_RANK": 0,
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes,
    }
    # Or DDP's C++ warns of find_unused_parameters where there are none; what fails is told in Python.
    quiet = {"TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR")}
    return {key: str(value) for key, value in numbers.items()} | quiet | {FOLDER: str(folder)}


def _look_after(running: list[subprocess.Popen[bytes]], folder: Path) -> dict[int, int]:
    """Wait until all have ended, or one has failed and the others have had their time; pass on a wish to stop.

    Returns:
        Those that failed first, and their exit codes.
    """
    failed: dict[int, int] = {}
    until = math.inf
    while time.monotonic() < until:
        codes = [process.poll() for process in running]
        if not failed:
            failed = {number: code for number, code in enumerate(codes) if code}
            until = time.monotonic() + GRACE_SECONDS if failed else math.inf
        if None not in codes:
            break
        asked = stopping.asked()
        if asked is not None:
            (folder / stopping.STOP_FILE).write_text(asked, encoding="utf-8")
        time.sleep(0.1)
    return failed


def _what_ended(folder: Path, failed: dict[int, int]) -> RecpeftError:
    """The error of the process that failed first; the others' is that it was no longer there."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("error-*.json")]
    number, code = min(failed.items(), key=lambda item: item[1])  # one that a signal has killed left no word
    if code < 0 or not found:
        how = signal.Signals(-code).name if code < 0 else f"code {code}"
        return RecpeftError(
            f"process {number} was ended by {how} and left no word; where memory ran out, lower "
            "training.max_bucket_tokens or training.users_per_step."
        )
    first = min(found, key=lambda error: float(error["time"]))
    kinds: dict[str, type[RecpeftError]] = {"Interrupted": stopping.Interrupted, "DiskError": DiskError}
    error = kinds.get(first["kind"], RecpeftError)(first["sentence"])
    error.add_note(first["traceback"])
    return error


def ignore_termination() -> None:
    """From here on a process of several only gives its exit code, and srun sends TERM to all when the first has."""
    if processes.several():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def leave() -> NoReturn:
    """End this process at once, for leaving the others in good order would wait for those that wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
