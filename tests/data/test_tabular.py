import gzip
import hashlib
import os

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from sparsenn import data
from sparsenn.data import DataError, ImageData, TabularData, housing
from sparsenn.models import soft_committee

HEADER = ",".join(("ocean_proximity", *housing.COLUMNS[::-1], "median_house_value"))


def test_a_teacher_s_samples_are_its_function_and_reproducible():
    teacher = soft_committee(4, (6, 5))
    samples = data.from_teacher(teacher, 4, train=3000, test=50, seed=1)
    assert samples.train_inputs.shape == (3000, 4)
    assert samples.test_targets.shape == (50, 1)
    torch.testing.assert_close(samples.test_targets, teacher(samples.test_inputs).detach())
    assert not samples.train_targets.requires_grad
    assert float(samples.train_inputs.mean().abs()) < 0.05
    assert float(samples.train_inputs.std()) == pytest.approx(1, abs=0.05)
    again = data.from_teacher(teacher, 4, train=3000, test=50, seed=1)
    assert torch.equal(again.train_inputs, samples.train_inputs)
    other = data.from_teacher(teacher, 4, train=3000, test=50, seed=2)
    assert not torch.equal(other.train_inputs, samples.train_inputs)
    with pytest.raises(ValueError, match="test is 0"):
        data.from_teacher(teacher, 4, test=0)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.zeros(4), r"targets are torch.float32 \(4,\); 4 inputs need floating point \(4, K\) or int64 \(4,\)"),
        (torch.zeros(3, 1), r"targets are torch.float32 \(3, 1\)"),
        (torch.zeros(4, 1, dtype=torch.int64), "targets are torch.int64"),
        (torch.zeros(4, 2), "other sizes"),
        (torch.zeros(4, dtype=torch.int64), "other sizes or dtypes"),
    ],
)
def test_tables_that_contradict_themselves_are_refused(targets, message):
    x, y = torch.zeros(4, 3), torch.zeros(4, 1)
    with pytest.raises(DataError, match=message):
        TabularData("t", x, y, x, targets)
    with pytest.raises(DataError, match="t, train: inputs"):
        TabularData("t", x.long(), y, x, y)


def write_housing(folder, rows, name="housing.csv", monkeypatch=None):
    text = "\n".join([HEADER, *rows]) + "\n"
    (folder / "california-housing").mkdir(parents=True, exist_ok=True)
    content = text.encode()
    path = folder / "california-housing" / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    if monkeypatch:
        monkeypatch.setattr(housing, "_MD5", hashlib.md5(content).hexdigest())
    return path


def some_rows(count):
    values = np.random.default_rng(0).normal(size=(count, 9)) * 10 + 3
    return values, [",".join(["INLAND", *map(repr, map(float, row[:8][::-1])), repr(float(row[8]))]) for row in values]


@pytest.mark.parametrize("name", ["housing.csv", "housing.csv.gz"])
def test_housing_is_standardized_by_its_training_rows(tmp_path, monkeypatch, name):
    values, rows = some_rows(50)
    write_housing(tmp_path, rows, name, monkeypatch)
    loaded = data.load_california_housing(tmp_path)
    assert loaded.train_inputs.shape == (40, 8)
    assert loaded.test_targets.shape == (10, 1)
    torch.testing.assert_close(loaded.train_inputs.mean(0), torch.zeros(8), atol=1e-6, rtol=0)
    torch.testing.assert_close(loaded.train_targets.std(0), torch.ones(1))
    # each row is there once, its columns in the original order
    both = torch.cat(
        [
            torch.cat(part, 1)
            for part in ((loaded.train_inputs, loaded.train_targets), (loaded.test_inputs, loaded.test_targets))
        ]
    )
    for column in range(9):
        found = both[:, column].sort().values.double()
        truth = torch.from_numpy(np.sort(values[:, column]))
        scale = (truth[-1] - truth[0]) / (found[-1] - found[0])
        torch.testing.assert_close((found - found[0]) * scale + truth[0], truth, rtol=1e-4, atol=1e-3)


def test_a_gap_in_the_bedrooms_becomes_their_mean(tmp_path, monkeypatch):
    values, rows = some_rows(20)
    column = housing.COLUMNS.index("total_bedrooms")
    gap = rows[3].split(",")
    gap[8 - column] = ""
    write_housing(tmp_path, [*rows[:3], ",".join(gap), *rows[4:]], monkeypatch=monkeypatch)
    with_gap = data.load_california_housing(tmp_path)
    values[3, column] = np.delete(values[:, column], 3).mean()
    filled = ",".join(["INLAND", *map(repr, map(float, values[3, :8][::-1])), repr(float(values[3, 8]))])
    write_housing(tmp_path, [*rows[:3], filled, *rows[4:]], monkeypatch=monkeypatch)
    expected = data.load_california_housing(tmp_path)
    torch.testing.assert_close(with_gap.train_inputs, expected.train_inputs)
    torch.testing.assert_close(with_gap.test_inputs, expected.test_inputs)


def test_housing_files_that_are_missing_or_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="there is no such folder"):
        data.load_california_housing(tmp_path / "none")
    with pytest.raises(DataError, match=r"housing\.csv is not in .*; --data-root or SPARSENN_DATA"):
        data.load_california_housing(tmp_path)
    path = write_housing(tmp_path, some_rows(5)[1])
    with pytest.raises(DataError, match="checksum check failed"):
        data.load_california_housing(tmp_path)
    path.unlink()
    (path.parent / "housing.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot be read"):
        data.load_california_housing(tmp_path)


@pytest.mark.skipif(not os.environ.get("SPARSENN_DATA"), reason="needs SPARSENN_DATA with the real files")
def test_the_real_housing_file():
    loaded = data.load_california_housing()
    assert (len(loaded.train_inputs), len(loaded.test_inputs), loaded.in_features) == (16512, 4128, 8)
    assert float(loaded.train_inputs.std(0).sub(1).abs().max()) < 1e-4
    # what is known of these data: a linear model explains about 64 % of the variance of the original eight columns
    x, y = loaded.train_inputs.double(), loaded.train_targets.double()
    left = y - x @ torch.linalg.lstsq(x, y).solution
    assert 0.60 < 1 - float(left.var() / y.var()) < 0.68


def features(**changes):
    x = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float16)
    arrays = {"train_features": x, "train_labels": np.arange(9) % 3, "test_features": x[:4], "test_labels": np.arange(4) % 3}
    return {name: array for name, array in {**arrays, **changes}.items() if array is not None}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_features_come_back_as_they_were_written(tmp_path, suffix):
    path = tmp_path / f"f{suffix}"
    np.savez(path, **features()) if suffix == ".npz" else save_file(features(), path)
    loaded = data.load_features(path)
    assert torch.equal(loaded.train_inputs, torch.from_numpy(features()["train_features"].astype(np.float32)))
    assert loaded.test_targets.tolist() == [0, 1, 2, 0]
    assert loaded.train_targets.dtype == torch.int64


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int32])
def test_labels_may_be_any_integers(tmp_path, dtype):
    labels = {"train_labels": (np.arange(9) % 3).astype(dtype), "test_labels": (np.arange(4) % 3).astype(dtype)}
    np.savez(tmp_path / "f.npz", **features(**labels))
    assert data.load_features(tmp_path / "f.npz").train_targets.tolist() == [0, 1, 2] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": None}, "train_labels is missing; the file holds train_features"),
        ({"train_labels": np.zeros(9)}, "train_labels has dtype float64"),
        ({"test_features": np.zeros((4, 4), int)}, "test_features has dtype int64"),
        ({"test_labels": np.array([0, 1, 2, -1])}, "a label is below 0"),
        ({"test_labels": np.array([0, 1, 2, 2**63], np.uint64)}, "or above what int64 holds"),
        ({"test_features": np.full((4, 4), np.nan)}, "test_features holds NaN or infinity"),
        ({"train_labels": np.zeros(0, int), "train_features": np.zeros((0, 4))}, "class 2 is in the test samples alone"),
        ({"test_labels": np.array([0, 1, 2, 3])}, "class 3 is in the test samples alone"),
        ({"train_labels": np.arange(8) % 3}, "targets are torch.int64"),
    ],
)
def test_features_that_contradict_themselves(tmp_path, changes, message):
    np.savez(tmp_path / "f.npz", **features(**changes))
    with pytest.raises(DataError, match=message):
        data.load_features(tmp_path / "f.npz")


@pytest.mark.parametrize("name", ["f.npz", "f.safetensors"])
def test_a_file_that_is_none_of_both(tmp_path, name):
    with pytest.raises(DataError, match="there is no such file"):
        data.load_features(tmp_path / name)
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(DataError, match=r"neither an \.npz nor a \.safetensors file"):
        data.load_features(tmp_path / name)


def test_shuffled_pixels_are_one_permutation_for_all_images():
    x = torch.arange(5 * 2 * 9.0).reshape(5, 2, 3, 3) / 100
    images = data.ImageData("n", x, torch.zeros(5, dtype=torch.int64), x[:2], torch.zeros(2, dtype=torch.int64), ("a",))
    shuffled = data.shuffle_pixels(images)
    order = (shuffled.train_images[0].flatten() * 100).round().long()
    assert sorted(order.tolist()) == list(range(18))
    assert order.tolist() != list(range(18))
    assert torch.equal(shuffled.train_images.flatten(1), x.flatten(1)[:, order])
    assert torch.equal(shuffled.test_images, shuffled.train_images[:2])
    assert torch.equal(data.shuffle_pixels(images).train_images, shuffled.train_images)
    assert not torch.equal(data.shuffle_pixels(images, seed=1).train_images, shuffled.train_images)


def test_images_become_rows_of_pixels():
    x, y = torch.rand(5, 1, 3, 3), torch.tensor([0, 1, 1, 0, 1])
    images = ImageData("dots", x, y, x[3:], y[3:], ("dark", "light"))
    table = TabularData.of_images(images, 4)
    assert (table.name, table.in_features) == ("dots", 9)
    assert torch.equal(table.train_inputs[2], x[2].flatten())
    assert torch.equal(table.train_targets, y[:4])
    assert torch.equal(table.test_inputs[1], x[4].flatten())
    assert torch.equal(table.test_targets, y[3:])
    assert len(TabularData.of_images(images).train_inputs) == 5
