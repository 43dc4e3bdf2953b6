"""The sbatch text: what it asks for, that names and paths harm nothing, and what bash does at a cell's end.

The script's own logic runs here under bash with stand-ins for SLURM's commands; test_real_cluster.py has the real ones.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recpeft.errors import RecpeftError
from slurm import Options, array_text, cell_command, most_tasks, read_options, sbatch_text


def text(options: Options | None = None, **changes: object) -> str:
    values: dict[str, object] = {
        "study": "demo",
        "array": "0-3",
        "command": ["python", "cell.py"],
        "logs": Path("/runs/demo/slurm/001/logs"),
        "working_directory": Path("/work"),
    }
    return sbatch_text(options=options or Options(), **(values | changes))  # type: ignore[arg-type]


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def test_options_become_directives_and_absent_ones_do_not() -> None:
    options = Options(
        partition="gpu",
        account="lab-1",
        gres="gpu:a100:2",
        time="1-12:00:00",
        mem="16G",
        cpus_per_task=4,
        ntasks_per_node=2,
        extra=("--constraint=a100&ib",),
    )
    assert directives(text(options)) == [
        "--job-name=demo",
        "--array=0-3",
        "--partition=gpu",
        "--account=lab-1",
        "--gres=gpu:a100:2",
        "--time=1-12:00:00",
        "--mem=16G",
        "--nodes=1",
        "--ntasks-per-node=2",
        "--cpus-per-task=4",
        "--chdir=/work",
        "--output=/runs/demo/slurm/001/logs/%a.txt",
        "--open-mode=append",
        "--signal=USR1@120",
        "--requeue",
        "--constraint=a100&ib",
    ]


def test_srun_is_told_the_cpus_which_it_does_not_take_over_from_the_job() -> None:
    assert "srun --kill-on-bad-exit=1 --cpus-per-task=4 python cell.py" in text(Options(cpus_per_task=4))


def test_the_cells_command_names_manifest_and_interpreter() -> None:
    command = cell_command("/opt/py thon", Path("/runs/a b/manifest.json"))
    assert "'/opt/py thon' -P -m experiments.cli slurm cell '/runs/a b/manifest.json'" in text(command=command)


def test_a_percent_sign_in_a_folder_is_not_taken_for_a_place_holder() -> None:
    assert "--output=/runs/100%%j/%a.txt" in directives(text(logs=Path("/runs/100%j")))


def test_a_directives_value_with_signs_stands_in_quotes() -> None:
    found = directives(text(study="a; rm -rf x", working_directory=Path("/it's #1")))
    assert '--job-name="a; rm -rf x"' in found
    assert '--chdir="/it\'s #1"' in found


@pytest.mark.parametrize("bad", ["a\nb", "a\n#SBATCH --uid=0", "a\rb", "a\\b", 'a"b', "a\x85b", "a\u2028b"])
def test_what_would_break_out_of_a_directive_is_refused(bad: str) -> None:
    for change in ({"study": bad}, {"logs": Path("/") / bad}, {"working_directory": Path("/") / bad}):
        with pytest.raises(RecpeftError, match="cannot stand in an sbatch script"):
            text(**change)


@pytest.mark.parametrize("bad", ["0-3\n#SBATCH --uid=0", "", "a", "0-3%0", "1;2", "0-3 "])
def test_an_array_is_digits_alone(bad: str) -> None:
    with pytest.raises(RecpeftError, match="no list of cells"):
        text(array=bad)


@pytest.mark.parametrize("key", ["partition", "account", "qos", "gres", "mem", "time"])
@pytest.mark.parametrize("bad", ["a\nb", "a b", "a;b", "$(a)", "a\n", "", "a#b", "a'b"])
def test_a_value_of_sbatch_holds_no_blank_quote_or_sign_of_the_shell(key: str, bad: str) -> None:
    with pytest.raises(RecpeftError, match=key):
        read_options(given={key: bad})


@pytest.mark.parametrize("good", ["90", "4:00", "4:00:00", "1-12", "1-12:30", "1-12:30:00"])
def test_times_are_slurms(good: str) -> None:
    assert read_options(given={"time": good}).time == good


@pytest.mark.parametrize("bad", ["--a\n--b", "no option", "--array=0-9", "--signal=B:USR1@1", "-J x", "--output=x"])
def test_an_extra_line_is_one_option_that_is_not_ours(bad: str) -> None:
    with pytest.raises(RecpeftError, match="extra"):
        read_options(given={"extra": [bad]})


def test_the_sites_file_gives_defaults_and_the_command_line_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("partition: gpu\ntime: '4:00:00'\nsetup: [module load cuda]\n")
    monkeypatch.setenv("RECPEFT_SLURM", str(site))
    options = read_options(given={"partition": "long", "gres": None})
    assert (options.partition, options.time, options.gres) == ("long", "4:00:00", None)
    assert options.setup == ("module load cuda",)
    other = tmp_path / "other.yaml"
    other.write_text("")
    assert read_options(other) == Options()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("partitoin: gpu", r"site\.yaml: unknown SLURM option partitoin; allowed: partition, account"),
        ("partition: [", r"site\.yaml: .* in line 1; mend the YAML"),
        ("nodes: 1\nnodes: 2", r"site\.yaml: the key nodes stands there a second time in line 2"),
        ("time: 2024-02-30", r"site\.yaml: '2024-02-30' is no timestamp"),
        ("- gpu", r"site\.yaml holds no mapping"),
        ("time: soon", r"site\.yaml: SLURM's time is 'soon': write minutes"),
        ("time: 4:00:00", r"site\.yaml: SLURM's time is 14400: YAML reads a number here; put it in quotes"),
        ("mem: 16", r"site\.yaml: SLURM's mem is 16: YAML reads a number"),
        ("max_parallel: 0", r"site\.yaml: SLURM's max_parallel is 0"),
    ],
)
def test_a_mistake_in_the_sites_file_is_one_sentence(tmp_path: Path, content: str, words: str) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(content)
    with pytest.raises(RecpeftError, match=words):
        read_options(site)


def test_a_site_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecpeftError, match=r"there is no file .*nowhere"):
        read_options(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("indices", "expected"),
    [([0, 1, 2, 5], "0-2,5"), ([5, 0, 1, 2, 2], "0-2,5"), ([3], "3"), ([1, 2], "1-2"), ([0, 2, 4], "0,2,4")],
)
def test_indices_are_compressed_into_ranges(indices: list[int], expected: str) -> None:
    assert array_text(indices) == expected
    assert array_text(indices, 4) == f"{expected}%4"


class Bash:
    """Runs a script with stand-ins for srun, squeue and scontrol, which note down how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        (folder / "bin").mkdir()
        self.program("srun", 'shift; exec "$@"')  # without --kill-on-bad-exit
        self.program("scontrol", f'echo "$*" >> "{self.calls}"')
        self.program("sleep", f'echo "sleep $*" >> "{self.calls}"')
        self.queue("RUNNING None")

    def program(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def queue(self, answer: str) -> None:
        self.program("squeue", f'[[ "$*" == *--jobs=12_3* ]] && echo "{answer}"')

    def start(self, script: str, restarts: int = 0) -> subprocess.Popen[str]:
        path = self.folder / "job.sh"
        path.write_text(script)
        environment = os.environ | {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "SLURM_ARRAY_JOB_ID": "12",
            "SLURM_ARRAY_TASK_ID": "3",
            "SLURM_JOB_ID": "12",
            "SLURM_RESTART_COUNT": str(restarts),
        }
        return subprocess.Popen(
            ["bash", str(path)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, script: str, restarts: int = 0) -> tuple[int, str]:
        process = self.start(script, restarts)
        output, _ = process.communicate(timeout=30)
        return process.returncode, output

    @property
    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def bash(tmp_path: Path) -> Bash:
    return Bash(tmp_path)


def exits(code: int) -> list[str]:
    return [sys.executable, "-c", f"raise SystemExit({code})"]


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_a_cell_that_has_ended_is_not_requeued_and_its_exit_code_is_the_jobs(bash: Bash, code: int) -> None:
    assert bash.run(text(command=exits(code)))[0] == code
    assert bash.called == []


@pytest.mark.parametrize("code", [75, 138])
def test_an_interrupted_cell_requeues_its_own_task_not_the_array(bash: Bash, code: int) -> None:
    assert bash.run(text(command=exits(code)))[0] == 0
    assert bash.called == ["requeue 12_3"]


def test_requeues_are_bounded(bash: Bash) -> None:
    script = text(Options(max_requeues=2), command=exits(75))
    assert bash.run(script, restarts=1)[0] == 0
    assert bash.called == ["requeue 12_3"]
    code, output = bash.run(script, restarts=2)
    assert code == 75
    assert "resubmit goes on" in output
    assert bash.called == ["requeue 12_3"]


@pytest.mark.parametrize("answer", ["COMPLETING None", "CANCELLED None", "PENDING BeginTime", "PREEMPTED None"])
def test_a_job_that_slurm_ends_is_left_to_slurm(bash: Bash, answer: str) -> None:
    bash.queue(answer)
    assert bash.run(text(command=exits(75)))[0] == 75
    assert bash.called == []


def test_a_cell_that_saved_only_at_its_time_limit_is_requeued(bash: Bash) -> None:
    bash.queue("COMPLETING TimeLimit")
    assert bash.run(text(command=exits(75)))[0] == 0
    assert bash.called == ["requeue 12_3"]


def test_requeueing_is_tried_again_where_the_controller_is_away(bash: Bash) -> None:
    bash.queue("")
    bash.program("scontrol", f'echo "$*" >> "{bash.calls}"; [ $(grep -c requeue "{bash.calls}") -ge 2 ]')
    assert bash.run(text(command=exits(75)))[0] == 0
    assert bash.called == ["requeue 12_3", "sleep 5", "requeue 12_3"]


SAVES = """
import pathlib, signal, sys, time
told = []
signal.signal(signal.SIGTERM, lambda *a: told.append(1))
pathlib.Path(sys.argv[1]).touch()
while not told:
    time.sleep(0.01)
time.sleep(0.3)
pathlib.Path(sys.argv[1]).write_text("saved")
sys.exit(75)
"""


@pytest.mark.parametrize(("answer", "code", "called"), [("", 75, []), ("RUNNING None", 0, ["requeue 12_3"])])
def test_bash_outlives_signals_and_waits_until_the_cell_has_saved(
    bash: Bash, answer: str, code: int, called: list[str]
) -> None:
    bash.queue(answer)
    file = bash.folder / "cell"
    process = bash.start(text(command=[sys.executable, "-c", SAVES, str(file)]))
    while not file.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGTERM)
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.03)
    process.communicate(timeout=30)
    assert file.read_text() == "saved"
    assert process.returncode == code
    assert bash.called == called


def test_names_and_paths_are_not_run(bash: Bash) -> None:
    hostile = f"x; touch {bash.folder}/harm $(touch {bash.folder}/harm) `touch {bash.folder}/harm` '&'"
    script = text(
        study=hostile,
        logs=bash.folder / hostile.replace("/", "_"),
        working_directory=bash.folder / hostile.replace("/", "_"),
        command=["echo", hostile, "'", '"'],
    )
    code, output = bash.run(script)
    assert code == 0
    assert f"{hostile} ' \" 3\n" in output
    assert not (bash.folder / "harm").exists()


@pytest.mark.parametrize("setup", [(), ("export WORD=set",)])
def test_a_cell_has_the_scripts_environment_where_the_job_has_not_the_submitters(
    bash: Bash, setup: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """srun takes --export from SLURM_EXPORT_ENV, which sbatch sets to what it was given itself."""
    monkeypatch.setenv("SLURM_EXPORT_ENV", "NONE")
    bash.program("srun", '[ "$SLURM_EXPORT_ENV" = ALL ] || exec env -i "$@"; shift; exec "$@"')
    script = text(Options(setup=setup, extra=("--export=NONE",)), command=["bash", "-c", "echo word $WORD at $HOME"])
    code, output = bash.run(script)
    assert code == 0
    assert f"word {'set ' if setup else ''}at {os.environ['HOME']}\n" in output


def test_the_clusters_longest_array_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "scontrol"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert most_tasks() is None  # no SLURM here
    for value, expected in (("1001", 1001), ("0", None)):
        tool.write_text(f"#!/bin/sh\necho 'MaxArraySize            = {value}'\n")
        tool.chmod(0o755)
        assert most_tasks() == expected


def test_setup_runs_first_and_its_failure_fails_the_cell(bash: Bash) -> None:
    code, output = bash.run(text(Options(setup=("export WORD=set",)), command=["bash", "-c", "echo word $WORD"]))
    assert code == 0
    assert "word set\n" in output
    code, output = bash.run(text(Options(setup=("false", "true")), command=["echo", "ran"]))
    assert code == 1
    assert "ran" not in output
