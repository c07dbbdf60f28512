"""Ten thousand damaged files: each is refused in a sentence, or is another network that PyTorch and the runtime agree on."""

from __future__ import annotations

import hashlib
import json
import random
import re
import resource

import numpy as np
import pytest
import torch
from torch import nn

import sparsenn
from sparsenn import runtime
from sparsenn.runtime import ArtefactError
from sparsenn.runtime.container import read
from sparsenn.runtime.storage import NUMPY

LIMIT = 1 << 22  # bytes that a file may ask for here


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.branch = nn.Conv2d(4, 4, 1, bias=False)
        self.pool = nn.AvgPool2d(2)
        self.wide, self.out = nn.Linear(36, 40), nn.Linear(40, 3)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x)))
        x = self.pool(x + self.branch(x)).flatten(1)
        return torch.softmax(self.out(torch.tanh(self.wide(x))), 1)


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> bytes:
    torch.manual_seed(0)
    net = Small().eval()
    with torch.no_grad():
        net.conv.weight[::2] = 0  # under a mask
        net.wide.weight[torch.rand(40, 36) < 0.97] = 0  # by gaps
        net.bn.running_mean.normal_()
    path = sparsenn.save(net, tmp_path_factory.mktemp("fuzz") / "net")
    assert {t.how for t in read(path).tensors.values()} >= {"dense", "gaps8"}
    return path.read_bytes()


def sealed(content: bytes) -> bytes:
    """With the digest that fits."""
    blank = re.sub(rb'"sha256":"[0-9a-f]{64}"', b'"sha256":"' + b"0" * 64 + b'"', content, count=1)
    return blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode(), 1)


def replace(path, content: bytes) -> None:
    path.unlink(missing_ok=True)  # some file systems write a file to disk before they truncate it
    path.write_bytes(content)


def damaged(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, kind = rng.randrange(len(data)), rng.randrange(7)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice((0, 255, 34, 44, 91, 123, rng.randrange(256)))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + rng.randrange(1, 20)]
        elif kind == 4:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 20)))
        elif kind == 5:
            data[0:8] = rng.choice((0, 1, rng.randrange(1 << 12), rng.randrange(1 << 63), 2**64 - 1)).to_bytes(8, "little")
        else:
            other = rng.randrange(len(data))
            data[at : at + 8] = data[other : other + 8]
        if len(data) < 2:
            break
    return bytes(data)


def test_most_damaged_files_are_refused(original, tmp_path):
    rng, path = random.Random(0), tmp_path / "net"
    for _ in range(8500):
        content = damaged(original, rng)
        if content == original:
            continue
        replace(path, content)
        with pytest.raises(ArtefactError) as caught:
            read(path, LIMIT)
        assert str(caught.value).startswith(f"{path}: ")


HOSTILE = (
    0,
    1,
    2,
    3,
    -1,
    255,
    2**31 - 1,
    2**31,
    2**48 - 1,
    2**63,
    10**30,
    0.5,
    1e300,
    True,
    None,
    "",
    "x",
    "__class__",
    [],
    {},
    [[]],
)


def rewritten(content: bytes, rng: random.Random) -> bytes:
    """One number, text or list of the header, or one byte of the data, is something else, and the digest fits again."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    inner = {key: json.loads(header["__metadata__"][key]) for key in ("tensors", "architecture")}
    for _ in range(rng.choice((1, 1, 1, 2))):
        if rng.random() < 0.25:
            data[rng.randrange(len(data))] = rng.randrange(256)
            continue
        place, spots = rng.choice((header, inner["tensors"], inner["architecture"], inner["architecture"])), []

        def look(node, spots=spots):
            for key in list(node if isinstance(node, dict) else range(len(node))):
                if key != "__metadata__":
                    spots.append((node, key))
                    if isinstance(node[key], dict | list):
                        look(node[key])

        look(place)
        node, key = rng.choice(spots)
        kind = rng.randrange(6)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node[key], int):
            node[key] += rng.choice((-1, 1, 4))
        elif kind == 2:
            other, name = rng.choice(spots)
            node[key] = json.loads(
                json.dumps(other[name] if name in other or (isinstance(other, list) and name < len(other)) else 0)
            )
        elif kind == 3 and isinstance(node, dict):
            node[rng.choice(("of", "stride", "padding", "size", "x", "..", "forward"))] = node[key]
        else:
            node[key] = rng.choice(HOSTILE)
    header["__metadata__"] |= {key: json.dumps(value, separators=(",", ":")) for key, value in inner.items()}
    text = json.dumps(header, separators=(",", ":")).encode()
    return sealed(len(text).to_bytes(8, "little") + text + bytes(data))


def test_rewritten_files_are_refused_or_mean_the_same_to_pytorch_and_the_runtime(original, tmp_path):
    pytest.importorskip("sparsenn._native", reason="the NumPy module is not built")
    rng, path, accepted = random.Random(1), tmp_path / "net", 0
    x = np.random.default_rng(0).standard_normal((2, 2, 6, 6)).astype(np.float32)
    for _ in range(1500):
        replace(path, rewritten(original, rng))
        try:
            found = runtime.load(path, max_bytes=LIMIT)(x)
        except ValueError:  # a sentence; anything but it and its ArtefactError fails the test
            continue
        accepted += 1
        with torch.no_grad():
            expected = sparsenn.load(path, max_bytes=LIMIT)(torch.from_numpy(x)).float().numpy()
        assert found.shape == expected.shape
        finite = np.isfinite(expected) & (np.abs(expected) < 1e30)
        scale = np.abs(expected[finite]).max(initial=0)
        assert np.allclose(found[finite], expected[finite], rtol=1e-4, atol=1e-5 * scale + 1e-30)
    assert 50 < accepted < 1250


def rebuilt(change) -> bytes:
    tensors = {"0.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}}
    metadata = {"format": "sparsenn 1", "sha256": "0" * 64, "tensors": "{}", "architecture": '[["linear","0"]]', "about": "{}"}
    header = {"__metadata__": metadata, **tensors}
    text = change(header)
    text = json.dumps(header, separators=(",", ":")).encode() if text is None else text
    return sealed(len(text).to_bytes(8, "little") + text + np.ones(2, "<f4").tobytes())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda h: h["0.weight"].update(shape=[2**40, 2**40]),
            "has a shape or offsets that are no list of a few sizes|does not fill",
        ),
        (lambda h: h["0.weight"].update(data_offsets=[0, 2**47]), "lies outside of the file"),
        (lambda h: h["0.weight"].update(data_offsets=[4, 8], shape=[1, 1]), "leave a hole at byte 0"),
        (lambda h: h.update(again=dict(h["0.weight"])), "overlap or leave a hole"),
        (lambda h: h["__metadata__"].update(tensors='{"0.weight":["gaps8",[1048576,1048576]]}'), "lacks its array"),
        (lambda h: h["__metadata__"].update(tensors='{"0.weight":["dense",[2,1]]}'), "has two shapes"),
        (lambda h: h["__metadata__"].update(architecture='[["batchnorm1d","0",{"eps":-1.0}]]'), "an option 'eps'"),
        (lambda h: h["__metadata__"].update(format="sparsenn 2"), "its format is 'sparsenn 2'"),
        (lambda h: h["__metadata__"].update(architecture='[["lstm","0"]]'), "unknown kind 'lstm'"),
        (lambda h: h["__metadata__"].update(architecture='[["linear","__class__"]]'), "'__class__' is no name"),
        (
            lambda h: h["__metadata__"].update(architecture='[["linear","0",{"of":[1]}]]'),
            "takes a result that is not there yet",
        ),
        (lambda h: h["__metadata__"].update(about='{"a":NaN}'), "its JSON holds NaN"),
        (lambda h: b'{"a":1,"a":2}', "names something twice"),
        (lambda h: b"[" * 100_000, "its header is no JSON"),
        (lambda h: b'{"__metadata__":{}, "x":' + b"1" * 5000 + b"}", "its header is no JSON|its format is None"),
        (lambda h: b"\xff\xfe{}", "its header is no JSON"),
    ],
)
def test_hostile_headers_are_refused_by_what_is_wrong(change, sentence, tmp_path):
    (tmp_path / "net").write_bytes(rebuilt(change))
    with pytest.raises(ArtefactError, match=sentence):
        read(tmp_path / "net")


@pytest.mark.parametrize("name", ["forward", "training", "parameters", "T_destination", "_ops", "state_dict"])
def test_names_that_modules_use_themselves_do_not_replace_them(name, tmp_path):
    def change(header):
        header[f"{name}.weight"] = header.pop("0.weight")
        header["__metadata__"]["architecture"] = json.dumps([["linear", name]])

    (tmp_path / "net").write_bytes(rebuilt(change))
    with pytest.raises(ArtefactError, match=f"'{name}' has the name of an attribute that every module has"):
        sparsenn.load(tmp_path / "net")


def test_a_few_bytes_do_not_make_gigabytes(tmp_path):
    def change(header):
        header["0.weight.values"] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
        header["0.weight.gaps"] = {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}
        del header["0.weight"]
        header["__metadata__"]["tensors"] = json.dumps({"0.weight": ["gaps8", [1 << 20, 1 << 20]]})

    (tmp_path / "net").write_bytes(rebuilt(change))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for load in (sparsenn.load, runtime.load):
        with pytest.raises(ArtefactError, match="its tensors take 4398046511104 bytes and more; max_bytes is 4294967296"):
            load(tmp_path / "net")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


def test_files_that_are_none(tmp_path):
    for content in (b"", b"1234567", bytes(8), (2**64 - 1).to_bytes(8, "little") + bytes(20), b"PK\x03\x04" + bytes(100)):
        (tmp_path / "net").write_bytes(content)
        with pytest.raises(ArtefactError):
            sparsenn.load(tmp_path / "net")
    with pytest.raises(ArtefactError, match="there is no such file"):
        sparsenn.load(tmp_path / "nothing")
    with pytest.raises(ArtefactError, match="it is not a regular file"):
        sparsenn.load(tmp_path)
    (tmp_path / "net").write_bytes(bytes(5000))
    with pytest.raises(ArtefactError, match="it has 5000 bytes; max_bytes is 4096"):
        sparsenn.load(tmp_path / "net", max_bytes=4096)


def test_every_type_has_its_numpy_type():
    assert all(dtype.byteorder in "<|=" for dtype in NUMPY.values())
