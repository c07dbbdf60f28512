"""The way from images to the file of features, with a small network in torchvision's place."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sparsenn import data
from sparsenn.data import DataError
from sparsenn.papers.spectral import resnet50


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5))
        self.fc = nn.Linear(5, 100)

    def forward(self, x):
        return self.fc(self.body(x))


def test_features_are_what_the_last_layer_would_have_read(tmp_path, monkeypatch):
    torch.manual_seed(0)
    backbone = Backbone()
    backbone.body[2].running_mean.normal_()
    images = {True: torch.randn(300, 3, 2, 2), False: torch.randn(7, 3, 2, 2)}
    asked = []

    def cifar(root, *, train, transform, download):
        asked.append((root, transform, download))
        return [(transform(x), i % 4) for i, x in enumerate(images[train])]

    weights = SimpleNamespace(transforms=lambda: lambda image: 2 * image)
    models = SimpleNamespace(
        ResNet50_Weights=SimpleNamespace(DEFAULT=weights), resnet50=lambda weights: backbone if weights is not None else None
    )
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torchvision.datasets", SimpleNamespace(CIFAR100=cifar))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    path = resnet50.extract(tmp_path / "f.safetensors", tmp_path / "cifar")
    loaded = data.load_features(path)
    assert [root for root, *_ in asked] == [str(tmp_path / "cifar")] * 2
    for part, train in ((loaded.train_inputs, True), (loaded.test_inputs, False)):
        torch.testing.assert_close(part, backbone.body(2 * images[train]).detach())
    assert loaded.train_targets.tolist() == [i % 4 for i in range(300)]


def test_without_torchvision_the_error_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(DataError, match=r"need torchvision.*pip install torchvision"):
        resnet50.extract(tmp_path / "f.safetensors")
    assert not (tmp_path / "f.safetensors").exists()
    assert "usage" in resnet50.main([])
