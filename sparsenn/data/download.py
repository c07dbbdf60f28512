"""Fetch a file once, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

from sparsenn.data.errors import DataError
from sparsenn.data.idx import check_md5

_TIMEOUT_SECONDS = 30


def cache_dir() -> Path:
    """Where downloads are kept: ``$XDG_CACHE_HOME/sparsenn``, or ``~/.cache/sparsenn``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sparsenn"


def download(urls: Sequence[str], target: Path, md5: str) -> None:
    """Fetch ``target`` from the first of ``urls`` that serves it with the right checksum.

    The bytes go to a temporary file beside the target, which takes its name only after the check: a broken connection leaves
    nothing behind.

    Args:
        urls: addresses of the same file, in the order to try.
        target: where the file shall lie; its folder is made.
        md5: the digest that the file must have.

    Raises:
        DataError: if no address served the file; the message holds each address with its reason.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{target.parent}: cannot be made: {error.strerror or error}") from error
    reasons = []
    for url in urls:
        try:
            return _fetch(url, target, md5)
        except (urllib.error.URLError, HTTPException, OSError, DataError) as error:
            reasons.append(f"{url}: {getattr(error, 'reason', None) or error}")
    raise DataError(f"{target.name} could not be downloaded ({'; '.join(reasons)})")


def _fetch(url: str, target: Path, md5: str) -> None:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as sink, urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as source:
            shutil.copyfileobj(source, sink)
        check_md5(url, part.read_bytes(), md5)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
