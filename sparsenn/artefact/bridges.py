"""To other formats: ONNX, SciPy's and PyTorch's sparse matrices."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsenn._extras import require_extra
from sparsenn._files import write_atomic
from sparsenn.artefact.compare import results
from sparsenn.artefact.files import plain
from sparsenn.artefact.trace import ArchitectureError, is_layer, trace
from sparsenn.runtime.architecture import Op

_OPSET = 20


@torch.no_grad()
def to_onnx(model: nn.Module, path: str | Path, example_input: Tensor) -> Path:
    """Write a model as ONNX, for any batch: what :func:`sparsenn.save` stores, as operators of opset 20.

    Weights are dense there; compact the model first (:func:`sparsenn.prune.compact`) so that dead units do not travel. Factors
    and other parametrizations are multiplied out. The network computes in eval mode.

    Args:
        model: as for :func:`sparsenn.save`, in float32.
        path: the file.
        example_input: a batch, which gives the shapes; the batch may have any size afterwards.

    Returns:
        The path.

    Raises:
        MissingExtraError: if the package ``onnx`` is not installed; the message has the command.
        ValueError: for a layer that is unknown, a model that computes something else than its trace, or a tensor of another
            type than float32.

    Example:
        >>> import importlib.util, os, tempfile, torch, sparsenn
        >>> if importlib.util.find_spec("onnx"):
        ...     with tempfile.TemporaryDirectory() as folder:
        ...         _ = sparsenn.artefact.to_onnx(torch.nn.Linear(4, 2), os.path.join(folder, "net.onnx"), torch.ones(1, 4))
    """
    onnx = require_extra("onnx", "writing ONNX", "bridges")
    own = plain(model, "to_onnx")
    own = nn.Sequential(own) if is_layer(own) else own
    tensors = {name: t.detach().cpu() for name, t in own.state_dict().items() if not name.endswith("num_batches_tracked")}
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"to_onnx: {name} is {tensor.dtype}; it takes float32, as by model.float()")
    try:
        ops = trace(own)
        made = results(own, ops, example_input)
    except ArchitectureError as error:
        raise ArchitectureError(error.reason, "to_onnx", "torch.onnx.export is for other models") from error
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    extra: dict[str, Tensor] = {}
    shapes = [tuple(value.shape) for value in made]
    nodes = [node for op in ops for node in _nodes(op, tensors, extra, shapes, helper)]
    read = {name for node in nodes for name in node.input}
    stored = [numpy_helper.from_array(t.contiguous().numpy(), name) for name, t in {**tensors, **extra}.items() if name in read]
    given, last = (
        helper.make_tensor_value_info(f"v{at}", onnx.TensorProto.FLOAT, ["batch", *shapes[at][1:]]) for at in (0, len(ops))
    )
    graph = helper.make_graph(nodes, "sparsenn", [given], [last], stored)
    opset = [helper.make_opsetid("", _OPSET)]
    whole = helper.make_model(graph, opset_imports=opset, ir_version=9, producer_name="sparsenn")
    onnx.checker.check_model(whole)
    write_atomic(Path(path), whole.SerializeToString())
    return Path(path)


def to_scipy(model: nn.Module) -> dict[str, Any]:
    """The weights of linear layers and convolutions as SciPy's compressed rows; a kernel is flattened to its first dimension.

    Args:
        model: any module; factors and other parametrizations are multiplied out.

    Returns:
        For each weight of two or more dimensions its name and a ``scipy.sparse.csr_array`` in its own memory.

    Raises:
        MissingExtraError: if SciPy is not installed; the message has the command.
        ValueError: for half types, which SciPy does not take.

    Example:
        >>> import torch, sparsenn
        >>> layer = torch.nn.Linear(4, 2)
        >>> _ = torch.nn.init.zeros_(layer.weight[0])
        >>> sparsenn.artefact.to_scipy(layer)["weight"].nnz
        4
    """
    sparse = require_extra("scipy.sparse", "converting to SciPy", "bridges")
    found = {}
    for name, matrix in _matrices(model, "to_scipy").items():
        if matrix.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"to_scipy: {name} is {matrix.dtype}; it takes float32 or float64")
        found[name] = sparse.csr_array(matrix.numpy().copy())
    return found


def to_torch_sparse(model: nn.Module) -> dict[str, Tensor]:
    """The weights of linear layers and convolutions as ``torch.sparse_csr`` tensors; kernels are flattened to their rows.

    Args:
        model: any module; factors and other parametrizations are multiplied out.

    Returns:
        For each weight of two or more dimensions its name and a CSR tensor on its device.

    Example:
        >>> import torch, sparsenn
        >>> layer = torch.nn.Linear(4, 2)
        >>> w = sparsenn.artefact.to_torch_sparse(layer)["weight"]
        >>> w.layout, torch.equal(w.to_dense(), layer.weight)
        (torch.sparse_csr, True)
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
        return {name: matrix.to_sparse_csr() for name, matrix in _matrices(model, "to_torch_sparse", cpu=False).items()}


def _matrices(model: nn.Module, caller: str, cpu: bool = True) -> dict[str, Tensor]:
    own = {name: p.detach() for name, p in plain(model, caller).named_parameters() if p.dim() >= 2}
    return {name: (p.cpu() if cpu else p).flatten(1) for name, p in own.items()}


def _nodes(
    op: Op, tensors: dict[str, Tensor], extra: dict[str, Tensor], shapes: list[tuple[int, ...]], helper: Any
) -> list[Any]:
    inputs, output, options = [f"v{i}" for i in op.of], f"v{op.at}", op.options

    def node(name: str, more: list[str] | None = None, **attributes: Any) -> list[Any]:
        return [helper.make_node(name, [*inputs, *(more or [])], [output], **attributes)]

    parameters = [f"{op.module}.{part}" for part in ("weight", "bias") if f"{op.module}.{part}" in tensors]
    if op.kind == "linear" and len(shapes[op.of[0]]) > 2:  # Gemm takes matrices alone
        turned, product = f"{output}_turned", f"{output}_product"
        last = [product, parameters[1]] if len(parameters) > 1 else [product]
        return [
            helper.make_node("Transpose", parameters[:1], [turned], perm=[1, 0]),
            helper.make_node("MatMul", [*inputs, turned], [product]),
            helper.make_node("Add" if len(last) > 1 else "Identity", last, [output]),
        ]
    if op.kind == "linear":
        return node("Gemm", parameters, transB=1)
    if op.kind.startswith("conv"):
        sizes: dict[str, Any] = {"strides": options["stride"], "pads": options["padding"] * 2, "dilations": options["dilation"]}
        return node("Conv", parameters, group=options["groups"], **sizes)
    if op.kind.startswith("batchnorm"):
        mean, var = f"{op.module}.running_mean", f"{op.module}.running_var"
        if not parameters:
            parameters = [f"{op.module}.weight", f"{op.module}.bias"]
            extra |= {parameters[0]: torch.ones_like(tensors[mean]), parameters[1]: torch.zeros_like(tensors[mean])}
        return node("BatchNormalization", [*parameters, mean, var], epsilon=float(options["eps"]))
    if op.kind == "gate":
        rank, factors = len(shapes[op.of[0]]), f"{output}_factors"
        extra[factors] = tensors[f"{op.module}.lambda_out"].view(-1, *(1,) * (rank - 1 - options["dim"] % rank))
        return node("Mul", [factors])
    if op.kind.startswith("adaptive"):
        if any(size != 1 for size in options["size"]):
            raise ValueError(f"to_onnx: {op.title} pools to {options['size']}; ONNX has adaptive pooling to one number alone")
        return node("GlobalAveragePool" if "avg" in op.kind else "GlobalMaxPool")
    if "pool" in op.kind:
        return _pool(op, extra, shapes, helper)
    if op.kind == "gelu":
        return node("Gelu", approximate="tanh" if options["tanh"] else "none")
    if op.kind == "softmax":
        return node("Softmax", axis=options["dim"])
    if op.kind == "flatten":
        return node("Flatten", axis=1)
    simple = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid", "add": "Add", "identity": "Identity", "dropout": "Identity"}
    return node(simple[op.kind])


def _pool(op: Op, extra: dict[str, Tensor], shapes: list[tuple[int, ...]], helper: Any) -> list[Any]:
    """Windows by explicit pads: houses differ in what ceil_mode does beside a border.

    A border that an average counts is made of zeros first, where windows reach beyond it: what lies there counts for nobody.
    """
    kernel, stride, begin = (op.options[name] for name in ("kernel", "stride", "padding"))
    end = list(begin)
    if op.options["ceil"]:
        sides = zip(shapes[op.of[0]][2:], shapes[op.at][2:], kernel, stride, begin, strict=True)
        end = [max(0, (count - 1) * step + window - size - pad) for size, count, window, step, pad in sides]
    counted = bool(op.options.get("include_pad", False))
    source, output, nodes = f"v{op.of[0]}", f"v{op.at}", []
    if counted and any(e > b for b, e in zip(begin, end, strict=True)):
        last = [min(pair) for pair in zip(begin, end, strict=True)]
        extra[f"{output}_pads"] = torch.tensor([0, 0, *begin, 0, 0, *last])
        nodes.append(helper.make_node("Pad", [source, f"{output}_pads"], [f"{output}_padded"]))
        source, counted = f"{output}_padded", False
        begin, end = [0] * len(begin), [e - own for e, own in zip(end, last, strict=True)]
    how = {"count_include_pad": int(counted)} if "avg" in op.kind else {}
    name = "AveragePool" if how else "MaxPool"
    return [*nodes, helper.make_node(name, [source], [output], kernel_shape=kernel, strides=stride, pads=[*begin, *end], **how)]
