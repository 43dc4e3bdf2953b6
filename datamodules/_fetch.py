"""``recpeft data fetch``: get a data set from a path, its home or a package, verify it and cache it.

ML-100K comes from the given path, else from GroupLens's archive, else from the example data set in RecBole's
wheel. Nothing is installed and no code of the wheel runs: it is read as a zip file.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from recpeft.errors import RecpeftError
from recpeft.files import atomic_folder, disk_errors, home, locked

OFFICIAL_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
RECBOLE = "recbole==1.2.1"
RECBOLE_FOLDER = "recbole/dataset_example/ml-100k"

LAYOUTS = {
    "official": ("u.data", "u.item", "u.user"),
    "atomic": ("ml-100k.inter", "ml-100k.item", "ml-100k.user"),
}
"""File names of each layout: interactions, items, users."""

SHA256 = {
    "u.data": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
    "u.item": "553841ebc7de3a0fd0d6b62a204ea30c1e651aacfb2814c7a6584ac52f2c5701",
    "u.user": "f120e114da2e8cf314fd28f99417c94ae9ddf1cb6db8ce0e4b5995d40e90e62c",
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
}
"""SHA-256 of the files, not of an archive, so that a repacked archive is accepted."""

TERMS = """\
MovieLens 100K, by the GroupLens Research Project at the University of Minnesota.
For research use. Do not state or imply an endorsement by the university or GroupLens; acknowledge the use of
the data in publications; do not redistribute it without permission; do not use it for commercial or
revenue-bearing purposes without permission of the GroupLens Research Project.
The terms in full: https://files.grouplens.org/datasets/movielens/ml-100k-README.txt
Cite: F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. ACM
Transactions on Interactive Intelligent Systems 5, 4, Article 19. https://doi.org/10.1145/2827872
"""

MAX_BYTES = 64 * 2**20  # the largest file is 2 MB, either archive 5 MB
CONNECT_SECONDS = 10
DOWNLOAD_SECONDS = 120
PIP_SECONDS = 300


def cache_folder(name: str) -> Path:
    """Return the folder where ``fetch`` puts the data set ``name``."""
    return home() / "data" / name


def terms(name: str) -> str:
    """Return licence and citation of the data set ``name``, to be shown to the user."""
    _check_name(name)
    return TERMS


def fetch(name: str, path: Path | None = None) -> Path:
    """Return the folder of the data set ``name``, fetching it if it is not yet in the cache.

    A cache with matching checksums is returned at once; an altered one is fetched again. A given ``path`` is
    always read and verified.

    Args:
        path: a folder of the files in either layout, GroupLens's zip or RecBole's wheel; None downloads.
    Raises:
        RecpeftError: ``path`` does not hold the data set, no source can be reached, or the disk is full.
    """
    _check_name(name)
    cache = cache_folder(name)
    if path is None and _is_complete(cache):
        return cache
    with contextlib.ExitStack() as stack:
        with _writing(cache):
            stack.enter_context(locked(cache))
        if path is None and _is_complete(cache):  # another process was faster
            return cache
        files, source = _read(path.expanduser()) if path else _download()
        if not _is_complete(cache, files):
            _install(cache, name, files, source)
    return cache


def _check_name(name: str) -> None:
    if name != "ml-100k":
        raise RecpeftError(f"unknown data set {name!r}; ml-100k can be fetched.")


def layout(folder: Path) -> str:
    """Return ``official`` or ``atomic``, by the files in ``folder``; official if it has both.

    Raises:
        RecpeftError: there is no such folder, or neither layout is complete in it.
    """
    remedy = "run `recpeft data fetch ml-100k` or set data.path to the folder that has them"
    if not folder.is_dir():
        raise RecpeftError(f"no ML-100K files: {folder} is not a folder; {remedy}.")
    missing = {kind: [name for name in names if not (folder / name).is_file()] for kind, names in LAYOUTS.items()}
    for kind, absent in missing.items():
        if not absent:
            return kind
    nearest = min(missing.values(), key=lambda names: len(names))
    raise RecpeftError(f"{folder} lacks {', '.join(nearest)} of the ML-100K files; {remedy}.")


# --- the cache ---


def _is_complete(cache: Path, files: dict[str, bytes] | None = None) -> bool:
    """Return whether ``cache`` has the files that its record names, unaltered (and equal to ``files``)."""
    try:
        names = json.loads((cache / "source.json").read_text(encoding="utf-8"))["sha256"]
        found = {name: _sha256((cache / name).read_bytes()) for name in names}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return (
        tuple(sorted(found)) in LAYOUTS.values()
        and all(digest == SHA256[name] for name, digest in found.items())
        and (files is None or found == {name: _sha256(data) for name, data in files.items()})
    )


def _install(cache: Path, name: str, files: dict[str, bytes], source: str) -> None:
    record = {
        "name": name,
        "source": source,
        "sha256": {file: _sha256(data) for file, data in files.items()},
        "licence": "LICENCE.txt",
    }
    with _writing(cache), atomic_folder(cache) as folder:
        for file, data in files.items():
            (folder / file).write_bytes(data)
        (folder / "LICENCE.txt").write_text(TERMS, encoding="utf-8")
        (folder / "source.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _writing(cache: Path) -> Iterator[None]:
    try:
        with disk_errors(cache):
            yield
    except OSError as error:
        raise RecpeftError(
            f"{cache} could not be written: {error.strerror}; set RECPEFT_HOME to a folder that can be."
        ) from error


# --- sources: each returns the three files' verified contents and their origin ---


def _read(path: Path) -> tuple[dict[str, bytes], str]:
    if path.is_dir():
        return _from_folder(path), str(path)
    if not path.is_file():
        raise RecpeftError(f"--from {path}: no such file or folder; give {_WANTED}.")
    return _from_archive(read_file(path), str(path)), str(path)


_WANTED = "a folder with u.data, u.item and u.user or RecBole's ml-100k.*, ml-100k.zip, or RecBole's wheel"


def _from_folder(folder: Path) -> dict[str, bytes]:
    files = {name: read_file(folder / name) for name in LAYOUTS[layout(folder)]}
    _verify(files, str(folder))
    return files


def read_file(path: Path) -> bytes:
    """Read the whole file; raise ``RecpeftError`` if it is unreadable or far too large."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecpeftError(f"{path} could not be read: {error.strerror}; check its permissions.") from error
    if len(data) > MAX_BYTES:
        raise RecpeftError(f"{path} has more than {MAX_BYTES} bytes, so it is not ML-100K; give {_WANTED}.")
    return data


def _download() -> tuple[dict[str, bytes], str]:
    """Download from the first source with the right bytes; one with other bytes counts as unreachable."""
    reasons = []
    for source, get in ((OFFICIAL_URL, _official_archive), (f"{RECBOLE} (PyPI)", _recbole_wheel)):
        try:
            return _from_archive(get(), source), source
        except RecpeftError as error:
            reasons.append(str(error).rstrip("."))
    raise RecpeftError(
        f"ml-100k could not be downloaded: {'; '.join(reasons)}; download {OFFICIAL_URL} elsewhere and run "
        "`recpeft data fetch ml-100k --from PATH`."
    )


def _official_archive() -> bytes:
    import http.client
    import urllib.request

    deadline = time.monotonic() + DOWNLOAD_SECONDS
    data = b""
    try:
        with urllib.request.urlopen(OFFICIAL_URL, timeout=CONNECT_SECONDS) as response:
            while chunk := response.read1(2**16):
                data += chunk
                if time.monotonic() > deadline or len(data) > MAX_BYTES:
                    raise TimeoutError(f"stopped after {len(data)} bytes")
    except (OSError, http.client.HTTPException) as error:
        raise RecpeftError(f"{OFFICIAL_URL} could not be reached ({error})") from error
    return data


def _recbole_wheel() -> bytes:
    """Download RecBole's wheel through pip, so that the user's own index, proxy and certificates are used."""
    # --only-binary: building a source distribution would run its code.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--timeout=15", "--retries=1", RECBOLE]
    with disk_errors(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as folder:
        try:
            result = subprocess.run(  # noqa: S603 (no shell, fixed arguments)
                [*command, "--dest", folder], capture_output=True, text=True, timeout=PIP_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise RecpeftError(f"pip download {RECBOLE} took over {PIP_SECONDS} s") from None
        wheels = list(Path(folder).glob("*.whl"))
        if result.returncode or not wheels:
            lines = result.stderr.strip().splitlines() or ["no message"]
            raise RecpeftError(f"pip download {RECBOLE} failed ({lines[-1].removeprefix('ERROR: ')})")
        return read_file(wheels[0])


# --- archives ---


def _from_archive(data: bytes, source: str) -> dict[str, bytes]:
    """Return the three files in GroupLens's zip or RecBole's wheel.

    Only the known members are read, by name and into memory, so no path of the archive is ever written to;
    an archive with an unsafe member is refused all the same.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.infolist():
                _refuse_unsafe(member, source)
            for folder, names in zip(("ml-100k", RECBOLE_FOLDER), LAYOUTS.values(), strict=True):
                if {f"{folder}/{name}" for name in names} <= set(archive.namelist()):
                    files = {name: _read_member(archive, f"{folder}/{name}", source) for name in names}
                    break
            else:
                raise RecpeftError(f"{source} does not hold ML-100K; give {_WANTED}.")
    except RecpeftError:
        raise
    except Exception as error:  # zipfile raises a dozen exception types for a damaged file, such as zlib.error
        raise RecpeftError(
            f"{source} is no whole zip file ({error}): it is truncated or altered; download it again."
        ) from error
    _verify(files, source)
    return files


def _refuse_unsafe(member: zipfile.ZipInfo, source: str) -> None:
    name = member.orig_filename.replace("\\", "/")
    kind = None
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        kind = "an absolute path"
    elif ".." in PurePosixPath(name).parts:
        kind = "a path out of the archive"
    elif stat.S_ISLNK(member.external_attr >> 16):
        kind = "a symbolic link"
    if kind:
        raise RecpeftError(
            f"{source}: member {member.orig_filename!r} is {kind}, so the archive is not trusted; "
            "download it again from its home."
        )


def _read_member(archive: zipfile.ZipFile, path: str, source: str) -> bytes:
    with archive.open(path) as file:
        data = file.read(MAX_BYTES + 1)  # the size that the archive claims may be wrong
    if len(data) > MAX_BYTES:
        raise RecpeftError(f"{source}: member {path} has more than {MAX_BYTES} bytes; download the archive again.")
    return data


def _verify(files: dict[str, bytes], source: str) -> None:
    for name, data in files.items():
        digest = _sha256(data)
        if digest != SHA256[name]:
            raise RecpeftError(
                f"{name} from {source} has sha256 {digest}, expected {SHA256[name]}: it is truncated or "
                "altered; download it again (data of your own need no fetch: set data.path to their folder)."
            )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
