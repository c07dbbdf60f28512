"""Saving and loading."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsenn import __version__
from sparsenn.artefact.compare import find_example, results
from sparsenn.artefact.network import Network
from sparsenn.artefact.trace import ArchitectureError, is_layer, trace
from sparsenn.nn.convert import collapse
from sparsenn.nn.indexed import IndexedLayer
from sparsenn.nn.parametrizations import own_class
from sparsenn.nn.selection import check_module
from sparsenn.runtime.architecture import Op
from sparsenn.runtime.container import MAX_BYTES, Contents, read, write
from sparsenn.runtime.errors import ArtefactError
from sparsenn.runtime.graph import check_names
from sparsenn.runtime.storage import NUMPY, Array, Stored, shrink

ModuleT = TypeVar("ModuleT", bound=nn.Module)
_VALUES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_CURE = "save(model, path, architecture=False) stores the tensors of any model, and load(path, into=model) reads them back"
_TORCH = {name: dtype for dtype, name in _DTYPES.items()}


def save(
    model: nn.Module,
    path: str | Path,
    *,
    values: str | None = None,
    architecture: bool = True,
    example_input: Tensor | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    r"""Write a model as a sparse artefact: one safetensors file, each tensor in the form that takes the fewest bytes.

    .. math:: \mathrm{bytes} = \min\big(4 n,\; 5 k + \lfloor g / 255 \rfloor,\; 6 k + 4 r,\; 8 k + 4 r,\; 4 k + n / 8\big)

    for n entries in float32, of which k are not 0, in r rows: dense; the gaps between non-zeros, one byte each and one more for
    every 255 skipped (the sum g of the quotients); compressed rows with 16- and with 32-bit columns; a bit for each entry. An
    entry is left out where it equals 0: what comes back is equal, and the same to the bit but for −0.0, which may become 0.0.

    Factors, spectra and other parametrizations are multiplied out first, in a copy; indexed layers become plain ones. A
    ``SpectralGate`` stays one: there may be no layer before it to take its eigenvalues. The file holds the operations of
    ``model(x)`` too, for :func:`load` and for ``sparsenn.runtime``, and a digest of all of it. It is whole or not there. The
    operations are those that ``torch.fx`` traces; before they are stored, they are compared with the model on an example, since
    a trace does not show all that a forward may do.

    Args:
        model: any module whose forward ``torch.fx`` can trace and whose calls are among linear and convolutional layers, batch
            normalization, gates, ReLU, tanh, sigmoid, GELU, softmax, pooling, flatten, sums and dropout. It stays as it is. A
            lone layer is stored as the only module of a ``Sequential``.
        path: the file.
        values: ``"float32"``, ``"float16"`` or ``"bfloat16"`` for the stored entries of floating tensors with two or more
            dimensions, rounded to nearest even; they come back in their own type. None keeps every bit.
        architecture: False stores the tensors of any model and no operations.
        example_input: a batch to compare on. None takes random numbers in the shape that the layers say: of vectors, or of
            sequences or square images with sides up to 64 and some larger ones. Where no such batch fits, nothing is compared.
        about: notes, ready for JSON.

    Returns:
        The path.

    Raises:
        TypeError: for anything else than a module.
        ValueError: for a model with a layer that is unknown, with forward hooks, or with tensors that its forward does not use
            (they are named), for one that reads a tensor after an operation in place has changed it or that computes something
            else than its trace, for unknown ``values``, for values beyond the range of a half type, and for types that are not
            stored, such as complex ones.
        ArtefactError: if the file cannot be written.

    Example:
        >>> import os, tempfile, torch, sparsenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(784, 300), torch.nn.ReLU(), torch.nn.Linear(300, 10))
        >>> _ = torch.nn.init.sparse_(net[0].weight, sparsity=0.99)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = sparsenn.save(net, os.path.join(folder, "net.safetensors"))
        ...     again = sparsenn.load(path)
        >>> all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values()))
        True
    """
    if values is not None and values not in _VALUES:
        raise ValueError(f"save: values is {values!r}; it takes None or one of {', '.join(_VALUES)}")
    own = plain(model, "save")
    if architecture and is_layer(own):
        own = nn.Sequential(own)
    tensors = {name: _entries(name, tensor, values) for name, tensor in own.state_dict().items()}
    ops = None
    if architecture:
        try:
            ops = _operations(own, example_input)
        except ArchitectureError as error:
            raise ArchitectureError(error.reason, "save", _CURE) from error
    return write(path, tensors, ops, {"sparsenn": __version__, **(about or {})})


def _operations(model: nn.Module, example: Tensor | None) -> list[Op]:
    ops = trace(model)
    try:
        check_names(ops, model.state_dict())
    except ArtefactError as error:
        raise ArchitectureError(f"{error}: the forward does not use them; remove them") from error
    if example is None:
        example = find_example(model, ops)
    if example is not None:
        results(model, ops, example)
    return ops


@overload
def load(path: str | Path, *, max_bytes: int = MAX_BYTES) -> Network: ...
@overload
def load(path: str | Path, *, into: ModuleT, max_bytes: int = MAX_BYTES) -> ModuleT: ...
def load(path: str | Path, *, into: nn.Module | None = None, max_bytes: int = MAX_BYTES) -> nn.Module:
    """Read a sparse artefact back: equal tensors, as a module in eval mode, or into a model that is there.

    Loading is strict. The header is checked against the file's size before anything is allocated, the digest and every index
    before anything is used, and every tensor must have its place.

    Args:
        path: the file.
        into: a model with plain parameters to load into; it keeps its class, its mode and its devices. Names and shapes must be
            those of the file. Without it the operations in the file make a :class:`sparsenn.artefact.Network`.
        max_bytes: refuse a file, or tensors, that take more: 4 GiB by default.

    Returns:
        The module.

    Raises:
        ArtefactError: for a file that is missing, cut off, damaged, too large, or no artefact, and where names or shapes
            differ. ``into`` is unchanged then.
        ValueError: for a model on the meta device.

    Example:
        >>> import os, tempfile, torch, sparsenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = sparsenn.save(net, os.path.join(folder, "net.safetensors"))
        ...     again = sparsenn.load(path)
        >>> x = torch.ones(3, 4)
        >>> torch.equal(again(x), net(x))
        True
    """
    contents = read(path, max_bytes)
    if into is not None:
        return _load_into(into, contents)
    if contents.architecture is None:
        raise ArtefactError(f"{path}: it holds tensors and no architecture; load(path, into=model) reads them into a model")
    try:
        network = Network(contents.architecture, {name: tensor.shape for name, tensor in contents.tensors.items()})
        _check_places(network, contents.tensors)
        tensors = {name: _tensor(stored) for name, stored in contents.tensors.items()}
        network.load_state_dict(tensors, strict=True, assign=True)
    except (ArtefactError, RuntimeError, ValueError, OverflowError) as error:
        raise ArtefactError(f"{path}: {error}") from error
    return network.eval()


def _load_into(model: nn.Module, contents: Contents) -> nn.Module:
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise ValueError(
            "load: into has tensors on the meta device, which hold no values; into.to_empty(device=...) makes room"
        )
    try:
        _check_places(model, contents.tensors)
    except ArtefactError as error:
        raise ArtefactError(f"{contents.path}: {error}") from error
    model.load_state_dict({name: _tensor(stored) for name, stored in contents.tensors.items()}, strict=True)
    return model


def _check_places(model: nn.Module, tensors: Mapping[str, Stored]) -> None:
    places = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing, surplus = sorted(places.keys() - tensors.keys()), sorted(tensors.keys() - places.keys())
    if missing or surplus:
        raise ArtefactError(f"the file lacks {missing[:5]} of the model and has {surplus[:5]} that the model lacks")
    for name, tensor in tensors.items():
        if places[name] != tensor.shape:
            raise ArtefactError(f"the tensor {name!r} has shape {list(tensor.shape)}; the model has {list(places[name])}")


def plain(model: nn.Module, caller: str) -> nn.Module:
    """The model, or a copy without factors, spectra, indices and parametrizations."""
    check_module(caller, model)
    ours = any(type(m).__module__.startswith("sparsenn.nn.") or parametrize.is_parametrized(m) for m in model.modules())
    if not ours:
        return model
    own = collapse(copy.deepcopy(model), 0.0)
    for module in list(own.modules()):
        if isinstance(module, IndexedLayer):
            module.become_plain()
        if parametrize.is_parametrized(module):
            own_class(module)
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name)
    return own


def _entries(name: str, tensor: Tensor, values: str | None) -> tuple[Array, tuple[int, ...], str]:
    if tensor.is_meta:
        raise ValueError(f"save: {name} is on the meta device and has no values")
    if tensor.dtype not in _DTYPES or tensor.layout != torch.strided:
        raise ValueError(
            f"save: {name} is {tensor.dtype}, {tensor.layout}; it takes dense tensors of {', '.join(_DTYPES.values())}"
        )
    dtype = _DTYPES[tensor.dtype]
    own = tensor.detach().cpu().contiguous()
    bits = own.view(torch.int16).numpy().view(np.uint16) if dtype == "BF16" else own.numpy()
    array = Array(dtype, bits.astype(NUMPY[dtype], copy=False).reshape(-1))
    narrow = values is not None and tensor.is_floating_point() and tensor.dim() >= 2
    stored = _VALUES[values] if narrow and values is not None else dtype
    if stored != dtype:
        shrink(array, stored, name)
    return array, tuple(tensor.shape), stored


def _tensor(stored: Stored) -> Tensor:
    dense = stored.dense()
    if stored.dtype == "BF16":
        return torch.from_numpy(dense.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(dense)
