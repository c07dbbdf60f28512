"""Two processes in one folder train no row twice."""

import pytest

from sparsenn.papers import reproduce
from sparsenn.training import RunFolderError
from sparsenn.training.table import growing


@pytest.mark.parametrize(
    ("paper", "item", "table", "given"),
    [
        ("dwf", "transformer", "transformer.jsonl", {}),
        ("rbv2", "beyond", "beyond.jsonl", {}),
        ("rbv2", "fig2", "runs.jsonl", {}),
        ("rbv2", "when", "runs.jsonl", {}),
        ("spectral", "fig1", "teacher.jsonl", {}),
        ("spectral", "grouplasso", "grouplasso.jsonl", {"widths": (2,), "trials": 1}),
    ],
)
def test_an_item_waits_for_nobody(tmp_path, paper, item, table, given):
    busy = pytest.raises(RunFolderError, match=f"{table}: another process trains here")
    with growing(tmp_path / table, ()) as rows, busy:
        reproduce(paper, item, out=tmp_path, epochs=1, **given)
    assert rows.path.read_text() == ""
