"""Data that is prepared on the user's machine: where it lives and where it comes from.

Nothing that is read here is ever executed or extracted: files are read out of folders and archives
into memory, each up to a limit.
"""

from __future__ import annotations

import io
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from hashlib import sha1
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from struct import error as StructError
from tempfile import TemporaryDirectory
from urllib.error import URLError
from urllib.request import urlopen

from toolwoz_gym.types import UsageError, one_line

MAX_ARCHIVE = 256 << 20
"""Largest archive and largest download, in bytes."""

MAX_MEMBERS = 10_000
"""Most files in an archive."""

MAX_COPIES = 8
"""Most files of one name that are looked at."""

_CHUNK = 1 << 18

# What the zip reader raises on bytes that are no sound archive, as found by damaging one.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    StructError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OSError,
    ValueError,
)


def data_folder() -> Path:
    """Return the folder of prepared data: what ``TOOLWOZ_DATA`` names, else in the user's cache.

    Raises:
        UsageError: There is a file of that name, or nobody knows where home is.
    """
    named = os.environ.get("TOOLWOZ_DATA")
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        folder = Path(named or Path(cache, "toolwoz_gym")).expanduser()
    except RuntimeError as error:
        raise UsageError(f"name a folder for data in TOOLWOZ_DATA: {_reason(error)}") from None
    if os.path.lexists(folder) and not os.path.isdir(folder):
        what = "the environment variable TOOLWOZ_DATA names" if named else "there is"
        raise UsageError(f"{what} {folder}, which is no folder: name one in TOOLWOZ_DATA")
    return folder


def git_blob_id(data: bytes | bytearray) -> str:
    """Return the id under which git stores a file of this content."""
    return sha1(b"blob %d\0" % len(data) + data).hexdigest()


def shown(name: str) -> str:
    """Return a name that somebody else chose, safe to show: one short line without codes."""
    text = name if name.isprintable() else ascii(name)
    return text if len(text) <= 100 else f"{text[:100]}..."


class Source:
    """Files to read data from: those of a folder or an archive, by path."""

    def __init__(self, name: str, files: Mapping[str, Callable[[int], bytes]]) -> None:
        """Name a set of files.

        Args:
            name: What messages call the source.
            files: By path what reads the file: it takes the most bytes that are wanted, and returns
                at least one more if there are more.
        """
        self.name = name
        self._files = files

    def named(self, pattern: str) -> list[str]:
        """Return the paths whose last part matches a shell pattern, sorted.

        Raises:
            UsageError: There are so many that somebody wants them all to be read.
        """
        paths = sorted(p for p in self._files if fnmatchcase(PurePosixPath(p).name, pattern))
        if len(paths) > MAX_COPIES:
            raise UsageError(f"{self.name} has too many files {pattern}: {len(paths)}")
        return paths

    def read(self, path: str, limit: int) -> bytes:
        """Return the content of a file.

        Raises:
            UsageError: The file cannot be read, or has more than ``limit`` bytes.
        """
        try:
            data = self._files[path](limit)
        except _DAMAGE as error:
            where = f"{shown(path)} in {self.name}"
            raise UsageError(f"cannot read {where}: {_reason(error)}") from None
        if len(data) > limit:
            where = f"{shown(path)} in {self.name}"
            raise UsageError(f"{where} is too large: more than {limit:,} bytes")
        return data

    def within(self, outer: Source) -> Source:
        """Return a source with the files of both, those of ``outer`` under their own paths."""
        inner = {f"{self.name}/{path}": read for path, read in self._files.items()}
        return Source(outer.name, {**inner, **outer._files})


def open_source(path: Path) -> Source:
    """Return the files of a folder or of a zip archive.

    Raises:
        UsageError: There is no such folder, or the file is no sound archive.
    """
    try:
        if path.is_dir():
            os.listdir(path)  # rglob passes over what may not be read
            files = {f.relative_to(path).as_posix(): f for f in path.rglob("*") if f.is_file()}
            return Source(str(path), {name: partial(_read_file, f) for name, f in files.items()})
        data = _read_file(path, MAX_ARCHIVE)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {_reason(error)}") from None
    return open_archive(str(path), data)


def open_archive(name: str, data: bytes) -> Source:
    """Return the files of a zip archive that is in memory.

    Raises:
        UsageError: It is no sound archive.
    """
    if len(data) > MAX_ARCHIVE:
        raise UsageError(f"{name} is too large: more than {MAX_ARCHIVE:,} bytes")
    # Before the directory is read, which takes twenty times its size: its entries begin like this.
    if data.count(b"PK\x01\x02") > MAX_MEMBERS:
        raise UsageError(f"{name} has too many files: more than {MAX_MEMBERS:,}")
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except _DAMAGE as error:
        raise UsageError(f"{name} is no zip archive, or a damaged one: {_reason(error)}") from None
    members = [member for member in archive.infolist() if not member.filename.endswith("/")]
    return Source(name, {m.filename: partial(_read_member, archive, m) for m in members})


def download(url: str, blob: str) -> bytes:
    """Fetch a file that git knows under the id ``blob``, and show the progress on stderr.

    Raises:
        UsageError: It cannot be reached, or is not the file that was asked for.
    """
    data = bytearray()
    try:
        with urlopen(url, timeout=30) as response:
            while chunk := response.read(_CHUNK):
                data += chunk
                if len(data) > MAX_ARCHIVE:
                    raise UsageError(f"{url} is too large: more than {MAX_ARCHIVE:,} bytes")
                if sys.stderr.isatty():
                    _show(url, data, end="\r")
    except (OSError, HTTPException, ValueError) as error:
        raise UsageError(
            f"cannot download {url}: {_reason(error)}; "
            "fetch it elsewhere and name the file or folder with --from"
        ) from None
    _show(url, data, end="\n")
    if git_blob_id(data) != blob:
        raise UsageError(f"{url} is not the pinned file: git blob {git_blob_id(data)}, not {blob}")
    return bytes(data)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Make the content of a folder anew: all of it, or, when the block raises, none.

    Yields:
        An empty folder next to ``folder``, which takes its place when the block is through.

    Raises:
        UsageError: The folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            new, old = Path(temporary, "new"), Path(temporary, "old")
            new.mkdir()
            yield new
            try:
                if folder.exists():
                    folder.rename(old)
                new.rename(folder)
            finally:
                if old.exists() and not folder.exists():
                    old.rename(folder)
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {_reason(error)}") from None


@contextmanager
def reading(name: str, folder: Path, prepare: str) -> Iterator[None]:
    """Say in one line why prepared data cannot be read.

    Args:
        name: What it is.
        folder: Where it is.
        prepare: The command that makes it.

    Raises:
        UsageError: It is not there, may not be read, or is damaged.
    """
    try:
        yield
    except FileNotFoundError:
        raise UsageError(f"{name} is not prepared in {folder}: run {prepare}") from None
    except OSError as error:
        raise UsageError(f"cannot read {folder}: {_reason(error)}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UsageError(
            f"the data in {folder} is damaged, or another version's: run {prepare}"
        ) from None


def _read_file(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        return file.read(limit + 1)


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int) -> bytes:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise NotImplementedError("it is compressed in an unusual way")
    with archive.open(member) as file:
        return file.read(limit + 1)


def _reason(error: BaseException) -> str:
    """Say in one line what went wrong."""
    if isinstance(error, URLError):
        return str(error.reason)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)


def _show(url: str, data: bytearray, *, end: str) -> None:
    name = url.rpartition("/")[2]
    print(f"{name}: {len(data) / 1e6:.1f} MB", end=end, file=sys.stderr, flush=True)
