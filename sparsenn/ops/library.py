"""Registers the operators: the schema, the reference for every device, and over it the compiled kernels where they load."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves

from sparsenn import _extension
from sparsenn.ops import reference
from sparsenn.ops.schema import FINGERPRINT, NAMESPACE, SCHEMAS


def _register() -> None:
    for name, schema in SCHEMAS.items():
        qualified = f"{NAMESPACE}::{name}"
        torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(qualified, "CompositeExplicitAutograd", getattr(reference, name))
        if schema.endswith("-> ()"):  # only writes into what it is given: nothing is left to say of shapes
            torch.library.register_fake(qualified, lambda *args: None)
    _extension.load_kernels(FINGERPRINT)
    if torch.version.cuda is not None and not _extension.loaded("cuda"):
        for name in SCHEMAS:
            torch.library.impl(f"{NAMESPACE}::{name}", "CUDA", _with_warning(getattr(reference, name)))


def _with_warning(definition: Callable[..., Any]) -> Callable[..., Any]:
    """The reference on CUDA tensors, which a user would take for kernels."""

    @functools.wraps(definition)
    def run(*args: Any, **kwargs: Any) -> Any:
        _extension.warn_once("cuda")
        return definition(*args, **kwargs)

    return run


_register()


class _ReferenceMode(TorchDispatchMode):
    """Sends every sparsenn operator to its reference; below autograd, so the registered gradients stay the ones tested."""

    supports_higher_order_operators = True  # compiled code calls some; they pass

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == NAMESPACE and detect_fake_mode(args) is None:
            func = getattr(reference, func._schema.name.split("::")[1])
        return func(*args, **(kwargs or {}))


class _KernelMode(TorchDispatchMode):
    """Refuses sparsenn's operators on CUDA tensors where their kernels are not loaded."""

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == NAMESPACE and any(isinstance(t, Tensor) and t.is_cuda for t in tree_leaves((args, kwargs))):
            _extension.require_kernels("cuda")
        return func(*args, **(kwargs or {}))


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Choose what runs the operators inside a ``with`` block.

    By default the dispatcher runs the compiled kernels where they load and the reference elsewhere.

    Args:
        name: ``"reference"`` for the plain PyTorch definitions (eager code only: it does not act inside compiled graphs), or
            ``"compiled"`` to be sure that the kernels run.

    Raises:
        ValueError: for any other name.
        RuntimeError: for ``"compiled"`` where the library of CPU kernels did not load, and inside the block where an operator
            meets CUDA tensors and that for CUDA did not; the message says why and how to mend it.

    Example:
        >>> import torch, sparsenn
        >>> factors = [torch.tensor([2.0, 3.0]), torch.tensor([4.0, 5.0])]
        >>> with sparsenn.ops.backend("reference"):
        ...     sparsenn.ops.hadamard_product(factors)
        tensor([ 8., 15.])
    """
    if name == "reference":
        with _ReferenceMode():
            yield
    elif name == "compiled":
        _extension.require_kernels("cpu")
        if any(isinstance(mode, _ReferenceMode) for mode in _get_current_dispatch_mode_stack()):
            raise RuntimeError("backend: 'compiled' can't run inside a block of 'reference'")
        without_cuda = torch.version.cuda is not None and not _extension.loaded("cuda")
        with _KernelMode() if without_cuda else nullcontext():
            yield
    else:
        raise ValueError(f"backend: unknown name {name!r}; it takes 'reference' or 'compiled'")
