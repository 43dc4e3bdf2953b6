"""Start the processes of a multi-process cell, identify this one, and connect them.

torchrun or ``srun`` starts the processes; if neither has, ``start`` does. ``start`` avoids torchrun, which kills its
processes 30 seconds after a signal, dies of USR1, and exits with 1 whatever their codes were. Instead it asks them to
stop through a file, waits until they have saved, and reads their errors from files.
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
"""Environment variable that names the folder through which ``start`` communicates with its processes."""

PATIENCE = timedelta(hours=2)
"""Maximum time a process waits for the others, for example while the first computes statistics or a disk is slow."""

GRACE_SECONDS = 20
"""Seconds that the other processes have to end when one has failed; they wait in a collective that cannot finish."""


@dataclass(frozen=True)
class Place:
    """Identity of this process among those of its cell."""

    number: int
    """Number (global rank) of this process, from 0."""
    processes: int
    local_number: int
    """Number of this process on its machine, which is also its GPU's."""
    by: Literal["nobody", "start", "torchrun", "slurm"]
    """Program that started it."""


def place() -> Place:
    """Return this process's place, read from the environment that its starter set."""
    env = os.environ
    if env.get(FOLDER) or env.get("TORCHELASTIC_RUN_ID"):
        by: Literal["start", "torchrun"] = "start" if env.get(FOLDER) else "torchrun"
        return Place(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env["LOCAL_RANK"]), by)
    # srun sets this for a step's tasks; SLURM_NTASKS is set in the batch script too, which is not one of them.
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return Place(int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_LOCALID"]), by="slurm")
    return Place(0, 1, 0, "nobody")


def wanted(config: RunConfig) -> int:
    """Return the number of processes that train ``config``; runs that read no text or reorder lists have one."""
    return config.distributed.processes if isinstance(config, TextRun) and config.diversify is None else 1


def are_to_be_started(config: RunConfig) -> bool:
    """Return whether ``config`` needs several processes and none of them is this one."""
    return wanted(config) > 1 and place().processes == 1


def check(config: TextRun) -> None:
    """Raise ``RecpeftError`` if this machine cannot provide the processes that ``config`` asks for."""
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
    """Raise ``RecpeftError`` if an epoch's ``batches`` do not divide evenly among the processes."""
    if batches % processes.count():
        raise RecpeftError(
            f"an epoch has {batches} batches, which {processes.count()} processes (distributed) cannot share evenly; "
            "set training.steps_per_epoch, the steps of an epoch."
        )


def join() -> None:
    """Join the cell's process group, if it has several processes, before any work that only one of them may do."""
    import torch

    here = place()
    if here.processes == 1 or torch.distributed.is_initialized():
        return
    how = "env://"
    if here.by == "start":
        how = f"file://{os.environ[FOLDER]}/meeting"
    elif here.by == "slurm":
        from lightning.pytorch.plugins.environments import SLURMEnvironment

        if os.environ.get("SLURM_STEP_NUM_NODES") == "1":  # a node may not resolve its own name
            os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        # Reading each sets an environment variable: MASTER_ADDR, the step's first host; MASTER_PORT, by the job's id.
        _ = SLURMEnvironment(auto_requeue=False).main_address, SLURMEnvironment(auto_requeue=False).main_port
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(here.local_number)
        backend = "cpu:gloo,cuda:nccl"
    torch.distributed.init_process_group(
        backend, init_method=how, rank=here.number, world_size=here.processes, timeout=PATIENCE
    )
    if here.number > 0:  # only the first process prints
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for as long as the process lives)


def trainer_options(config: TextRun) -> dict[str, Any]:
    """Return the options that tell Lightning's Trainer about the processes."""
    from lightning.pytorch.plugins.environments import (
        LightningEnvironment,
        SLURMEnvironment,
        TorchElasticEnvironment,
    )

    if processes.count() == 1:
        # Under SLURM, Lightning would take the job's tasks for its own processes and requeue with its own handler.
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

    if shards:  # Lightning's FSDPStrategy uses torch's FSDP 1, whose modules cannot be tested after training
        return ModelParallelStrategy(processes.count(), 1, save_distributed_checkpoint=False, timeout=PATIENCE)
    # Unused parameters: a BERT's pooler, which adapter full trains, contributes to no loss. Nothing changes buffers.
    return DDPStrategy(find_unused_parameters=True, forward_sync_buffers=False, timeout=PATIENCE)


def start(config: RunConfig, out: Path) -> dict[str, Any]:
    """Run ``config`` in the number of local processes that it asks for, and return the record.

    Raises:
        RecpeftError: the first process that failed raised this; ``Interrupted`` and ``DiskError`` keep their type.
    """
    processes = wanted(config)
    with tempfile.TemporaryDirectory(prefix="recpeft-") as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(config.model_dump(mode="json")), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "experiments.cell.process", str(folder), str(out)]
        running = [
            # The closed pipe tells a process that this one has ended, for whatever reason.
            subprocess.Popen(  # noqa: S603 (our own module)
                command, env=os.environ | _environment(number, processes, folder), stdin=subprocess.PIPE
            )
            for number in range(processes)
        ]
        try:
            failed = _look_after(running, folder)
        finally:
            for process in running:
                process.kill()  # has no effect if it has ended
                process.wait()
                if process.stdin is not None:
                    process.stdin.close()
        if failed:
            raise _what_ended(folder, failed)
    record = read_record(run_folder(out, config.study, config.run_id))
    assert record is not None
    return record.json_values


def _environment(number: int, processes: int, folder: Path) -> dict[str, str]:
    """Return the environment variables that torchrun would set and Lightning reads."""
    numbers = {
        "RANK": number,
        "LOCAL_RANK": number,
        "GROUP_RANK": 0,
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes,
    }
    # Otherwise DDP's C++ warns of find_unused_parameters if none are unused; Python reports what fails.
    quiet = {"TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR")}
    return {key: str(value) for key, value in numbers.items()} | quiet | {FOLDER: str(folder)}


def _look_after(running: list[subprocess.Popen[bytes]], folder: Path) -> dict[int, int]:
    """Wait until all have ended, or until ``GRACE_SECONDS`` after the first failure; pass on a stop request.

    Returns:
        Number and exit code of each process that failed first.
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
    """Return the error of the process that failed first; the others failed only because it was gone."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("error-*.json")]
    number, code = min(failed.items(), key=lambda item: item[1])  # a process killed by a signal wrote no error
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
    """Ignore SIGTERM in a multi-process cell that is about to exit: srun sends it to all once the first has exited."""
    if processes.several():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def leave() -> NoReturn:
    """End this process at once; an orderly shutdown would deadlock with processes that wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
