"""Commands of one finished run: export, recommend, certify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from experiments.cli.options import Debug, Trust
from recpeft.errors import RecpeftError
from recpeft.terminal import say


def export(
    run: Annotated[Path, typer.Argument(help="A finished run's folder, runs/<study>/<run_id>.")],
    to: Annotated[Path, typer.Option("--to", help="A new folder to write.")],
    merge: Annotated[
        bool, typer.Option("--merge/--adapter", help="Fold the adapter into the backbone, or give it on its own.")
    ],
    trust: Trust = None,
    debug: Debug = False,
) -> None:
    """Write a run's model for use elsewhere: merged, for plain transformers, or the adapter in PEFT's format."""
    from experiments.cell.saved_run import finished

    finished(run)  # reports a mistake before torch is imported

    from experiments.finished.export import export_adapter, export_merged, warning

    if not merge:
        export_adapter(run, to)
        say(f"The adapter is in {to}")
        return
    drift = export_merged(run, to)
    say(f"The merged model is in {to}")
    scores = drift["scores"]
    say(
        f"scores: at most {scores['largest_change']:.2g} off, {scores['mean_change']:.2g} in the mean, where their "
        f"standard deviation is {scores['standard_deviation']:.2g}"
    )
    for name, values in drift["test"].items():
        if name.startswith("ndcg@"):
            change = values["merged"] - values["trained"]
            say(f"{name}: {values['trained']:.4f} trained, {values['merged']:.4f} merged, {change:+.4f}")
    said = warning(drift)
    if said is not None:
        say(f"WARNING: {said}.", error=True)


def recommend(
    run: Annotated[Path, typer.Argument(help="A finished run's folder, runs/<study>/<run_id>.")],
    user: Annotated[str | None, typer.Option("--user", help="A user's id, as the data have it.")] = None,
    history: Annotated[
        list[str] | None,
        typer.Option("--history", help='What someone new likes, oldest first: "title; title", or id:50; repeatable.'),
    ] = None,
    users: Annotated[
        Path | None,
        typer.Option("--users", help="Parquet file of people: column user, and history for those who are new."),
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", help="Parquet file to write, with --users.")] = None,
    k: Annotated[int, typer.Option("-k", help="Length of a list.")] = 10,
    as_tested: Annotated[
        bool, typer.Option("--as-tested", help="From what was known, and ranked, when the run was tested.")
    ] = False,
    trust: Trust = None,
    debug: Debug = False,
) -> None:
    """Recommend new items to a user, or to someone outside the data, with a finished run's model."""
    if sum(given is not None for given in (user, history or None, users)) != 1 or (users is None) != (to is None):
        raise RecpeftError(
            'recommend is for one of --user ID, --history "title; title", or --users FILE with --to FILE.'
        )

    from experiments.finished.recommend import recommend_file, show

    if users is not None and to is not None:
        say(recommend_file(run, users, to, k, as_tested))
    else:
        show(run, user, history or [], k, as_tested)


def certify(
    run: Annotated[Path, typer.Argument(help="A finished run's folder, runs/<study>/<run_id>.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    trust: Trust = None,
    debug: Debug = False,
) -> None:
    """Check a run's certificate against the files on disk; the exit code is 1 if it no longer holds."""
    from experiments.cell.saved_run import finished_record

    finished_record(run)  # reports a mistake before torch is imported

    from experiments.finished.check_certificate import check_certificate, show

    checks = check_certificate(run)
    show(run, checks, as_json)
    if any(found.state == "no longer holds" for found in checks):
        raise typer.Exit(1)
