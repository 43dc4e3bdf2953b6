"""The cache folder, and atomic writing of files and folders."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from recpeft.errors import DiskError


def home() -> Path:
    """Return the cache folder: ``$RECPEFT_HOME``, or ``~/.cache/recpeft``."""
    return Path(os.environ.get("RECPEFT_HOME") or "~/.cache/recpeft").expanduser()


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing write permission into a ``DiskError``."""
    try:
        yield
    except DiskError:
        raise
    except Exception as error:
        # NumPy's message keeps only the count of numbers written.
        if _is_one_of(error, errno.ENOSPC, errno.EDQUOT) or re.fullmatch(r"\d+ requested and \d+ written", str(error)):
            raise DiskError(
                f"the disk is full: could not write {path}; free some space and run the same command again."
            ) from error
        if _is_one_of(error, errno.EFBIG):
            raise DiskError(
                f"{path} would be larger than a file may be here; raise the limit (ulimit -f) and run the same command "
                "again."
            ) from error
        # A file where a folder should be is EEXIST to mkdir and ENOTDIR to what is below it.
        refused = {errno.EACCES, errno.EROFS, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
        if isinstance(error, OSError) and error.errno in refused:
            hint = ", by RECPEFT_HOME" if home() in (path, *path.parents) else ""
            raise DiskError(f"{path} may not be written ({error.strerror}); choose another folder{hint}.") from error
        raise


def _is_one_of(error: Exception, *numbers: int) -> bool:
    """Return whether ``error`` is one of these system errors."""
    # polars and safetensors wrap them in their own types, but keep the message.
    return getattr(error, "errno", None) in numbers or any(os.strerror(number) in str(error) for number in numbers)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in ``path``'s folder that replaces ``path`` when the block succeeds.

    A reader sees the old file or the new one, never a part; after an error nothing is left behind.
    The new file is flushed to disk before it replaces the old one.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("r+b") as file:  # Windows flushes only what may be written
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of ``path``, so that one process at a time fills it; the system releases a dead process's lock."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = (path.parent / f".{path.name}.lock").open("w")
    with file:
        try:
            import fcntl
        except ImportError:  # Windows: writes are still atomic; at worst two processes do the same work
            pass
        else:
            with contextlib.suppress(OSError):  # a network disk without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that replaces it when the block succeeds.

    An existing folder is moved aside first and deleted last, so it is lost only once the new one is in place.
    If another process writes one at the same time, one of the two remains, complete.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o755)
            for file in temporary.rglob("*"):
                file.chmod(0o755 if file.is_dir() else 0o644)  # safetensors writes for the owner alone
            _put_folder(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _put_folder(new: Path, path: Path) -> None:
    """Rename the folder ``new`` to ``path``, replacing an existing folder."""
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    old = aside / "old"
    try:
        while True:
            try:
                new.replace(path)
                return
            except OSError as error:
                # A rename cannot replace a non-empty folder, so the existing one is moved away first; so is one
                # that another process puts there in between.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            shutil.rmtree(old, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):  # another process has just moved it
                path.replace(old)
    finally:
        if old.exists() and not path.exists():  # the new one could not be put
            with contextlib.suppress(OSError):
                old.replace(path)
        shutil.rmtree(aside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, in UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
