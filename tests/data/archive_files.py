"""Writes small archives in the official formats of CIFAR and Tiny ImageNet, from their descriptions."""

import dataclasses
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np

from sparsenn.data.archives import ArchiveSource


def write_archive(source: ArchiveSource, root: Path, files: dict[str, bytes]) -> ArchiveSource:
    """Pack files into ``<root>/<name>/<archive>``; returns the source with the checksum of what was written."""
    path = root / source.name / source.archive
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(f"{source.folder}/{name}", content)
    else:
        with tarfile.open(path, "w:gz") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(f"{source.folder}/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return dataclasses.replace(source, md5=hashlib.md5(path.read_bytes()).hexdigest())


def write_folder(source: ArchiveSource, root: Path, files: dict[str, bytes]) -> None:
    """The same files as the folder that the archive unpacks to."""
    for name, content in files.items():
        path = root / source.name / source.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def cifar_record(labels: list[int], image: np.ndarray) -> bytes:
    """Labels, then the red, the green and the blue plane, row by row."""
    planes = [bytes(image[row, column, channel] for row in range(32) for column in range(32)) for channel in range(3)]
    return bytes(labels) + b"".join(planes)


def jpeg(pixels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
