import json
import os

import pytest

from sparsenn.training import RunFolderError
from sparsenn.training.table import Table, growing


def rows(*names):
    return [{"name": name, "seed": 0} for name in names]


def test_rows_survive_and_are_not_asked_for_again(tmp_path):
    path = tmp_path / "new" / "t.jsonl"
    table = Table(path, ("name", "seed"))
    for row in rows("a", "b"):
        table.add({**row, "figure": 1.5})
    again = Table(path, ("name", "seed"))
    assert again.rows == table.rows == [json.loads(line) for line in path.read_text().splitlines()]
    assert list(again.missing(rows("a", "c", "b"))) == rows("c")


def test_rows_come_in_the_order_of_their_keys(tmp_path):
    table = Table(tmp_path / "t.jsonl", ("name", "seed"))
    for number, row in enumerate(rows("a", "b", "c")):
        table.add({**row, "figure": number})
    found = table.rows_of(key for key in [*rows("c", "d", "a"), {"name": "b", "seed": 1}])
    assert [(row["name"], row["figure"]) for row in found] == [("c", 2), ("a", 0)]


def test_a_line_that_a_kill_has_cut_is_dropped_and_computed_anew(tmp_path):
    path = tmp_path / "t.jsonl"
    table = Table(path, ("name",))
    for row in rows("a", "b"):
        table.add(row)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    broken = Table(path, ("name",))
    assert list(broken.missing(rows("a", "b"))) == rows("b")
    broken.add(rows("b")[0])
    assert path.read_bytes() == whole


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "out").write_text("taken")
    with pytest.raises(ValueError, match=r"out.t\.jsonl: the table can't be made or read"):
        Table(tmp_path / "out" / "t.jsonl", ("name",))
    (tmp_path / "t.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="can't be made or read"):
        Table(tmp_path / "t.jsonl", ("name",))


@pytest.mark.parametrize("line", ["{}", "5", "no json", '{"other": 1}'])
def test_a_foreign_file_is_refused_and_left_as_it_is(tmp_path, line):
    path = tmp_path / "t.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"t\.jsonl, line 1: not a row of this table"):
        Table(path, ("name",))
    assert path.read_text() == f"{line}\n"


def test_a_table_grows_for_one_process_at_a_time_and_others_beside_it_are_free(tmp_path):
    with growing(tmp_path / "t.jsonl", ("name",)) as table:
        table.add(rows("a")[0])
        busy = pytest.raises(RunFolderError, match=r"t\.jsonl: another process trains here")
        with busy, growing(tmp_path / "t.jsonl", ("name",)):
            pytest.fail("two are in")
        with growing(tmp_path / "u.jsonl", ("name",)) as other:
            other.add(rows("b")[0])
    with growing(tmp_path / "t.jsonl", ("name",)) as again:
        assert again.rows == rows("a")


def test_a_table_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="file: cannot be written"), growing(tmp_path / "file" / "t.jsonl", ("name",)):
        pytest.fail("it is in")


def test_a_complete_table_may_be_read_only(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"name": "a"}\n')
    os.utime(path, (0, 0))
    with growing(path, ("name",)) as table:
        assert list(table.missing([{"name": "a"}])) == []
    assert path.stat().st_mtime == 0
