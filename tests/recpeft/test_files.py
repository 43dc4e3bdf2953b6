"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import resource
import threading
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recpeft import files
from recpeft.errors import DiskError
from recpeft.files import atomic_folder, atomic_path, home, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_path_shows_the_old_file_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["record.json"]


def test_atomic_path_leaves_nothing_behind_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "record.json"

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyError("boom")

    with pytest.raises(KeyError):
        write()
    assert names(tmp_path / "sub") == []


def test_atomic_path_keeps_the_old_file_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text("old")
    with pytest.raises(KeyError), atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise KeyError("boom")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["record.json"]


def test_a_written_file_can_be_read_by_others(tmp_path: Path) -> None:
    # tempfile makes files for their owner alone
    write_text(tmp_path / "record.json", "é")
    assert (tmp_path / "record.json").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "record.json").read_bytes() == "é".encode()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_sentence_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = tmp_path / "record.json"
    path.write_text("old")

    def full(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(DiskError, match=rf"the disk is full: could not write .*{path.name}; free some space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["record.json"]


def test_a_full_disk_is_known_by_its_words_where_a_library_wraps_the_error(tmp_path: Path) -> None:
    """As polars says it when a Parquet file does not fit."""
    with pytest.raises(DiskError, match="the disk is full"), atomic_path(tmp_path / "x"):
        raise RuntimeError("parquet: underlying IO error: No space left on device (os error 28)")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("200000 requested and 25584 written", "the disk is full"),  # NumPy's
        ("parquet: underlying IO error: File too large (os error 27)", "would be larger than a file may be here"),
    ],
)
def test_a_file_that_cannot_be_written_whole_is_a_sentence(tmp_path: Path, words: str, sentence: str) -> None:
    with pytest.raises(DiskError, match=rf"{sentence}.* run the same command"), atomic_path(tmp_path / "x"):
        raise OSError(words)
    assert names(tmp_path) == []


def test_polars_and_numpy_meet_the_limit_of_a_files_size(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(20_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(DiskError, match="larger than a file may be"), atomic_path(tmp_path / "x") as path:
            pl.DataFrame({"value": values}).write_parquet(path)
        with pytest.raises(DiskError, match="could not write"), atomic_folder(tmp_path / "y") as path:
            np.save(path / "y.npy", values)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_that_may_not_be_written_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.tempfile, "mkstemp", refused)
    with pytest.raises(DiskError, match=r"may not be written \(.*\); choose another folder"):
        write_text(tmp_path / "record.json", "new")


def test_other_system_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), atomic_path(tmp_path / "x") as temporary:  # noqa: PT012
        temporary.unlink()
        temporary.mkdir()
        try:
            temporary.read_bytes()
        finally:
            temporary.rmdir()
            temporary.touch()


# Folders -----------------------------------------------------------------------------------------------


def test_atomic_folder_takes_the_place_of_an_older_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    for content in ("old", "new"):
        with atomic_folder(path) as temporary:
            (temporary / content).write_text(content)
            assert not (path / content).exists()
    assert names(path) == ["new"]
    assert names(tmp_path) == ["adapter"]
    assert path.stat().st_mode & 0o777 == 0o755


def test_atomic_folder_leaves_the_old_one_and_nothing_else_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    with atomic_folder(path) as temporary:
        (temporary / "old").touch()
    with pytest.raises(KeyError), atomic_folder(path) as temporary:  # noqa: PT012
        (temporary / "half").touch()
        raise KeyError("boom")
    assert names(path) == ["old"]
    assert names(tmp_path) == ["adapter"]


def test_a_full_disk_inside_an_atomic_folder_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="the disk is full"), atomic_folder(tmp_path / "adapter") as temporary:  # noqa: PT012
        (temporary / "half").touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


def test_the_old_folder_comes_back_where_the_new_one_cannot_be_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "adapter"
    path.mkdir()
    (path / "old").touch()
    rename, put = Path.replace, []

    def broken(self: Path, target: Path) -> Path:
        if target == path and (self / "new").exists():
            put.append(self)
            # not empty at first, as it is; then a fault of the disk
            if len(put) == 2:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), atomic_folder(path) as temporary:
        (temporary / "new").touch()
    assert len(put) == 2
    assert names(path) == ["old"]
    assert names(tmp_path) == ["adapter"]


def test_a_folder_that_another_process_puts_there_meanwhile_ends_in_one_whole_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "adapter"
    path.mkdir()
    (path / "old").touch()
    rename, came = Path.replace, []

    def raced(self: Path, target: Path) -> Path:
        result = rename(self, target)
        if self == path and not came:  # just when the old one is out of the way
            came.append(True)
            path.mkdir()
            (path / "theirs").touch()
        return result

    monkeypatch.setattr(Path, "replace", raced)
    with atomic_folder(path) as temporary:
        (temporary / "ours").touch()
    assert came
    assert names(path) == ["ours"]
    assert names(tmp_path) == ["adapter"]


def test_writers_at_the_same_time_leave_one_whole_folder(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    errors: list[BaseException] = []

    def write(writer: int) -> None:
        try:
            for _ in range(40):
                with atomic_folder(path) as temporary:
                    for part in range(3):
                        (temporary / f"{writer}-{part}").touch()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    found = names(path)
    assert found in [[f"{writer}-{part}" for part in range(3)] for writer in range(4)]
    assert names(tmp_path) == ["adapter"]


def test_home_is_the_environments_or_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECPEFT_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.setenv("RECPEFT_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == tmp_path / ".cache" / "recpeft"
