from dataclasses import replace

import numpy as np
import pytest

from sparsenn.data import MissingExtraError
from sparsenn.training import configure, train
from sparsenn.training.phases import phases
from sparsenn.training.pictures import _accuracy, _compression, _misalignment, _thicken, write_pictures

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def result(shapes):
    return train(configure(epochs=2, eval_every=1, lam=1e-2), images=shapes)


def test_a_factorized_run_has_four_pictures_and_a_dense_one_three(result, shapes, tmp_path):
    sparse, dense = tmp_path / "sparse", tmp_path / "dense"
    sparse.mkdir()
    dense.mkdir()
    names = {path.name for path in write_pictures(result, sparse)}
    assert names == {f.name for f in sparse.iterdir()}
    assert names == {"accuracy.png", "compression.png", "misalignment.png", "weights.png"}
    write_pictures(train(configure(method="dense", epochs=1), images=shapes), dense)
    assert {f.name for f in dense.iterdir()} == names - {"misalignment.png"}


def test_the_pictures_are_images_with_ink(result, tmp_path):
    from matplotlib.image import imread

    for path in write_pictures(result, tmp_path):
        pixels = imread(path)[..., :3]
        assert min(pixels.shape[:2]) > 200
        assert 0.01 < (pixels.min(axis=2) < 0.9).mean() < 0.9


def test_the_same_run_draws_the_same_bytes(result, tmp_path):
    first = [path.read_bytes() for path in write_pictures(result, tmp_path)]
    assert first == [path.read_bytes() for path in write_pictures(result, tmp_path)]


def test_no_lone_weight_falls_between_the_pixels_of_the_map():
    rng = np.random.default_rng(0)
    for _ in range(50):
        matrix = np.zeros((rng.integers(1, 900), rng.integers(1, 900)))
        row, column, value = rng.integers(matrix.shape[0]), rng.integers(matrix.shape[1]), rng.normal()
        matrix[row, column] = value
        shown = _thicken(matrix)
        assert max(shown.shape) <= 300
        assert shown[shown != 0].tolist() == [value]


def test_a_small_matrix_is_shown_as_it_is():
    matrix = np.random.default_rng(0).normal(size=(300, 64))
    assert np.array_equal(_thicken(matrix), matrix)


def test_without_matplotlib_a_run_with_a_folder_says_so_before_it_trains(shapes, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"needs matplotlib: pip install 'sparsenn\[experiments\]'"):
        train(configure(epochs=1), tmp_path / "r", images=shapes)
    assert not (tmp_path / "r").exists()


def test_the_phases_of_a_factorized_run_are_marked_where_they_begin(result, tmp_path):
    history = [
        {**result.net.history[0], "epoch": epoch, "train_accuracy": accuracy, "weights": weights}
        for epoch, accuracy, weights in ((1, 0.8, 99), (2, 0.9, 99), (3, 0.8, 99), (4, 0.95, 50))
    ]
    net = replace(result.net, history=history)
    found = phases(history, net.total)
    assert net.phases == found
    assert net.to_dict()["phases"] == {"reorganization": 2, "sparsification": 3, "onset": found.onset}
    for draw in (_accuracy, _compression, _misalignment):
        axes = draw(replace(result, net=net)).axes[0]
        lines = {line.get_label(): line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1}
        assert lines == {"reorganization": 2, "sparsification": 3, "onset of sparsity": found.onset}
    text = str(replace(result, net=net))
    assert (
        f"Sparsity set in by epoch {found.onset} (5 % zeros), training accuracy fell from epoch 2, and rose again from epoch 3."
        in text
    )
    late = replace(net, history=[{**record, "weights": net.total} for record in history])
    assert "Sparsity did not set in: less than 5 % zeros at every evaluation." in str(replace(result, net=late))


def test_a_net_without_factors_has_no_phases(shapes):
    dense = train(configure(method="dense", epochs=1), images=shapes)
    assert dense.net.phases is None
    assert "phases" not in dense.net.to_dict()
    assert "Sparsity" not in str(dense)
