"""What was traced beside the model itself, on an example."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sparsenn.artefact.network import Network
from sparsenn.artefact.trace import ArchitectureError, evaluating
from sparsenn.prune.compact import close
from sparsenn.runtime.architecture import Op

_SIDES = (*range(8, 65), *range(1, 8), 96, 112, 128, 160, 192, 224, 256, 299, 384, 512)


@torch.no_grad()
def results(model: nn.Module, ops: list[Op], example: Tensor) -> list[Tensor]:
    """The example and what each operation makes of it; the last is what the model gives.

    Raises:
        ArchitectureError: where the model gives something else.
    """
    of = f"an example of shape {tuple(example.shape)}"
    try:
        with evaluating(model):
            own = model(example.clone())
    except Exception as error:
        raise ArchitectureError(f"the model fails on {of}: {error}; example_input takes a batch that it takes") from error
    found = _network(model, ops).results(example)
    if not close(own, found[-1]):
        raise ArchitectureError(
            f"the calls that torch.fx traced give another output than the model for {of}; its forward does what a trace does "
            "not show, such as a choice by a type or a counter"
        )
    return found


@torch.no_grad()
def find_example(model: nn.Module, ops: list[Op]) -> Tensor | None:
    """A batch that the operations take: of vectors, sequences or square images; None where none of these fits."""
    tensors = model.state_dict()
    network = Network(ops, {name: tuple(tensor.shape) for name, tensor in tensors.items()}).eval()
    for sample in _samples(network):
        try:
            network(torch.empty(2, *sample, device="meta"))
            break
        except Exception:  # another shape
            continue
    else:
        return None
    like = next((t for t in tensors.values() if t.is_floating_point()), torch.empty(0))
    example = torch.randn(2, *sample, generator=torch.Generator().manual_seed(0)).to(like)
    try:
        _network(model, ops)(example)
    except RuntimeError:  # a type that PyTorch does not compute with on this device
        return None
    return example


def _samples(network: nn.Module) -> Iterator[tuple[int, ...]]:
    """Shapes of a sample, with as many channels as the first layer takes."""
    sizes = (
        getattr(m, name)
        for m in network.modules()
        for name in ("in_features", "in_channels", "num_features")
        if hasattr(m, name)
    )
    channels = next(sizes, 3)
    yield (channels,)
    for side in _SIDES:
        yield (channels, side)
        yield (channels, side, side)


def _network(model: nn.Module, ops: list[Op]) -> Network:
    tensors = model.state_dict()
    network = Network(ops, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    network.load_state_dict({name: tensors[name] for name in network.state_dict()}, strict=True, assign=True)
    return network.eval()
