"""A table of finished runs that survives a kill: one JSON object a line, each written when its run is done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsenn.training.folder import alone_at

Row = dict[str, Any]


class Table:
    """The rows in a file; a row is known by the values of its key columns.

    Opening it drops a last line that a kill has left incomplete.

    Args:
        path: the file; made, with its folder, where it is not there.
        key: the columns that name a run.

    Raises:
        ValueError: if the file can't be made or read, or a line but the last is no row with these columns.
    """

    def __init__(self, path: str | Path, key: tuple[str, ...]) -> None:
        self.path = path = Path(path)
        self.key = key
        self.rows: list[Row] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text(encoding="utf-8") if path.exists() else ""
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: the table can't be made or read ({error}); name another folder") from error
        whole = text[: text.rfind("\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                self.name_of(row)
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}, line {number}: not a row of this table ({error}); name another folder") from error
            self.rows.append(row)
        self._torn_at = len(whole.encode()) if whole != text else None  # a line that a kill cut off

    def name_of(self, row: Row) -> tuple[Any, ...]:
        """The values by which a row is known."""
        return tuple(row[column] for column in self.key)

    def missing(self, wanted: Iterable[Row]) -> Iterator[Row]:
        """Those of ``wanted`` that are not in the table."""
        there = {self.name_of(row) for row in self.rows}
        return (row for row in wanted if self.name_of(row) not in there)

    def rows_of(self, keys: Iterable[Row]) -> list[Row]:
        """The rows of ``keys`` that are in the table, in the order of ``keys``."""
        there = {self.name_of(row): row for row in self.rows}
        return [there[name] for key in keys if (name := self.name_of(key)) in there]

    def add(self, row: Row) -> None:
        """Append a row; it is on the disk when this returns."""
        line = json.dumps(row, allow_nan=False)
        if self._torn_at is not None:
            os.truncate(self.path, self._torn_at)
            self._torn_at = None
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)


@contextmanager
def growing(path: str | Path, key: tuple[str, ...]) -> Iterator[Table]:
    """A table that no other process adds to as long as this lasts; other tables in its folder are free.

    Raises:
        ValueError: as of :class:`Table`.
        RunFolderError: if another process adds to it, or something can't be written.
    """
    with alone_at(Path(path)):
        yield Table(path, key)
