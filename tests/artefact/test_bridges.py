"""What is exported computes the same in the other house."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import sparsenn


def gate(features, dim=1):
    return sparsenn.nn.SpectralGate(features, dim, init=nn.init.normal_)


NETS = {
    "lenet5": ((1, 14, 14), lambda: sparsenn.models.lenet5(image_size=14)),
    "resnet18": ((3, 8, 8), lambda: sparsenn.models.resnet18()),
    "mixed": (
        (2, 9),
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm1d(4, affine=False),
            nn.GELU(),
            nn.MaxPool1d(2),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(8, 5),
            nn.GELU("tanh"),
            nn.Linear(5, 4),
            nn.Sigmoid(),
            nn.Softmax(-1),
        ),
    ),
    "rows": ((5, 4), lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2, bias=False))),
    "gates": (
        (3, 6, 5),
        lambda: nn.Sequential(
            gate(3), nn.Conv2d(3, 4, 3), gate(4, -3), nn.ReLU(), gate(3, -1), nn.Flatten(), gate(48), gate(48, -1)
        ),
    ),
    "pools": (
        (2, 7, 7),
        lambda: nn.Sequential(nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(2, 1, 1, count_include_pad=False), nn.Tanh()),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_onnx_runtime_computes_the_same(name, tmp_path):
    pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    sample, build = NETS[name]
    net = build().eval()
    path = sparsenn.artefact.to_onnx(net, tmp_path / "net.onnx", torch.ones(2, *sample))
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        x = torch.randn(count, *sample)
        (found,) = session.run(None, {"v0": x.numpy()})
        expected = net(x).detach().numpy()
        assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()


POOLS = [
    (nn.AvgPool2d, {"kernel_size": 2, "ceil_mode": True, "padding": 1, "count_include_pad": False}),
    *(
        (kind, {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil, **more})
        for kind in (nn.MaxPool1d, nn.AvgPool1d, nn.MaxPool2d, nn.AvgPool2d)
        for kernel, stride, padding in ((2, 2, 1), (2, 3, 0), (3, 2, 1), (3, 5, 1), (5, 3, 2), (1, 2, 0), (4, 3, 0))
        for ceil in (False, True)
        for more in (({},) if "Max" in kind.__name__ else ({"count_include_pad": True}, {"count_include_pad": False}))
    ),
    (nn.AvgPool2d, {"kernel_size": (4, 2), "stride": (3, 4), "padding": (2, 0), "ceil_mode": True}),
    (nn.AvgPool2d, {"kernel_size": (4, 3), "stride": (3, 5), "padding": (0, 1), "ceil_mode": True}),
]


@pytest.mark.parametrize("size", [(9, 9), (8, 6)])
def test_windows_beside_the_border_are_those_of_pytorch(size, tmp_path):
    pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    quiet = ort.SessionOptions()
    quiet.intra_op_num_threads = quiet.inter_op_num_threads = 1
    for kind, options in POOLS:
        x = torch.randn(2, 3, *size) + 3 if "2d" in kind.__name__ else torch.randn(2, 3, size[1]) + 3
        pool = kind(**options)
        net = nn.Sequential(pool, nn.Flatten(), nn.Linear(pool(x).flatten(1).shape[1], 3))  # whose sizes are checked
        path = sparsenn.artefact.to_onnx(net, tmp_path / "net.onnx", x)
        session = ort.InferenceSession(str(path), quiet, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"v0": x.numpy()})
        expected = net(x).detach()
        assert found.shape == tuple(expected.shape), pool
        assert np.abs(found - expected.numpy()).max() <= 2e-5 * float(expected.abs().max()), pool


def test_factors_and_compacted_models_are_exported(tmp_path):
    pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).eval()
    net[0].weight.data[2:] = 0
    x = torch.randn(3, 6)
    small = sparsenn.prune.compact(net, x)
    factors = sparsenn.factorize(net, 2)
    for model in (small, factors):
        path = sparsenn.artefact.to_onnx(model, tmp_path / "net", x)
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        torch.testing.assert_close(torch.from_numpy(session.run(None, {"v0": x.numpy()})[0]), model(x).detach())


def test_what_onnx_does_not_have_is_named(tmp_path):
    pytest.importorskip("onnx")
    with pytest.raises(ValueError, match=r"'0' \(adaptiveavgpool2d\) pools to \[2, 2\]"):
        sparsenn.artefact.to_onnx(nn.AdaptiveAvgPool2d(2), tmp_path / "net", torch.ones(1, 2, 4, 4))
    with pytest.raises(ValueError, match=r"0\.weight is torch\.float64; it takes float32"):
        sparsenn.artefact.to_onnx(nn.Linear(2, 2).double(), tmp_path / "net", torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"^to_onnx: '0' \(LSTM\) is unknown; .*; torch.onnx.export is for other models$"):
        sparsenn.artefact.to_onnx(nn.Sequential(nn.LSTM(3, 3)), tmp_path / "net", torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"^to_onnx: the model fails on an example of shape \(1, 3\): .*mat1"):
        sparsenn.artefact.to_onnx(nn.Linear(2, 2), tmp_path / "net", torch.ones(1, 3))
    assert list(tmp_path.iterdir()) == []


def test_matrices_are_those_of_the_layers():
    net = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(12, 4))
    with torch.no_grad():
        for p in net.parameters():
            p[torch.rand_like(p) < 0.7] = 0
    own, ours = sparsenn.artefact.to_scipy(net), sparsenn.artefact.to_torch_sparse(net)
    assert list(own) == list(ours) == ["0.weight", "2.weight"]
    for name, matrix in own.items():
        dense = net.get_parameter(name).detach().flatten(1)
        assert np.array_equal(matrix.toarray(), dense.numpy())
        assert matrix.nnz == int(dense.count_nonzero()) == ours[name].values().numel()
        assert torch.equal(ours[name].to_dense(), dense)
    with pytest.raises(ValueError, match=r"0\.weight is torch\.bfloat16"):
        sparsenn.artefact.to_scipy(net.bfloat16())


@pytest.mark.parametrize("name", ["lenet-5", "resnet-18"])
def test_a_folder_for_the_hub_gives_the_network_back(name, tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("unpickled"))
    net = sparsenn.models.build(name, in_channels=3, image_size=16).eval()
    x = torch.randn(2, 3, 16, 16)
    hub = sparsenn.artefact.hub_class()
    hub(net).save_pretrained(tmp_path / "net")
    assert {path.name for path in (tmp_path / "net").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    again = hub.from_pretrained(tmp_path / "net", local_files_only=True)
    assert torch.equal(again(x), net(x))
    assert torch.equal(sparsenn.load(tmp_path / "net" / "model.safetensors")(x), net(x))
    again.save_pretrained(tmp_path / "twice")
    assert torch.equal(hub.from_pretrained(str(tmp_path / "twice"))(x), net(x))
    assert "library_name: sparsenn" in (tmp_path / "net" / "README.md").read_text()


def test_a_hub_folder_is_read_as_strictly_as_a_file(tmp_path):
    pytest.importorskip("huggingface_hub")
    hub = sparsenn.artefact.hub_class()
    hub(nn.Linear(3, 2)).save_pretrained(tmp_path)
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(sparsenn.runtime.ArtefactError, match="damaged"):
        hub.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(sparsenn.runtime.ArtefactError, match="there is no such file"):
        hub.from_pretrained(tmp_path)
