"""Export a finished run's model: merged for plain transformers, or the adapter, each with a model card."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer
from torch import Tensor

from adapters import Adapter
from adapters._adapter import mergeable_methods
from datamodules import TextPairDataModule
from experiments.cell.assemble import make_data, trainer_options
from experiments.cell.candidates import frozen_candidates, with_proposals
from experiments.cell.data import Prepared, prepare
from experiments.cell.saved_run import check_data, finished, with_head
from experiments.cell.suite import ranking_metrics
from experiments.cell.surroundings import quiet
from experiments.config.run import TextRun
from experiments.records.layout import TextRecord
from lightning_modules import RankingCallback, RecModule
from lightning_modules import _backbone as backbones
from lightning_modules._saved import check_weights, load_adapter
from recpeft.config import plain
from recpeft.errors import RecpeftError
from recpeft.files import atomic_folder, disk_errors

TOLERANCE = 1e-3
"""Maximum difference of a metric from the record's; another machine's rounding may change the order of a list."""


def export_adapter(run: Path, to: Path) -> None:
    """Write the run's adapter in PEFT's format, its head and a model card into ``to``.

    Args:
        run: a finished run's folder, ``runs/<study>/<run_id>``.
        to: a new or empty folder.
    Raises:
        RecpeftError: ``run`` is no finished run or has no adapter, or ``to`` is not empty.
    """
    folder, record, config = finished(run)
    if not config.adapter.trains_backbone:
        raise RecpeftError(f"{run} is a {config.method} run, which has no adapter; export a run that trained one.")
    check_weights(folder.adapter, folder.head)
    with _new_folder(to) as temporary:
        shutil.copytree(folder.adapter, temporary, dirs_exist_ok=True)
        shutil.copy(folder.head, temporary / folder.head.name)
        (temporary / "README.md").write_text(_card(record, config, merged=None), encoding="utf-8")


def export_merged(run: Path, to: Path) -> dict[str, Any]:
    """Merge the run's adapter into its backbone and write the result into ``to``, for plain transformers to load.

    A quantised backbone is dequantised first, so that the result is its stored values, in float32, plus the adapter.
    The effect on scores and metrics is measured after reloading the folder, and written into it as ``merge.json``.

    Args:
        run: a finished run's folder.
        to: a new or empty folder.
    Returns:
        Differences of scores and metrics between the trained and the merged model, and the metrics in which the
        trained model, as loaded here, differs from its record.
    Raises:
        RecpeftError: ``run`` is no finished run, its method cannot be merged, its data or backbone have changed, or
            ``to`` is not empty.
    """
    folder, record, config = finished(run)
    adapter = Adapter(config.adapter)
    if not config.adapter.can_merge:
        raise RecpeftError(
            f"{run} is a {config.method} run, whose adapter is no change of the backbone's weights and cannot be "
            f"merged ({', '.join(mergeable_methods())} can); use --adapter."
        )
    check_weights(folder.adapter, folder.head)
    with _new_folder(to) as temporary:
        quiet()
        prepared = prepare(config.data)
        check_data(run, record, prepared)
        backbone = backbones.load(**config.backbone.model_dump())
        frozen = frozen_candidates(prepared, config.evaluation, run.parent)
        candidates = with_proposals(config, prepared, frozen, run.parent)
        data = make_data(config, prepared, backbone.tokenizer, candidates.frames if candidates else None)
        # Dequantise the stored weights first, since bitsandbytes may rearrange them at the first forward pass.
        source = config.backbone.model_dump(include={"revision", "trust_remote_code"})
        unquantised = backbones.dequantised(backbone, **source)
        trained = load_adapter(backbone, adapter, folder.adapter)
        before = _evaluate(with_head(config, prepared, trained, backbone, data, folder), data, config, prepared)
        from peft import PeftModel  # imported after load(), which silences it

        merged: Any = adapter.load(unquantised, folder.adapter)
        if isinstance(merged, PeftModel):
            try:
                merged = merged.merge_and_unload()
            except (AttributeError, NotImplementedError, ValueError) as error:
                raise RecpeftError(f"PEFT cannot merge the adapter of {run}: {error}; use --adapter.") from error
        merged.save_pretrained(temporary)
        backbone.tokenizer.save_pretrained(temporary)
        shutil.copy(folder.head, temporary / folder.head.name)
        loaded = backbones.load(str(temporary), compute_dtype="float32")
        after = _evaluate(with_head(config, prepared, loaded.model, loaded, data, folder), data, config, prepared)
        drift = plain(_drift(before, after) | {"differs_from_record": _differences(record.test, before.test)})
        (temporary / "merge.json").write_text(json.dumps(drift, indent=1) + "\n", encoding="utf-8")
        (temporary / "README.md").write_text(_card(record, config, merged=drift), encoding="utf-8")
    return drift


@contextmanager
def _new_folder(to: Path) -> Iterator[Path]:
    """Do as ``atomic_folder``, but never replace a folder with content."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise RecpeftError(f"--to {to} is there already and not empty; name a new folder.")
    with disk_errors(to), atomic_folder(to) as temporary:
        yield temporary


class _Scores(RankingCallback):
    """Ranking callback that also keeps the scores of the first batch of users."""

    scores: Tensor

    def on_test_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, *where: int) -> None:
        super().on_test_batch_end(trainer, pl_module, outputs, batch, *where)
        if outputs is not None and not hasattr(self, "scores"):
            self.scores = pl_module.score(batch, batch.candidates)


def _evaluate(module: RecModule, data: TextPairDataModule, config: TextRun, prepared: Prepared) -> _Scores:
    ranking = _Scores(ranking_metrics(prepared, config.evaluation))
    trainer = Trainer(callbacks=[ranking], logger=False, enable_checkpointing=False, **trainer_options(config, Path()))
    trainer.test(module, data, verbose=False)
    return ranking


def _drift(before: _Scores, after: _Scores) -> dict[str, Any]:
    change = (after.scores - before.scores).abs()
    return {
        "scores": {
            "users": len(change),
            "largest_change": float(change.max()),
            "mean_change": float(change.mean()),
            "standard_deviation": float(before.scores.std()),
        },
        "test": {name: {"trained": value, "merged": after.test[name]} for name, value in before.test.items()},
    }


def _differences(recorded: dict[str, Any], now: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Return the metrics whose value differs from the record's; null in a record stands for NaN."""
    found = {}
    for name in recorded.keys() & now.keys():
        then = math.nan if recorded[name] is None else recorded[name]
        same = math.isclose(then, now[name], rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        if not same and not (math.isnan(then) and math.isnan(now[name])):
            found[name] = {"recorded": then, "trained": now[name]}
    return dict(sorted(found.items()))


def warning(drift: dict[str, Any]) -> str | None:
    """Return a warning if the trained model, as loaded here, differs from its record; None otherwise."""
    found = drift["differs_from_record"]
    if not found:
        return None
    name = next((name for name in found if name.startswith("ndcg@")), next(iter(found)))
    values = ["–" if value is None else f"{value:.4f}" for value in found[name].values()]
    return (
        f"the record says {name} {values[0]}, but the trained model as it is loaded here has {values[1]} "
        f"({len(found)} metrics differ): what is exported is not what was tested; run the study again, or see what "
        "recpeft certify says of it"
    )


def _card(record: TextRecord, config: TextRun, merged: dict[str, Any] | None) -> str:
    """Return the model card: what the model is, how to load it, its config, metrics and data hash."""
    header = {
        "library_name": "transformers" if merged is not None else "peft",
        "base_model": config.backbone.name,
        "tags": ["recpeft", "recommendation", config.method],
    }
    data = record.data
    known_by = Adapter(config.adapter).peft_import
    load = (
        "`transformers.AutoModel.from_pretrained(folder)`"
        if merged is not None
        else "`peft.PeftModel.from_pretrained(backbone, folder)`" + (f" after `{known_by}`" if known_by else "")
    )
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False).strip(),
        "---",
        "",
        f"# {config.method} on {config.backbone.name}, width {config.width}" + (", merged" if merged else ""),
        "",
        f"Made by recpeft {record.versions['recpeft']}, run `{record.run_id}`. Load it with {load}; "
        "`head.safetensors` holds the formulation's own parameters (such as temperature and item bias).",
        "",
        f"Data: {data.name}, {data.users} users, {data.items} items, {data.interactions} interactions, "
        f"hash `{data.hash}`, split `{data.split.hash}`, prompt `{record.prompt and record.prompt.hash}`. "
        f"Backbone: {record.backbone.identity}.",
        "",
        "| test metric | value |" + (" merged |" if merged else ""),
        "|---|---|" + ("---|" if merged else ""),
    ]
    for name, value in record.test.items():
        values = [value, *([merged["test"][name]["merged"]] if merged else [])]
        lines.append(f"| {name} | {' | '.join('–' if value is None else f'{value:.4f}' for value in values)} |")
    if merged:
        said = warning(merged)
        lines += ["", f"WARNING: {said}."] if said else []
        scores = merged["scores"]
        lines += [
            "",
            f"Merging changed scores by at most {scores['largest_change']:.2g} (mean {scores['mean_change']:.2g}; "
            f"their standard deviation is {scores['standard_deviation']:.2g}).",
        ]
    config_text = yaml.safe_dump(record.config.json_values, sort_keys=False, allow_unicode=True).strip()
    lines += ["", "```yaml", config_text, "```", ""]
    return "\n".join(lines)
