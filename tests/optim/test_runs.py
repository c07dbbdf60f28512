"""Proximal's pass over all parameters: what it does to each is the definition's, however it is cut and joined."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparsenn.optim import Proximal, runs
from sparsenn.penalties import L0, L0_5, L1, L2_3, MCP, SCAD, ElasticNet

PENALTIES = [L1(0.2), L1(torch.tensor(0.2)), ElasticNet(0.2), MCP(0.2), SCAD(0.2), L0(0.1), L0_5(0.05), L2_3(0.1)]


def parameters() -> list[nn.Parameter]:
    """Small ones, one of several runs, other orders in memory, no elements, no dimensions, other dtypes."""
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(shape, generator=generator) for shape in ((5,), (3, 4), (), (0, 2), (7, 1), (2, runs._CPU_RUN))]
    tensors.append(torch.randn(4, 3, 2, 5, generator=generator).contiguous(memory_format=torch.channels_last))
    tensors.append(torch.randn(6, 4, generator=generator).T)
    tensors.append(torch.randn(9, 4, generator=generator)[:, ::2])
    tensors += [torch.randn(6, generator=generator).to(dtype) for dtype in (torch.float64, torch.bfloat16)]
    return [nn.Parameter(t) for t in tensors]


def give_gradients(params, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for decade, p in enumerate(params):
        p.grad = (10.0 ** -(decade % 4) * torch.randn(p.shape, generator=generator)).to(p)


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
@pytest.mark.parametrize("late", [False, True], ids=["together", "one_starts_late"])
def test_every_parameter_gets_the_proximal_map_in_its_own_metric(penalty, late):
    mine, theirs = parameters(), parameters()
    optimizer = Proximal(torch.optim.Adam(mine, 0.02, eps=1e-6), penalty)
    base = torch.optim.Adam(theirs, 0.02, eps=1e-6)
    for step in range(3):
        give_gradients(mine, step)
        give_gradients(theirs, step)
        if late and step == 0:
            mine[1].grad = theirs[1].grad = None
        optimizer.step()
        base.step()
        with torch.no_grad():
            for p in theirs:
                if p.grad is not None:
                    corrected = base.state[p]["exp_avg_sq"] / (1 - 0.999 ** float(base.state[p]["step"]))
                    p.copy_(penalty.prox(p, 0.02 / (corrected.sqrt() + 1e-6)))
        for p, q in zip(mine, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=2e-2 if p.dtype == torch.bfloat16 else 1e-5, atol=1e-6)
            q.data.copy_(p.detach())  # at a jump a last bit is much
    assert any((p == 0).any() for p in mine)


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._schema.name not in ("aten::view", "aten::split", "aten::detach", "aten::_local_scalar_dense", "aten::alias"):
            self.count += 1
            if isinstance(out, torch.Tensor) and not any(out is x for x in args):
                self.largest = max(self.largest, out.numel())
        return out


def shrinking(sizes: list[int], penalty) -> Calls:
    params = [nn.Parameter(torch.ones(n)) for n in sizes]
    optimizer = Proximal(torch.optim.Adam(params, 0.1, fused=True), penalty)
    give_gradients(params, 0)
    optimizer.step()
    with Calls() as calls:
        optimizer.step()
    return calls


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
def test_many_small_parameters_are_worked_on_together(penalty):
    few, many = (shrinking([4] * n, penalty).count for n in (2, 60))
    assert many <= few + 2


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
def test_no_intermediate_result_is_larger_than_a_run(penalty):
    assert shrinking([5 * runs._CPU_RUN + 3], penalty).largest <= runs._CPU_RUN


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.RMSprop])
def test_a_step_size_of_the_user_may_be_a_number_a_tensor_or_a_row(base):
    for size in (0.3, torch.rand(40, 3), torch.rand(3)):
        w = nn.Parameter(torch.linspace(-1, 1, 120).view(40, 3))
        optimizer = Proximal(base([w], 0.0), L1(0.5), step_size=lambda group, state, p, size=size: size)
        expected = L1(0.5).prox(w.detach(), size)
        w.grad = torch.zeros_like(w)
        optimizer.step()
        assert torch.equal(w.detach(), expected)
    optimizer = Proximal(base([w], 0.0), L1(0.5), step_size=lambda group, state, p: torch.ones(4))
    with pytest.raises(
        ValueError, match=r"step_size gives a tensor of shape \(4,\).*broadcasts to the parameter, of shape \(40, 3\)"
    ):
        optimizer.step()
