"""Load a finished run: its record, its config and its trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cell.data import Prepared
from experiments.config.run import RunConfig, TextRun, build_recorded
from experiments.records.layout import FailedRecord, FinishedRecord, TextRecord
from experiments.records.record import CorruptRecord, RunFolder, read_record
from recpeft.errors import RecpeftError

if TYPE_CHECKING:  # heavy imports, so that a wrong argument of a command is reported at once
    from torch import nn

    from datamodules import TextPairDataModule
    from lightning_modules import Backbone, RecModule


def finished_any(run: Path) -> tuple[RunFolder, FinishedRecord, RunConfig]:
    """Return folder, record and config of a finished run of any kind except judged lists.

    Args:
        run: the run's folder, ``runs/<study>/<run_id>``.
    Raises:
        RecpeftError: the folder holds no finished run, or judged lists.
    """
    folder = RunFolder(run)
    record = finished_record(run)
    if "recommendations" in record.config.json_values:
        raise RecpeftError(f"{run} holds judged lists (recpeft evaluate), which have no text model; give another run.")
    return folder, record, config_of(run, record)


def config_of(run: Path, record: FinishedRecord) -> RunConfig:
    """Return a record's config; for judged lists, the config of a popularity run with their data and evaluation.

    Raises:
        RecpeftError: this version rejects the config.
    """
    raw = dict(record.config.json_values)
    if raw.pop("recommendations", None) is not None:
        raw["ranker"] = {"name": "popularity"}
    return build_recorded(raw, run)


def finished(run: Path) -> tuple[RunFolder, TextRecord, TextRun]:
    """Do as ``finished_any``, for a run with a text model of its own.

    Raises:
        RecpeftError: the run has no text model, or its record lacks one's entries.
    """
    folder, record, config = finished_any(run)
    if record.reordered is not None:
        other = run.parent / record.reordered.run_id
        raise RecpeftError(f"{run} holds reordered lists, which have no text model of their own; give {other}.")
    if not isinstance(config, TextRun):
        raise RecpeftError(f"{run} is a {record.method} run, which has no text model; give a run that has one.")
    missing = {
        "backbone.identity": record.backbone is None or not record.backbone.identity,
        "prompt.hash": record.prompt is None or not record.prompt.hash,
        "versions.recpeft": not record.versions.get("recpeft"),
        "training": record.training is None,
    }
    for key, lacks in missing.items():
        if lacks:
            raise CorruptRecord(
                f"{folder.record} is no record of a text model ({key} is missing); run the study again."
            )
    assert isinstance(record, TextRecord)  # it has backbone and training
    return folder, record, config


def finished_record(run: Path) -> FinishedRecord:
    """Return the record of a finished run of any kind.

    Raises:
        RecpeftError: there is no record, or the run has failed.
    """
    record = read_record(RunFolder(run))
    if record is None:
        raise RecpeftError(f"{run} holds no record (result.json); give a run's folder, such as runs/<study>/<run_id>.")
    if isinstance(record, FailedRecord):
        raise RecpeftError(f"{run} is no finished run ({record.error}); run it again first.")
    return record


def check_data(run: Path, record: FinishedRecord, prepared: Prepared) -> None:
    """Raise ``RecpeftError`` if a record's data or split differ from those of ``prepared``."""
    for what, then, now in (
        ("data", record.data.hash, prepared.record["hash"]),
        ("split", record.data.split.hash, prepared.record["split"]["hash"]),
    ):
        if then != now:
            raise RecpeftError(
                f"the {what} of {run} had the hash {then}, and here it is {now}; use what it was trained on."
            )


def load_trained(run: Path, prepared: Prepared) -> tuple[RecModule, TextPairDataModule, TextRun]:
    """Return a finished run's trained module, frozen and in eval mode, its data module and its config.

    The data module ranks the whole catalogue.

    Args:
        run: the run's folder.
        prepared: the data and split it was trained on.
    Raises:
        RecpeftError: there is no such run, the data differ, or files cannot be loaded.
    """
    from experiments.cell.assemble import make_data
    from lightning_modules import _backbone as backbones
    from lightning_modules._saved import check_weights

    folder, record, config = finished(run)
    check_data(run, record, prepared)
    check_weights(folder.adapter, folder.head)
    backbone = backbones.load(**config.backbone.model_dump())
    data = make_data(config, prepared, backbone.tokenizer)
    for what, then, now in (
        ("backbone", record.backbone.identity, backbone.identity),  # an adapter says so itself, if there is one
        ("prompt", record.prompt and record.prompt.hash, data.prompt.hash),
    ):
        if then != now:
            raise RecpeftError(f"the {what} of {run} was {then}, and here it is {now}; use what it was trained with.")
    return trained_module(config, prepared, backbone, data, folder), data, config


def trained_module(
    config: TextRun, prepared: Prepared, backbone: Backbone, data: TextPairDataModule, folder: RunFolder
) -> RecModule:
    """Load the run's module from ``folder`` onto a freshly loaded ``backbone``, frozen and in eval mode.

    Raises:
        RecpeftError: files cannot be loaded.
    """
    from adapters import Adapter
    from lightning_modules._saved import load_adapter

    adapter = Adapter(config.adapter)
    model = load_adapter(backbone, adapter, folder.adapter) if config.adapter.trains_backbone else backbone.model
    return with_head(config, prepared, model, backbone, data, folder).eval()


def with_head(
    config: TextRun,
    prepared: Prepared,
    model: nn.Module,
    backbone: Backbone,
    data: TextPairDataModule,
    folder: RunFolder,
) -> RecModule:
    """Return the formulation around ``model``, with the head that the run saved in ``folder``, frozen."""
    from experiments.cell.assemble import make_module
    from lightning_modules._saved import load_head

    module = make_module(config, prepared, model, backbone, prompt=data.prompt)
    if config.adapter.trains_head:
        load_head(module.head, folder.head)
    return module.requires_grad_(False)
