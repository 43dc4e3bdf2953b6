"""Nothing here touches the network: archives are made in the test, and their checksums put in place."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import multiprocessing
import os
import random
import stat
import subprocess
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest

from datamodules import _fetch
from datamodules._fetch import LAYOUTS, fetch, terms
from datamodules.movielens import Config, load
from recpeft.errors import RecpeftError

FOLDERS = {"official": "ml-100k", "atomic": "recbole/dataset_example/ml-100k"}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache of its own, and no network: both downloads fail as they do without one."""
    monkeypatch.setenv("RECPEFT_HOME", str(tmp_path / "home"))

    def no_answer(url, timeout):
        assert timeout <= 10
        raise urllib.error.URLError(TimeoutError("timed out"))

    def no_index(command, **_):
        error = "WARNING: Retrying\nERROR: No matching distribution found for recbole==1.2.1\n"
        return subprocess.CompletedProcess(command, 1, "", error)

    monkeypatch.setattr(urllib.request, "urlopen", no_answer)
    monkeypatch.setattr(subprocess, "run", no_index)
    return tmp_path / "home"


@pytest.fixture
def tiny(write_both, tmp_path, monkeypatch):
    """{layout: {file: bytes}} of a small data set, whose checksums are the expected ones."""
    files = {}
    for layout, write in zip(("atomic", "official"), write_both, strict=True):
        folder = write(tmp_path / layout)
        files[layout] = {name: (folder / name).read_bytes() for name in LAYOUTS[layout]}
        for name, data in files[layout].items():
            monkeypatch.setitem(_fetch.SHA256, name, hashlib.sha256(data).hexdigest())
    return files


def pack(path, layout, files, *extra):
    """The archive of a layout as its home packs it; ``extra`` are further (member, content)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(f"{FOLDERS[layout]}/{name}", data)
        for member, data in extra:
            archive.writestr(member, data)
    return path


def assert_refused(path, *fragments):
    """A sentence with every fragment, and nothing in the cache."""
    with pytest.raises(RecpeftError) as refused:
        fetch("ml-100k", path)
    message = str(refused.value)
    for fragment in fragments:
        assert fragment in message
    assert "\n" not in message
    cache = _fetch.cache_folder("ml-100k")
    assert not cache.exists()
    if cache.parent.is_dir():
        assert {path.name for path in cache.parent.iterdir()} <= {".ml-100k.lock"}


def assert_cached(folder, home, layout, files):
    assert folder == home / "data" / "ml-100k"
    assert {path.name for path in folder.iterdir()} == {*LAYOUTS[layout], "LICENCE.txt", "source.json"}
    for name, data in files.items():
        assert (folder / name).read_bytes() == data


# --- where it is taken from ---


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_a_given_path_of_either_layout_fills_the_cache(home, tiny, tmp_path, layout, kind):
    path = tmp_path / layout if kind == "folder" else pack(tmp_path / "x.zip", layout, tiny[layout])
    folder = fetch("ml-100k", path)
    assert_cached(folder, home, layout, tiny[layout])
    assert load(Config(source="movielens")).num_users == 3  # path None is the cache
    record = json.loads((folder / "source.json").read_text())
    assert record["source"] == str(path)
    assert record["sha256"] == {name: hashlib.sha256(data).hexdigest() for name, data in tiny[layout].items()}


def test_the_official_archive_is_asked_first(home, tiny, tmp_path, monkeypatch):
    archive = pack(tmp_path / "x.zip", "official", tiny["official"]).read_bytes()
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        return io.BytesIO(archive)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    folder = fetch("ml-100k")
    assert_cached(folder, home, "official", tiny["official"])
    assert asked == ["https://files.grouplens.org/datasets/movielens/ml-100k.zip"]
    assert fetch("ml-100k") == folder
    assert len(asked) == 1  # the second call is answered by the cache


@pytest.fixture
def pip_has_the_wheel(tiny, monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        pack(Path(command[-1]) / "recbole-1.2.1-py3-none-any.whl", "atomic", tiny["atomic"])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_the_wheel_is_next_and_nothing_of_it_is_built_or_installed(home, tiny, pip_has_the_wheel):
    assert_cached(fetch("ml-100k"), home, "atomic", tiny["atomic"])
    (command,) = pip_has_the_wheel
    assert command[1:5] == ["-P", "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "recbole==1.2.1"} <= set(command)


def test_a_server_that_answers_with_something_else_is_passed_over(home, tiny, pip_has_the_wheel, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"<html>please log in</html>"))
    assert_cached(fetch("ml-100k"), home, "atomic", tiny["atomic"])


def test_without_network_both_reasons_and_the_remedy_are_named(home):
    assert_refused(
        None,
        "https://files.grouplens.org/datasets/movielens/ml-100k.zip could not be reached",
        "timed out",
        "pip download recbole==1.2.1 failed (No matching distribution found for recbole==1.2.1)",
        "`recpeft data fetch ml-100k --from PATH`",
    )


def test_a_pip_that_hangs_is_the_same_sentence(monkeypatch):
    def hang(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    assert_refused(None, "pip download recbole==1.2.1 took over 300 s", "--from PATH")


def test_a_server_that_drips_is_given_up(monkeypatch):
    monkeypatch.setattr(_fetch, "DOWNLOAD_SECONDS", -1)
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"x" * 10))
    assert_refused(None, "could not be reached (stopped after 10 bytes)")


# --- the cache ---


def test_the_terms_are_in_the_cache_and_can_be_printed(tiny, tmp_path):
    text = (fetch("ml-100k", tmp_path / "atomic") / "LICENCE.txt").read_text()
    assert text == terms("ml-100k")
    for words in ("research", "do not redistribute", "commercial", "Harper", "10.1145/2827872"):
        assert words in text


def test_a_complete_cache_is_returned_without_reading_any_source(tiny, tmp_path, monkeypatch):
    folder = fetch("ml-100k", tmp_path / "official")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert fetch("ml-100k") == folder  # there is no network: a download would raise
    assert fetch("ml-100k", tmp_path / "official") == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("damage", ["altered", "truncated", "missing", "no record", "record of nothing"])
def test_a_damaged_cache_is_fetched_anew(home, tiny, tmp_path, pip_has_the_wheel, damage):
    folder = fetch("ml-100k", tmp_path / "atomic")
    file = folder / "ml-100k.item"
    if damage == "altered":
        file.write_bytes(file.read_bytes().replace(b"Toy", b"Boy"))
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "missing":
        file.unlink()
    elif damage == "no record":
        (folder / "source.json").write_text("{")
    else:
        (folder / "source.json").write_text('{"sha256": {}}')
    assert_cached(fetch("ml-100k"), home, "atomic", tiny["atomic"])
    assert len(pip_has_the_wheel) == 1


def test_a_cache_altered_together_with_its_record_is_fetched_anew(home, tiny, tmp_path, pip_has_the_wheel):
    folder = fetch("ml-100k", tmp_path / "atomic")
    (folder / "ml-100k.item").write_bytes(b"other")
    record = json.loads((folder / "source.json").read_text())
    record["sha256"]["ml-100k.item"] = hashlib.sha256(b"other").hexdigest()
    (folder / "source.json").write_text(json.dumps(record))
    assert_cached(fetch("ml-100k"), home, "atomic", tiny["atomic"])


def _fetch_slowly(path, queue):
    original = _fetch._install

    def install(*arguments):
        queue.put("installed")
        original(*arguments)

    _fetch._install = install
    queue.put(str(fetch("ml-100k", path)))


@pytest.mark.skipif(os.name != "posix", reason="needs fork and file locks")
def test_processes_at_once_fill_the_cache_once(home, tiny, tmp_path):
    context = multiprocessing.get_context("fork")  # so that the checksums put in place are theirs too
    queue = context.Queue()
    processes = [context.Process(target=_fetch_slowly, args=(tmp_path / "atomic", queue)) for _ in range(6)]
    for process in processes:
        process.start()
    answers = [queue.get(timeout=60) for _ in range(7)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 6
    assert answers.count("installed") == 1
    assert answers.count(str(home / "data" / "ml-100k")) == 6
    assert_cached(home / "data" / "ml-100k", home, "atomic", tiny["atomic"])
    assert {path.name for path in (home / "data").iterdir()} == {"ml-100k", ".ml-100k.lock"}


def test_a_full_disk_leaves_nothing_half_written(tiny, tmp_path, monkeypatch):
    write_bytes, written = Path.write_bytes, []

    def fill(path, data):
        written.append(path)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", fill)
    assert_refused(tmp_path / "atomic", "the disk is full", "run the same command again")
    assert len(written) == 2


def test_a_home_that_cannot_be_a_folder_is_named(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RECPEFT_HOME", str(tmp_path / "file"))
    with pytest.raises(
        RecpeftError,
        match=r"may not be written \((Not a directory|File exists)\); choose another folder, by RECPEFT_HOME",
    ):
        fetch("ml-100k", tmp_path / "atomic")


# --- archives and folders that are refused ---


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_altered_file_is_named_with_both_checksums(tiny, tmp_path, layout):
    name = LAYOUTS[layout][1]
    altered = tiny[layout] | {name: tiny[layout][name].replace(b"Toy", b"Boy")}
    digest = hashlib.sha256(altered[name]).hexdigest()
    expected = (
        f"{name} from",
        f"has sha256 {digest}",
        f"expected {_fetch.SHA256[name]}",
        "download it again",
    )
    assert_refused(pack(tmp_path / "x.zip", layout, altered), *expected)
    (tmp_path / layout / name).write_bytes(altered[name])
    assert_refused(tmp_path / layout, *expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_truncated_archive_is_refused(tiny, tmp_path, layout, share):
    path = pack(tmp_path / "x.zip", layout, tiny[layout])
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert_refused(path, str(path), "truncated or altered", "download it again")


def test_no_damaged_byte_of_an_archive_gives_a_traceback_or_other_data(tiny, tmp_path):
    whole = pack(tmp_path / "x.whl", "atomic", tiny["atomic"]).read_bytes()
    chance = random.Random(0)  # noqa: S311
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= chance.randrange(1, 256)
        try:
            assert _fetch._from_archive(bytes(data), "x.whl") == tiny["atomic"]
        except RecpeftError:
            refused += 1
    assert refused > 150  # the others hit a time stamp or the like


@pytest.mark.parametrize(
    ("member", "kind"),
    [
        ("../evil", "a path out of the archive"),
        ("ml-100k/../../evil", "a path out of the archive"),
        ("..\\evil", "a path out of the archive"),
        ("/tmp/evil", "an absolute path"),  # noqa: S108
        ("C:\\evil", "an absolute path"),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_member_that_leaves_the_archive_is_refused(tiny, tmp_path, layout, member, kind):
    path = pack(tmp_path / "x.zip", layout, tiny[layout], (member, b"evil"))
    assert_refused(path, str(path), kind, "evil", "not trusted")
    assert not any(path.name == "evil" for path in tmp_path.rglob("*"))


def test_a_symbolic_link_is_refused(tiny, tmp_path):
    link = zipfile.ZipInfo("ml-100k/u.base")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = pack(tmp_path / "x.zip", "official", tiny["official"], (link, b"/etc/passwd"))
    assert_refused(path, "'ml-100k/u.base' is a symbolic link")


def test_a_zip_bomb_is_read_no_further_than_the_limit(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(_fetch, "MAX_BYTES", 10_000)
    bomb = tiny["atomic"] | {"ml-100k.inter": b"0" * 1_000_000}
    path = pack(tmp_path / "x.whl", "atomic", bomb)
    assert path.stat().st_size < 10_000
    assert_refused(path, "ml-100k.inter has more than 10000 bytes")


def test_a_path_that_holds_something_else_is_told_what_is_wanted(tmp_path):
    assert_refused(tmp_path / "nowhere", "no such file or folder", "give a folder with u.data")
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", f"{tmp_path / 'empty'} lacks u.data, u.item, u.user")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("ml-1m/ratings.dat", "")
    assert_refused(tmp_path / "other.zip", "does not hold ML-100K", "give a folder with u.data")


def test_an_unknown_data_set_lists_the_known(tmp_path):
    for function in (fetch, terms):
        with pytest.raises(RecpeftError, match="unknown data set 'ml-1m'; ml-100k can be fetched"):
            function("ml-1m")


def test_the_real_files_have_the_checksums_in_the_code(ml100k_dir):
    record = json.loads((ml100k_dir / "source.json").read_text())
    found = {name: hashlib.sha256((ml100k_dir / name).read_bytes()).hexdigest() for name in record["sha256"]}
    assert found == {name: _fetch.SHA256[name] for name in found}
    assert len(found) == 3
