import json
import math

import pytest

from sparsenn.papers import ITEMS, reproduce
from sparsenn.papers.dwf import fig1
from sparsenn.training import ConfigError


def test_an_unknown_item_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown dwf fig99; known are dwf fig1"):
        reproduce("dwf", "fig99")
    assert all(callable(__import__(f"sparsenn.papers.dwf.{item}", fromlist=["x"]).reproduce) for item in ITEMS["dwf"])


@pytest.mark.parametrize("given", [{"lams": (0.0, 1.0)}, {"lams": (2.0, 1.0)}, {"points": 0}, {"seeds": 0}])
def test_a_grid_that_is_none_is_refused_before_anything_is_written(tmp_path, given):
    with pytest.raises(ValueError, match="fig1: it takes"):
        fig1.reproduce(tmp_path / "out", **given)
    with pytest.raises(ConfigError, match="unknown name 'imagenet'"):
        fig1.reproduce(tmp_path / "out", dataset="imagenet")
    with pytest.raises(ConfigError, match="epochs is 0"):
        fig1.reproduce(tmp_path / "out", epochs=0)
    with pytest.raises(ConfigError, match="lam is inf"):
        fig1.reproduce(tmp_path / "out", lams=(1e-3, math.inf))
    assert not (tmp_path / "out").exists()


def test_a_finished_row_is_not_computed_again(tmp_path, monkeypatch):
    fig1.reproduce(tmp_path, lams=(1e-4, 1e-2), points=2, epochs=2)
    text = (tmp_path / "fig1.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert {(r["curve"], r["lam"]) for r in rows} == {(c, lam) for c in fig1.CURVES for lam in (1e-4, 1e-2)}
    kept = text.splitlines(keepends=True)[:-1]
    (tmp_path / "fig1.jsonl").write_text("".join(kept))
    trained = []
    honest = fig1.train
    monkeypatch.setattr(fig1, "train", lambda config, **given: trained.append(config) or honest(config, **given))
    assert fig1.reproduce(tmp_path, lams=(1e-4, 1e-2), points=2, epochs=2).read_bytes().startswith(b"\x89PNG")
    assert [(c.method, c.lam) for c in trained] == [("dwf", 1e-2)]
    assert (tmp_path / "fig1.jsonl").read_text() == text

    drawn = []
    monkeypatch.setattr(fig1, "_draw", lambda rows, title: drawn.extend(rows) or b"")
    trained.clear()
    fig1.reproduce(tmp_path, lams=(1e-2, 1e-2), points=1, epochs=1)  # other runs: they are computed, and drawn alone
    assert [c.epochs for c in trained] == [1] * len(fig1.CURVES)
    assert [row["epochs"] for row in drawn] == [1] * len(fig1.CURVES)


def test_the_front_is_what_no_other_point_beats():
    points = [(1.0, 0.9), (2.0, 0.95), (2.0, 0.7), (8.0, 0.8), (4.0, 0.8), (16.0, 0.1)]
    assert fig1._front(points) == ([16.0, 8.0, 2.0], [0.1, 0.8, 0.95])


def test_the_grid_is_log_spaced_and_has_its_ends():
    grid = fig1._log_spaced(1e-5, 1e-1, 5)
    assert grid == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
    assert fig1._log_spaced(1e-5, 1e-1, 1) == [1e-5]
    assert math.isclose(grid[0], 1e-5)
