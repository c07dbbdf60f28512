"""Data sets that come as one archive: read where it lies, packed or unpacked."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from sparsenn.data.download import cache_dir, download
from sparsenn.data.errors import DataError
from sparsenn.data.idx import check_md5

_BROKEN = (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile, RuntimeError, NotImplementedError)


@dataclass(frozen=True)
class ArchiveSource:
    """Where a data set in one archive comes from.

    Attributes:
        name: the data set's name, and that of its folder under a data root.
        archive: the official file's name; it ends in .tar.gz or .zip.
        folder: the one folder that the archive holds.
        md5: the archive's digest.
        addresses: where on the web it lies, in the order to try.
    """

    name: str
    archive: str
    folder: str
    md5: str
    addresses: tuple[str, ...]


class Files(Protocol):
    """The files of a data set by their paths within its folder."""

    def read(self, name: str) -> bytes:
        """The content of a file; raises a DataError that names it where it can't be read."""


def locate(source: ArchiveSource, root: str | Path | None, download_missing: bool) -> Path:
    """The archive or the folder that was unpacked from it, in ``<root>/<name>/`` or in the download cache.

    Raises:
        DataError: if it is in neither and can't be fetched; the message holds the cure.
    """
    if root is not None and not Path(root).is_dir():
        raise DataError(f"data root {root}: there is no such folder")
    folders = [folder / source.name for folder in ([Path(root)] if root is not None else []) + [cache_dir()]]
    for folder in folders:
        if (folder / source.folder).is_dir():
            return folder / source.folder
        if (folder / source.archive).is_file():
            return folder / source.archive
    cure = f"--data-root or SPARSENN_DATA names the folder that holds {source.name}/{source.archive}"
    if not download_missing:
        looked = " or ".join(str(folder) for folder in folders)
        raise DataError(f"{source.name}: neither {source.archive} nor {source.folder} is in {looked}; {cure}")
    target = folders[-1] / source.archive
    try:
        download(source.addresses, target, source.md5)
    except DataError as error:
        raise DataError(f"{source.name}: {error}; {cure}") from error
    return target


@contextmanager
def opened(source: ArchiveSource, path: Path) -> Iterator[Files]:
    """The files at ``path``, a folder or an archive, whose checksum must be the official one. Nothing is unpacked.

    Raises:
        DataError: if the archive has another checksum or can't be opened.
    """
    if path.is_dir():
        yield _Folder(path)
        return
    try:
        check_md5(path, path.read_bytes(), source.md5)
        archive = _Zip(path, source.folder) if path.suffix == ".zip" else _Tar(path, source.folder)
    except _BROKEN as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read: {error}; fetch the file again") from error
    try:
        yield archive
    finally:
        archive.close()


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, name: str) -> bytes:
        try:
            return (self._path / name).read_bytes()
        except OSError as error:
            raise DataError(f"{self._path / name}: cannot be read: {error.strerror or error}") from error


class _Zip:
    def __init__(self, path: Path, folder: str) -> None:
        self._path, self._folder, self._file = path, PurePosixPath(folder), zipfile.ZipFile(path)

    def read(self, name: str) -> bytes:
        try:
            return self._file.read(str(self._folder / name))
        except (KeyError, *_BROKEN) as error:
            raise DataError(f"{self._path}: {name} cannot be read: {error}; fetch the file again") from error

    def close(self) -> None:
        self._file.close()


class _Tar:
    """All of a packed archive at once, since one can't go back in it without unpacking it again."""

    def __init__(self, path: Path, folder: str) -> None:
        self._path, self._folder = path, PurePosixPath(folder)
        self._contents: dict[str, bytes] = {}
        with tarfile.open(path, "r:gz") as file:
            for member in file:
                stream = file.extractfile(member) if member.isfile() else None
                if stream is not None:
                    self._contents[str(PurePosixPath(member.name))] = stream.read()

    def read(self, name: str) -> bytes:
        content = self._contents.get(str(self._folder / name))
        if content is None:
            raise DataError(f"{self._path}: there is no {self._folder / name} in it; fetch the file again")
        return content

    def close(self) -> None:
        self._contents.clear()
