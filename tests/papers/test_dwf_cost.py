"""What factors cost: four ways to take the same step, and what a step needs at least."""

from __future__ import annotations

import csv
import sys

import pytest
from torch import nn

from sparsenn import papers
from sparsenn.papers.dwf import cost
from sparsenn.papers.dwf.cost import Cell, make_step
from sparsenn.training.errors import ConfigError

MODEL = "lenet-300-100"
WORD = 4 * 266_610  # bytes of one number for each parameter


@pytest.mark.parametrize("model", [MODEL, "lenet-5"])
@pytest.mark.parametrize("depth", [2, 3])
def test_the_step_is_the_same_whoever_multiplies_the_factors(model, depth):
    steps = [make_step(Cell(model, way, depth, 16, "cpu")) for way in ("ours", "balanced", "eager")]
    ours, balanced, eager = ([step().item() for _ in range(5)] for step in steps)
    assert balanced == ours
    assert eager == pytest.approx(ours, rel=1e-4)
    assert ours[-1] < ours[0]


@pytest.mark.parametrize(("model", "classes"), [(MODEL, 10), ("vgg-19", 100)])
def test_labels_are_of_all_classes(monkeypatch, model, classes):
    seen = []

    def small(name, classes, in_channels, image_size):
        return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, classes))

    def listening(logits, labels):
        seen.extend(labels.tolist())
        return logits.sum()

    monkeypatch.setattr(cost.models, "build", small)
    monkeypatch.setattr(cost, "loss_of", listening)
    make_step(Cell(model, "dense", 1, 2000, "cpu"))()
    assert set(seen) == set(range(classes))


def test_one_factor_is_the_dense_net():
    dense, ours = (make_step(Cell(MODEL, way, 1, 16, "cpu")) for way in ("dense", "ours"))
    assert [dense().item() for _ in range(5)] == [ours().item() for _ in range(5)]


def test_the_table_has_every_cell_and_the_picture_can_be_drawn_again(tmp_path):
    picture = papers.reproduce("dwf", "fig26", out=tmp_path, batch_sizes=[8, 4], depths=[2], model=MODEL)
    with picture.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    cells = [(row["way"], int(row["depth"]), int(row["batch_size"])) for row in rows]
    assert cells == [(*way, size) for size in (4, 8) for way in (("dense", 1), ("ours", 2), ("balanced", 2), ("eager", 2))]
    assert all(float(figure) > 0 for row in rows for figure in row["figures"].split())
    drawn = picture.read_bytes()
    picture.unlink()
    assert papers.reproduce("dwf", "fig26", out=tmp_path, model=MODEL, no_train=True).read_bytes() == drawn


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a process is known on Linux alone")
def test_a_step_takes_the_memory_of_what_it_keeps(tmp_path):
    picture = papers.reproduce("dwf", "fig27", out=tmp_path, batch_sizes=[1], depths=[3], model=MODEL)
    with picture.with_suffix(".csv").open() as file:
        peaks = {row["way"]: float(row["figures"]) for row in csv.DictReader(file)}
    # weights and gradients or factors, their gradients, momenta
    words = {"dense": 3, "ours": 2 + 2 * 3, "balanced": 2 + 2, "eager": 3 * 3}
    for way, least in words.items():
        assert 0.95 * least < peaks[way] / WORD < 2 * least + 12, way  # ten MB and more are what libraries keep


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "lenet"}, "model: got 'lenet'"),
        ({"depths": [1]}, "depths are 1; they take whole numbers from 2"),
        ({"threads": -1}, "threads is -1"),
        ({"batch_sizes": []}, "batch-sizes are"),
        ({"device": "tpu"}, "device is 'tpu'; it takes cpu, cuda"),
        ({"no_train": True}, "is not there"),
    ],
)
def test_bad_settings_are_refused_and_nothing_is_written(given, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        papers.reproduce("dwf", "fig26", out=tmp_path / "runs", **given)
    assert not (tmp_path / "runs").exists()
