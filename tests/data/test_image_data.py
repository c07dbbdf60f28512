import dataclasses
import os

import numpy as np
import pytest
import torch
from idx_files import write_idx

from sparsenn import data
from sparsenn.data import DataError, ImageData, MissingExtraError
from sparsenn.data.mnist import MNIST, TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS, IdxSource, load_idx


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        TRAIN_IMAGES: rng.integers(0, 256, (5, 4, 4), dtype=np.uint8),
        TRAIN_LABELS: np.array([0, 1, 2, 1, 0], dtype=np.uint8),
        TEST_IMAGES: rng.integers(0, 256, (2, 4, 4), dtype=np.uint8),
        TEST_LABELS: np.array([2, 0], dtype=np.uint8),
    }


def written(folder, content, addresses=()) -> IdxSource:
    digests = {name: write_idx(folder / "toys" / name, array) for name, array in content.items()}
    return IdxSource("toys", digests, tuple(addresses), ("ball", "bear", "train"))


def test_idx_files_become_images_between_0_and_1(tmp_path):
    content = arrays()
    toys = load_idx(written(tmp_path, content), tmp_path)
    assert torch.equal(toys.train_images, torch.tensor(content[TRAIN_IMAGES] / np.float32(255))[:, None])
    assert toys.train_labels.tolist() == [0, 1, 2, 1, 0]
    assert toys.test_labels.tolist() == [2, 0]
    assert toys.test_images.shape == (2, 1, 4, 4)


def test_unpacked_files_serve_as_well(tmp_path):
    content = arrays()
    source = written(tmp_path, content)
    packed = load_idx(source, tmp_path)
    for name, array in content.items():
        (tmp_path / "toys" / name).unlink()
        write_idx(tmp_path / "toys" / name.removesuffix(".gz"), array)
    unpacked = load_idx(source, tmp_path)
    assert torch.equal(packed.train_images, unpacked.train_images)


def test_a_label_without_a_class_names_file_and_check(tmp_path):
    content = arrays() | {TEST_LABELS: np.array([3, 0], dtype=np.uint8)}
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz: label range check failed: the largest label is 3"):
        load_idx(written(tmp_path, content), tmp_path)


def test_labels_and_images_must_be_as_many(tmp_path):
    content = arrays() | {TEST_LABELS: np.array([1], dtype=np.uint8)}
    with pytest.raises(DataError, match="count check failed: 1 labels for the 2 images"):
        load_idx(written(tmp_path, content), tmp_path)


def test_other_content_fails_the_checksum(tmp_path):
    source = written(tmp_path, arrays())
    write_idx(tmp_path / "toys" / TRAIN_IMAGES, arrays(seed=1)[TRAIN_IMAGES])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: checksum check failed"):
        load_idx(source, tmp_path)


def test_a_missing_file_names_the_places_and_the_cure(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(DataError, match=r"mnist: train-images.* is not in .*elsewhere.*cache.*--data-root or SPARSENN_DATA"):
        data.load("mnist", tmp_path / "elsewhere")


def test_a_data_root_that_is_no_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: there is no such folder"):
        data.load("mnist", tmp_path / "nowhere", download=True)


def test_sparsenn_data_is_the_default_root(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSENN_DATA", str(tmp_path / "from-environment"))
    with pytest.raises(DataError, match="from-environment: there is no such folder"):
        data.load("fashion-mnist")


def test_missing_files_are_downloaded_once_into_the_cache(tmp_path):
    content = arrays()
    source = written(tmp_path / "server", content)
    nowhere = (tmp_path / "server" / "absent").as_uri()
    online = dataclasses.replace(source, addresses=(nowhere, (tmp_path / "server" / "toys").as_uri()))
    first = load_idx(online, download_missing=True)
    assert sorted(f.name for f in (tmp_path / "cache" / "sparsenn" / "toys").iterdir()) == sorted(content)
    offline = load_idx(dataclasses.replace(online, addresses=()), download_missing=True)
    assert torch.equal(first.train_images, offline.train_images)


def test_a_download_with_another_checksum_leaves_nothing(tmp_path):
    source = written(tmp_path / "server", arrays())
    write_idx(tmp_path / "server" / "toys" / TRAIN_IMAGES, arrays(seed=1)[TRAIN_IMAGES])
    online = dataclasses.replace(source, addresses=((tmp_path / "server" / "toys").as_uri(),))
    with pytest.raises(DataError, match=r"could not be downloaded \(.*checksum check failed.*--data-root"):
        load_idx(online, download_missing=True)
    assert list((tmp_path / "cache" / "sparsenn" / "toys").iterdir()) == []


def test_a_failed_download_gives_the_address_and_the_cure(tmp_path):
    source = dataclasses.replace(MNIST, addresses=((tmp_path / "nowhere").as_uri(),))
    with pytest.raises(DataError, match=r"nowhere/train-images.*; --data-root or SPARSENN_DATA names the folder"):
        load_idx(source, download_missing=True)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown name 'cifar'; known are digits, mnist, .*kuzushiji-mnist, cifar-10"):
        data.load("cifar")


def test_digits_are_split_once_and_evenly():
    sklearn_data = pytest.importorskip("sklearn.datasets")
    digits, truth = data.load("digits"), sklearn_data.load_digits()
    both = torch.cat([digits.train_images, digits.test_images]).reshape(-1, 64) * 16
    labels = torch.cat([digits.train_labels, digits.test_labels])
    found = sorted([*pixels, label] for pixels, label in zip(both.tolist(), labels.tolist(), strict=True))
    assert found == sorted([*pixels, label] for pixels, label in zip(truth.data.tolist(), truth.target.tolist(), strict=True))
    share = digits.test_labels.bincount() / labels.bincount()
    assert ((share > 0.19) & (share <= 0.2)).all()


def test_the_folds_of_the_digits_are_disjoint():
    pytest.importorskip("sklearn")
    sizes = [len(data.load_digits(fold).test_labels) for fold in range(5)]
    assert sum(sizes) == 1797


def test_digits_without_scikit_learn_say_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"scikit-learn: pip install 'sparsenn\[experiments\]'"):
        data.load("digits")


X, Y = torch.rand(4, 1, 3, 3), torch.tensor([0, 1, 1, 0])


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (X, torch.tensor([0, 1, 2, 0]), "labels run from 0 to 2; 2 classes need 0 to 1"),
        (X, torch.tensor([0, -1, 1, 0]), "labels run from -1"),
        (X, Y.int(), "4 images need int64"),
        (X[:3], Y, "3 images need int64"),
        (X[0], Y[:1], "must be floating point"),
        ((X * 255).byte(), Y, "must be floating point"),
        (X[:, :, :2], Y, "must be floating point"),
        (X[:0], Y[:0], "there are no images"),
        (X.numpy(), Y, "toys, train: images are of type ndarray; they must be a tensor"),
        (X, Y.tolist(), "toys, train: labels are of type list; they must be a tensor"),
        (torch.rand(4, 3, 3, 3), Y, r"toys, test: images are \(1, 3, 3\), those to train on \(3, 3, 3\); they must be alike"),
    ],
    ids=["class", "negative", "int32", "count", "dims", "bytes", "oblong", "empty", "array", "list", "other"],
)
def test_images_that_contradict_themselves_are_refused(images, labels, sentence):
    with pytest.raises(DataError, match=sentence):
        ImageData("toys", images, labels, X, Y, ("ball", "bear"))


def test_moving_changes_the_images_dtype_and_nothing_else():
    toys = ImageData("toys", X, Y, X[:2], Y[:2], ("ball", "bear")).to("cpu", torch.bfloat16)
    assert toys.train_images.dtype == toys.test_images.dtype == torch.bfloat16
    assert torch.equal(toys.train_images, X.bfloat16())
    assert toys.train_labels.dtype == torch.int64
    assert toys.classes == ("ball", "bear")


@pytest.mark.skipif(not os.environ.get("SPARSENN_DATA"), reason="SPARSENN_DATA is not set")
@pytest.mark.parametrize(("name", "mean", "std"), [("mnist", 0.1307, 0.3081), ("fashion-mnist", 0.2860, 0.3530)])
def test_the_official_files_have_their_published_mean_and_deviation(name, mean, std):
    real = data.load(name)
    assert real.train_images.shape == (60000, 1, 28, 28)
    assert real.test_images.shape == (10000, 1, 28, 28)
    assert float(real.train_images.mean()) == pytest.approx(mean, abs=5e-5)
    assert float(real.train_images.std()) == pytest.approx(std, abs=5e-5)
    assert int(real.test_labels.bincount().sum()) == 10000
    if name == "fashion-mnist":
        assert real.train_labels.bincount().tolist() == [6000] * 10
