"""Tracker for Weights & Biases by Lightning: history, scalars, a table of examples, and the adapter as an artifact.

A run's W&B id is its run_id. Online, a resumed run continues after the rows that W&B has. Offline, W&B would start a
second folder with steps from 0, so the first folder is removed and the whole history written again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from experiments.config.trackers import TrackerConfig
from experiments.records.record import find_records
from experiments.trackers._base import TrackedRun, Tracker
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run

_LONGEST_TAG = 64  # characters; W&B refuses longer ones
_LONGEST_NAME = 128  # characters of a project's, run's or artifact's name


class Config(TrackerConfig):
    remedy: ClassVar[str] = (
        "run wandb login or set WANDB_API_KEY, and see that the network is there, or set mode: offline, and recpeft "
        "wandb push sends later"
    )

    name: Literal["wandb"] = "wandb"
    project: str | None = Field(default=None, max_length=_LONGEST_NAME, pattern=r"^[^/\\#?%:]+$")
    """W&B project; null is the study's name, cut to the length that W&B accepts."""
    entity: str | None = None
    """W&B user or team; null is the account's default."""
    mode: Literal["online", "offline"] | None = None
    """W&B mode; null is $WANDB_MODE, or online if that is not set."""
    timeout_seconds: float = Field(default=30.0, gt=0, le=86_400)
    """Maximum wait for W&B at a run's start, and at its end for unsent data. W&B's own limits are 90 s at the start and
    none at the end, for each run of a study."""


def check(config: Config) -> None:
    """Accept every config: recpeft installs the package, and ``start`` checks key and network."""


class WandbTracker(Tracker):
    def __init__(self, run: TrackedRun, wandb_run: Run) -> None:
        from lightning.pytorch.loggers import WandbLogger

        # Lightning defines these metrics for runs that it starts itself; summary="none" keeps the last values of
        # hundreds of metrics from counting as results. A summary without step_metric would drop a metric's step.
        wandb_run.define_metric("trainer/global_step")
        wandb_run.define_metric("train/*", step_metric="trainer/global_step")
        wandb_run.define_metric("val/*", step_metric="trainer/global_step", summary="none")
        super().__init__(WandbLogger(experiment=wandb_run), run)
        self.wandb_run = wandb_run
        self.rows_before = wandb_run.starting_step

    def finish(self, scalars: dict[str, float], record: dict[str, Any]) -> None:
        import wandb

        try:
            self.wandb_run.summary.update(scalars)
            examples = record.get("examples") or []
            if examples:
                columns: list[str | int] = ["user", "history", "recommended", "held_out", "hits"]
                rows = [[_text(example.get(column)) for column in columns] for example in examples]
                self.wandb_run.log({"examples": wandb.Table(columns=columns, data=rows)})
            folder = self.run.folder
            files = [path for path in (*sorted(folder.adapter.rglob("*")), folder.head) if path.is_file()]
            if files:
                artifact = wandb.Artifact(artifact_name(self.run), "model", metadata=self.run.columns)
                for path in files:
                    # Immutable: the file is sent from its place, without a copy in the home folder.
                    artifact.add_file(str(path), str(path.relative_to(folder.path)), policy="immutable")
                self.wandb_run.log_artifact(artifact)
        finally:
            self._end(exit_code=0)

    def close(self) -> None:
        self._end(exit_code=1)

    def _end(self, exit_code: int) -> None:
        try:
            self.wandb_run.finish(exit_code=exit_code)
        finally:
            _end_process()


def artifact_name(run: TrackedRun) -> str:
    """Return the artifact's name, study and run_id, with the study cut to W&B's limit."""
    return f"{run.study[: _LONGEST_NAME - 1 - len(run.run_id)]}-{run.run_id}"


def start(config: Config, run: TrackedRun) -> Tracker:
    """Start the tracker; W&B's own exceptions are raised without a key or network."""
    try:
        return WandbTracker(run, _start(config, run))
    except BaseException:
        _end_process()
        raise


def _start(config: Config, run: TrackedRun) -> Run:
    import wandb
    from wandb.sdk.lib import wbauth

    quiet: dict[str, Any] = {"silent": True, "console": "off"}
    settings = wandb.setup(settings=wandb.Settings(**quiet)).settings
    if (config.mode or settings.mode) == "online":
        key = wbauth.authenticate_session(host=settings.base_url, source="recpeft", prompt=False)
        if key is None:  # otherwise W&B would prompt for one at a terminal and wait
            raise RecpeftError("there is no key of W&B")
    for folder in run.folder.path.glob(f"wandb/offline-run-*-{run.run_id}"):
        shutil.rmtree(folder)
    return wandb.init(
        project=config.project or run.study[:_LONGEST_NAME],
        entity=config.entity,
        id=run.run_id,
        name=run.name[:_LONGEST_NAME],
        group=run.group,
        job_type=run.job_type,
        tags=[tag[:_LONGEST_TAG] for tag in run.tags],
        dir=str(run.folder.path),
        mode=config.mode,
        resume="allow",
        reinit="create_new",  # leaves alone a run that the user has open in a notebook
        settings=wandb.Settings(
            init_timeout=config.timeout_seconds,
            finish_timeout=config.timeout_seconds,
            finish_timeout_raises=True,
            **quiet,
        ),
    )


def _end_process() -> None:
    """End W&B's process, unless the user has a run of their own in it."""
    import wandb

    if wandb.run is None:
        wandb.teardown()


def push(directory: Path, timeout_seconds: float) -> tuple[list[Path], int]:
    """Send the offline runs of a study's finished runs.

    Args:
        timeout_seconds: maximum time for sending each run.
    Returns:
        The folders that were sent, and the number sent before.
    Raises:
        RecpeftError: there are none, or W&B refuses one (with its own message).
    """
    done = [folder for folder, record in find_records(directory) if record.status == "done"]
    found = [path for folder in done for path in sorted(folder.path.glob("wandb/offline-run-*"))]
    if not found:
        raise RecpeftError(
            f"{directory} holds no finished run that W&B has offline; run the study with trackers: "
            "[{name: wandb, mode: offline}]."
        )
    waiting = [path for path in found if not list(path.glob("*.wandb.synced"))]
    for path in waiting:
        command = [sys.executable, "-P", "-m", "wandb", "sync", str(path)]
        # W&B writes its logs beside the run, not into the user's current folder.
        env = os.environ | {"WANDB_DIR": str(path.parents[1])}
        try:
            answer = subprocess.run(  # noqa: S603
                command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_seconds
            )
        except subprocess.TimeoutExpired:
            raise RecpeftError(
                f"{path} was not sent to W&B within {timeout_seconds:g} s; see that the network is there, or raise "
                "--timeout."
            ) from None
        if answer.returncode:
            words = " ".join((answer.stderr.strip() or answer.stdout.strip()).splitlines()[-1:])
            raise RecpeftError(
                f"{path} was not sent: {words.removeprefix('Error: ').rstrip('.')}; run wandb login or set "
                "WANDB_API_KEY, and try again."
            )
    return waiting, len(found) - len(waiting)


def _text(value: Any) -> str:
    """Return a table cell's text, with one title per line."""
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)
