"""CIFAR and Tiny ImageNet, in their official formats."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from archive_files import cifar_record, jpeg, write_archive, write_folder

from sparsenn import data
from sparsenn.data import DataError, MissingExtraError
from sparsenn.data.cifar import CIFAR_10, CIFAR_100, load_cifar
from sparsenn.data.normalize import normalized
from sparsenn.data.tiny_imagenet import TINY_IMAGENET, load_tiny_imagenet

NAMES = {CIFAR_10: [f"class {i}" for i in range(10)], CIFAR_100: [f"class {i}" for i in range(100)]}


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """(N, 32, 32, 3), with channels of different mean and spread."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal([60, 120, 200], [10, 40, 20], (count, 32, 32, 3)), 0, 255).astype(np.uint8)


def cifar_files(source) -> tuple[dict[str, bytes], np.ndarray, list[int]]:
    """The files, the pictures in their order (the last two are for testing) and their labels."""
    images, labels = pictures(12), [3, 1, 9, 0, 2, 5, 7, 7, 4, 8, 6, 1]
    own = [[label] if source is CIFAR_10 else [label + 10, label + 90] for label in labels]
    records = [cifar_record(label, image) for label, image in zip(own, images, strict=True)]
    files = {source.names: ("\n".join(NAMES[source]) + "\n\n").encode(), source.test: b"".join(records[10:])}
    per_file = 10 // len(source.train)
    for i, name in enumerate(source.train):
        files[name] = b"".join(records[i * per_file : (i + 1) * per_file])
    return files, images, [label[-1] for label in own]


def normalization(images: np.ndarray, train: np.ndarray) -> np.ndarray:
    pixels = train.astype(np.float64) / 255
    return ((images / 255.0 - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2))).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("packed", [True, False], ids=["archive", "folder"])
@pytest.mark.parametrize("source", [CIFAR_10, CIFAR_100], ids=lambda s: s.name)
def test_cifar_is_read_and_normalized_by_the_training_set(tmp_path, source, packed):
    files, images, labels = cifar_files(source)
    if packed:
        chosen = write_archive(source, tmp_path, files)
    else:
        write_folder(source, tmp_path, files)
        chosen = source
    found = load_cifar(chosen, tmp_path)
    assert found.train_labels.tolist() == labels[:10]
    assert found.test_labels.tolist() == labels[10:]
    assert found.classes == tuple(NAMES[source])
    np.testing.assert_allclose(found.train_images, normalization(images[:10], images[:10]), atol=1e-6)
    np.testing.assert_allclose(found.test_images, normalization(images[10:], images[:10]), atol=1e-6)
    assert found.train_images.mean((0, 2, 3)).abs().max() < 1e-5
    assert (found.train_images.std((0, 2, 3)) - 1).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("data_batch_2.bin", bytes(3072), r"size check of data_batch_2\.bin failed: it has 3072 bytes; .* a multiple of 3073"),
        ("data_batch_2.bin", b"", "it has 0 bytes"),
        ("data_batch_2.bin", bytes(3073), r"size check of data_batch_1\.bin, .* failed: they hold \[2, 1, 2, 2, 2\] images"),
        ("test_batch.bin", bytes([10]) + bytes(3072), "label range check of test_batch.bin failed: the largest label is 10"),
        ("batches.meta.txt", b"cat\ndog\n", "batches.meta.txt names 2 classes; cifar-10 has 10"),
    ],
)
def test_damaged_cifar_files_are_named(tmp_path, name, content, sentence):
    files, _, _ = cifar_files(CIFAR_10)
    with pytest.raises(DataError, match=sentence):
        load_cifar(write_archive(CIFAR_10, tmp_path, files | {name: content}), tmp_path)


def test_a_file_that_is_not_there_is_named_packed_or_not(tmp_path):
    files, _, _ = cifar_files(CIFAR_10)
    del files["data_batch_4.bin"]
    source = write_archive(CIFAR_10, tmp_path / "a", files)
    with pytest.raises(DataError, match=r"there is no cifar-10-batches-bin/data_batch_4\.bin in it; fetch the file again"):
        load_cifar(source, tmp_path / "a")
    write_folder(CIFAR_10, tmp_path / "b", files)
    with pytest.raises(DataError, match=r"data_batch_4\.bin: cannot be read: No such file"):
        load_cifar(source, tmp_path / "b")


def test_an_archive_with_another_checksum_is_refused(tmp_path):
    files, _, _ = cifar_files(CIFAR_10)
    write_archive(CIFAR_10, tmp_path, files)
    with pytest.raises(
        DataError, match=r"cifar-10-binary\.tar\.gz: checksum check failed: md5 is .*, the official file has c32a"
    ):
        load_cifar(CIFAR_10, tmp_path)


def test_an_archive_that_is_none_is_refused(tmp_path):
    for source, load in ((CIFAR_10, load_cifar), (TINY_IMAGENET, load_tiny_imagenet)):
        path = tmp_path / source.name / source.archive
        path.parent.mkdir()
        path.write_bytes(b"none")
        wrong = dataclasses.replace(source, md5="334c4a4c42fdb79d7ebc3e73b517e6f8")  # of these four bytes
        with pytest.raises(DataError, match=rf"{source.archive}: cannot be read: .*; fetch the file again"):
            load(wrong, tmp_path)


def test_archives_are_downloaded_once_into_the_cache(tmp_path):
    files, _, _ = cifar_files(CIFAR_100)
    served = write_archive(CIFAR_100, tmp_path / "server", files)
    online = dataclasses.replace(served, addresses=((tmp_path / "server" / "cifar-100" / served.archive).as_uri(),))
    first = load_cifar(online, download_missing=True)
    shutil.rmtree(tmp_path / "server")
    assert torch.equal(load_cifar(online, download_missing=True).train_images, first.train_images)


@pytest.mark.parametrize("name", ["cifar-10", "cifar-100", "tiny-imagenet", "kuzushiji-mnist"])
def test_a_missing_data_set_names_the_places_and_the_cure(tmp_path, name):
    with pytest.raises(DataError, match=rf"{name}: .* is (not )?in .*cache.*; --data-root or SPARSENN_DATA names the folder"):
        data.load(name, tmp_path)
    with pytest.raises(DataError, match="nowhere: there is no such folder"):
        data.load(name, tmp_path / "nowhere")


# Tiny ImageNet

SYNSETS = ["n02124075", "n01443537", "n04067472"]


def tiny_files(**changes: bytes) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    """Smooth pictures, which JPEG keeps nearly as they are, one of them grey."""
    rows, columns = np.mgrid[0:64, 0:64]
    files: dict[str, bytes] = {"wnids.txt": "\n".join(SYNSETS).encode()}
    files["words.txt"] = b"n01443537\tgoldfish, Carassius auratus\nn02124075\tEgyptian cat\nn09999999\tno class of these\n"
    truth: dict[str, np.ndarray] = {}

    def picture(name: str, seed: int, grey: bool = False) -> None:
        colour = np.stack([rows * 2 + 10 * seed, columns * 2 + 30, rows + columns + 5 * seed], axis=2).astype(np.uint8)
        files[name] = jpeg(colour[:, :, 0] if grey else colour)
        truth[name] = np.repeat(colour[:, :, :1], 3, axis=2) if grey else colour

    for i, synset in enumerate(SYNSETS):
        names = [f"{synset}_{k}.JPEG" for k in (0, 5)]
        files[f"train/{synset}/{synset}_boxes.txt"] = "".join(f"{name}\t0\t10\t63\t58\n" for name in names).encode()
        for k, name in enumerate(names):
            picture(f"train/{synset}/images/{name}", 2 * i + k, grey=name == "n01443537_5.JPEG")
    picture("val/images/val_0.JPEG", 7)
    picture("val/images/val_1.JPEG", 8)
    files["val/val_annotations.txt"] = b"val_0.JPEG\tn04067472\t0\t32\t44\t62\nval_1.JPEG\tn02124075\t1\t1\t9\t9\n"
    return files | changes, truth


@pytest.mark.parametrize("packed", [True, False], ids=["archive", "folder"])
def test_tiny_imagenet_is_decoded_and_normalized(tmp_path, packed):
    pytest.importorskip("PIL")
    files, truth = tiny_files()
    source = write_archive(TINY_IMAGENET, tmp_path, files)
    if not packed:
        (tmp_path / source.name / source.archive).unlink()
        write_folder(source, tmp_path, files)
    found = load_tiny_imagenet(source, tmp_path)
    assert found.train_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.test_labels.tolist() == [2, 0]
    assert found.classes == ("Egyptian cat", "goldfish, Carassius auratus", "n04067472")
    train = np.stack([image for name, image in truth.items() if name.startswith("train")])
    test = np.stack([truth["val/images/val_0.JPEG"], truth["val/images/val_1.JPEG"]])
    spread = (train / 255.0).std((0, 1, 2)).min()
    for images, exact in ((found.train_images, train), (found.test_images, test)):
        error = np.abs(images.numpy() - normalization(exact, train)) * spread * 255
        assert error.mean() < 2  # grey levels: what JPEG at quality 95 costs
        assert error.max() < 12
    assert torch.equal(
        found.train_images[3][0] > found.train_images[3][0].mean(), found.train_images[3][1] > found.train_images[3][1].mean()
    )


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("wnids.txt", b"n02124075\nn02124075", "wnids.txt does not name synsets, each once"),
        ("wnids.txt", b"cat", "wnids.txt does not name synsets"),
        ("val/val_annotations.txt", b"val_0.JPEG\tn00000000\t0", "gives val_0.JPEG the class 'n00000000', which wnids.txt"),
        ("val/val_annotations.txt", b"../../secret.JPEG\tn02124075\t0", "has the line '../../secret.JPEG"),
        ("val/val_annotations.txt", b"\n", "it lists no images"),
        ("val/images/val_1.JPEG", b"GIF89a", r"val/images/val_1\.JPEG cannot be decoded"),
        ("train/n01443537/n01443537_boxes.txt", b"n01443537_9.JPEG\t0", r"n01443537_9\.JPEG cannot be read"),
    ],
)
def test_damaged_tiny_imagenet_files_are_named(tmp_path, name, content, sentence):
    pytest.importorskip("PIL")
    files, _ = tiny_files(**{name: content})
    with pytest.raises(DataError, match=sentence):
        load_tiny_imagenet(write_archive(TINY_IMAGENET, tmp_path, files), tmp_path)


def test_a_picture_of_another_size_is_named(tmp_path):
    pytest.importorskip("PIL")
    files, _ = tiny_files(**{"val/images/val_1.JPEG": jpeg(np.zeros((32, 64, 3), dtype=np.uint8))})
    with pytest.raises(DataError, match=r"val_1\.JPEG has 64 x 32 pixels; it takes 64 x 64"):
        load_tiny_imagenet(write_archive(TINY_IMAGENET, tmp_path, files), tmp_path)


def test_tiny_imagenet_without_pillow_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(MissingExtraError, match=r"pillow: pip install 'sparsenn\[experiments\]'"):
        data.load("tiny-imagenet")


def test_a_constant_channel_becomes_zero():
    images = np.full((3, 1, 2, 2), 9, dtype=np.uint8)
    train, test = normalized(images, images + 5)
    assert train.count_nonzero() == test.count_nonzero() == 0
