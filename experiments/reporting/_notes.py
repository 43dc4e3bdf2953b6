"""Notes that readers need to understand the table."""

from __future__ import annotations

import re
from typing import Any

from experiments.cell.data import warnings
from experiments.config.monitor import cut_of
from experiments.records.layout import FailedRecord, FinishedRecord, RecordedConfig, ReloadPart, TextRecord
from experiments.reporting._runs import name_seeds, one_line
from metrics.catalog import DEFAULT_NAMES, find
from recpeft.config import canonical_json

SCORE_TOLERANCE = 1e-4
"""Maximum change of a score with batch, padding or a shared prefix; the report warns of larger ones."""

FEW_USERS = 30
"""Number of users in a group below which the report warns that a gap says little."""


def write_notes(done: list[FinishedRecord], failed: list[FailedRecord]) -> list[str]:
    """Return the notes that readers need to understand the table."""
    texts = sorted((record for record in done if isinstance(record, TextRecord)), key=lambda record: len(record.trace))
    notes = [*_of_data(done), *_differing(done)]
    notes += dict.fromkeys(
        text for record in done for text in warnings(record.data.json_values, record.config.evaluation.mask_seen)
    )
    # Sorted by number of validations: zero-shot validates once, so the last record is of a trained cell if any.
    notes += _of_texts(texts, texts[-1]) if texts else []
    notes += _unmeasured(done)
    notes += dict.fromkeys(note for record in done for note in _degenerate(record))
    notes += _group_sizes(done[0], cut_of(done[0].monitor, done[0].config.json_values))
    notes += [note for record in texts for note in _diagnosed(record)]
    notes += [
        f"{'left out' if record.left_out else 'failed'}: {record.run_id} {record.method}, width "
        f"{record.width}: {one_line(record.error)}"
        for record in failed
    ]
    return notes


def _of_data(done: list[FinishedRecord]) -> list[str]:
    """Return the size of each split, and a note if the runs have several."""
    notes = []
    splits = {record.data.split.hash: record.data for record in done}
    for data in splits.values():
        split = data.split
        notes.append(
            f"{data.name}: {data.users:,} users, {data.items:,} items, {data.interactions:,} interactions; "
            f"{split.kind}: {split.train:,} train, {split.validation:,} validation, {split.test:,} test; "
            f"split {split.hash}"
        )
    # Older records have only the split's hash, not the test's own.
    tests = {data.split.test_hash for data in splits.values()}
    if len(splits) > 1 and (len(tests) > 1 or None in tests):
        notes.append(f"NOT COMPARABLE: the runs have {len(splits)} different splits: {', '.join(sorted(splits))}")
    elif len(splits) > 1:
        notes.append(
            f"the runs are tested on the same interactions but learn from {len(splits)} different parts of train"
        )
    return notes


def _differing(done: list[FinishedRecord]) -> list[str]:
    """Return a note for each property that should be the same for all runs but differs."""
    notes = []
    for what, values in (
        ("data", {record.data.hash for record in done}),
        ("versions", {canonical_json(record.versions) for record in done}),
        ("devices", {record.device for record in done}),
        ("numbers of threads", {record.config.threads for record in done}),
        ("numbers of processes", {_processes(record.config) for record in done}),
        ("candidate sets", {record.candidates.hash for record in done}),
        ("evaluations", {canonical_json(record.config.evaluation.json_values) for record in done}),
    ):
        if len(values) > 1:
            notes.append(f"CAREFUL: the runs have {len(values)} different {what}; see their result.json")
    return notes


def _of_texts(texts: list[TextRecord], record: TextRecord) -> list[str]:
    """Return notes on how the text models were trained and tested.

    Args:
        record: the record whose evaluation is described for all.
    """
    notes = []
    config = record.config
    seeds = sorted({other.config.seed for other in texts if other.method == record.method})
    taught = dict.fromkeys(
        f"{_named(other.config.formulation.json_values)}, {_named(other.config.loss.json_values)}"
        for other in texts
        if not other.reference or other is record
    )
    backbones = dict.fromkeys(f"{other.config.backbone.name} in {other.backbone.compute_dtype}" for other in texts)
    threads = sorted({other.config.threads for other in texts})
    shared = f"{' or '.join(map(str, threads))} thread{'' if threads == [1] else 's'}"
    notes.append(f"{'; '.join(taught)}; backbone {', '.join(backbones)}, {shared}, {name_seeds(seeds)}")
    if record.backbone.dequantised_from:
        file = record.backbone.dequantised_from.partition(",")[0]
        notes.append(f"the backbone's weights are dequantised from {file}, at width none too")
    cut = cut_of(record.monitor, config.json_values).partition("/")[0]
    stamp = record.monitor.partition("/")[2]
    candidates = config.evaluation.candidates
    among = (
        "the whole catalogue"
        if candidates.kind == "full"
        else f"each one's held-out items alone, {record.test[f'pairs/{stamp}']:,.0f} pairs liked or not"
        if candidates.kind == "rated"
        else f"{candidates.size} frozen candidates ({stamp}, "
        f"{record.candidates.hash}), which is easier than the catalogue and may order models otherwise"
    )
    seen = "seen items masked" if config.evaluation.mask_seen else "seen items not masked"
    notes.append(
        f"metrics at {cut}; test once, on {record.test['users']:,.0f} users, over {among}, "
        f"{seen}, from the best of {len(record.trace)} validations by {config.evaluation.monitor} on "
        f"{record.training.validation_users:,} users; 95% interval by bootstrap over users"
    )
    return notes


_MAY_BE_MISSING = {
    "categories": "categories of the items",
    "main_category": "categories of the items",
    "embeddings": "categories of the items, or evaluation.embeddings",
    "scores": "scores of the whole catalogue",
    "all_scores": "scores of the whole catalogue",
    "logits": "scores that are logits",
    "grades": "ratings",
    "predicted_ratings": "predicted ratings",
    "groups": "two groups of users",
    "item_groups": "two groups of items",
}
"""Inputs that a metric may need and lack -> their description."""


_OF_THE_MODEL = ("scores", "logits", "predicted_ratings")
"""Inputs that depend on a row's model; the others depend on data and evaluation, which rows share."""


def _unmeasured(records: list[FinishedRecord]) -> list[str]:
    """Return a note for each requested metric without a value in some runs, with the inputs that it needs."""
    notes = []
    names = (name for record in records for name in record.config.evaluation.metrics)
    for name in dict.fromkeys((*DEFAULT_NAMES, *names)):
        info, without = find(name), [record for record in records if _lacks(record, name)]
        needs = [need for need in (info.needs if info else ()) if need in _MAY_BE_MISSING]
        if not needs or not without:
            continue
        whose = ""
        if len(without) < len(records):
            needs = [need for need in needs if need in _OF_THE_MODEL] or needs
            measured = {record.method for record in records if not _lacks(record, name)}
            runs = (
                f"{record.method} ({record.run_id})" if record.method in measured else record.method
                for record in without
            )
            whose = f" of {', '.join(dict.fromkeys(runs))}"
        reasons = dict.fromkeys(_MAY_BE_MISSING[need] for need in needs)
        notes.append(f"{name}{whose} is not measured (–): it needs {', '.join(reasons)}")
    return notes


def _lacks(record: FinishedRecord, name: str) -> bool:
    """Return whether a run should have measured the metric but has no value of it."""
    values = [value for key, value in record.test.items() if re.fullmatch(rf"{re.escape(name)}([@_/].*)?", key)]
    asked = values or name in record.config.evaluation.metrics
    return bool(asked) and all(value is None for value in values)


def _degenerate(record: FinishedRecord) -> list[str]:
    """Return notes on why a row's values mean less than they seem to."""
    notes, chosen = [], record.chosen
    tried: dict[str, dict[float, float | None]] = {}
    for key, value in chosen.items():
        found = re.fullmatch(r"validation_(\w+)=(.+)", key)
        if found:
            tried.setdefault(found[1], {})[float(found[2])] = value
    for name, values in tried.items():
        what, picked = f"{record.method}'s {name}", chosen.get(name)
        if len(values) > 1 and len(set(values.values())) == 1:
            notes.append(f"{what}: all {len(values)} values validate alike, so the choice of {picked:g} says nothing")
        elif len(values) > 1 and picked in (min(values), max(values)):
            end = "largest" if picked == max(values) else "smallest"
            notes.append(f"{what}: {picked:g} is the {end} that was tried; widen ranker.{name}")
    monitor = record.monitor
    validations = [row.validation.get(monitor) for row in record.trace]
    if len(validations) > 1 and len(set(validations)) == 1:
        alike = "no value" if validations[0] is None else f"{monitor} {validations[0]:g}"
        notes.append(
            f"{record.method} ({record.run_id}): all {len(validations)} validations have {alike}, so the choice "
            "of an epoch says nothing"
        )
    stamp = monitor.partition("/")[2]
    pairs, users = (record.test.get(key) for key in (f"pairs/{stamp}", "users"))
    if pairs is not None and pairs == users:
        notes.append("each user is judged on one pair, so that metrics of lists are the same whatever ranks; read auc")
    return notes


def _diagnosed(record: TextRecord) -> list[str]:
    """Return a run's diagnostic findings that readers of the table must know."""
    found, notes = record.diagnostics, list[str]()
    run = f"{record.run_id} ({record.method}, width {record.width})"
    reload = record.certificate.reload if record.certificate else ReloadPart()
    for what, error in (
        ("how far scores move with batch and padding", found.error),
        ("scores when loaded again", reload.error),
    ):
        if error is not None:
            notes.append(f"CAREFUL: of {run}, {what} could not be measured: {one_line(error)}")
    moved = {cause: getattr(found, cause) for cause in ("batch", "padding", "whole_text")}
    if max(moved.values()) > SCORE_TOLERANCE:
        causes = ", ".join(f"{cause} {value:.1e}" for cause, value in moved.items())
        notes.append(
            f"CAREFUL: scores of {run} move with what they should not: {causes}; their standard deviation is "
            f"{found.standard_deviation:.2g}"
        )
    lost = reload.largest_difference_in_score_sd or 0.0
    if lost > SCORE_TOLERANCE:
        notes.append(
            f"CAREFUL: what {run} has saved is not what was tested: loaded again, its scores are up to {lost:.1e} of "
            "their standard deviation off"
        )
    order = found.order
    if order is not None:
        notes.append(
            f"in another order of the letters the best item of {run} changes in {order.best_changes:.0%} of "
            f"{order.lists} lists; Kendall's tau {order.kendall_tau:.2f}"
        )
    return notes


def _processes(config: RecordedConfig) -> int:
    distributed = config.distributed
    return 1 if distributed is None else distributed.num_nodes * distributed.devices


def _named(section: dict[str, Any]) -> str:
    """Return a formulation or loss with its options, ``bpr (rating_weight False)``; a weighted sum lists its parts."""
    if section["name"] == "weighted_sum":
        parts = (f"{part['weight']:g} × {_named(part['loss'])}" for part in section["parts"])
        return f"weighted_sum ({' + '.join(parts)})"
    options = (
        f"{key} {_named(value) if isinstance(value, dict) and 'name' in value else value}"
        for key, value in section.items()
        if key != "name"
    )
    return f"{section['name']} ({', '.join(options)})"


def _group_sizes(record: FinishedRecord, cut: str) -> list[str]:
    """Return a note on the group sizes of all attributes whose groups are compared; empty if there are none."""
    found = record.intervals
    sizes = {
        name.rpartition("@")[0].removeprefix("ndcg_gap_"): part.json_values["users"]
        for name, part in found.items()
        if name.startswith("ndcg_gap_") and name.endswith(f"@{cut}")
    }
    if not sizes:
        return []
    groups = "; ".join(
        f"{name}: {', '.join(f'{label} {n:,}' for label, n in of.items())}" for name, of in sizes.items()
    )
    least = min((n for of in sizes.values() for n in of.values() if n), default=0)
    few = f"; with {least} users in a group, a gap says little" if least < FEW_USERS else ""
    return [f"test users behind each gap between groups, whose 95% interval is by bootstrap over users: {groups}{few}"]
