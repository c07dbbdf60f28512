"""The norm of a ridge net as a penalty: entry by entry, and over the rescalings of its neurons."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import sparsenn
from sparsenn.nn import RidgeBlock, RidgeNet
from sparsenn.penalties import rbv2, rbv2_path, weight_decay


def net() -> RidgeNet:
    torch.manual_seed(0)
    return RidgeNet(3, 2, width=5, functional_width=4, dtype=torch.float64)


def by_hand(module: RidgeNet) -> float:
    total = 0.0
    for block in module:
        v, w, c = (m.weight.tolist() for m in (block.outer, block.inner, block.skip))
        total += sum(sum(abs(row[k]) for row in v) ** 2 for k in range(len(w)))
        total += sum(x * x for row in w for x in row) + sum(abs(x) for row in c for x in row)
    return total


@pytest.mark.parametrize("penalty", [rbv2, rbv2_path, weight_decay])
def test_gradients(penalty):
    module = net()
    names = [name for name, _ in module.named_parameters()]

    def value(*parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(
            Whole(penalty, module), dict(zip([f"module.{n}" for n in names], parameters, strict=True))
        )

    assert torch.autograd.gradcheck(value, tuple(module.parameters()))
    assert torch.autograd.gradgradcheck(value, tuple(module.parameters()))


class Whole(nn.Module):
    """A penalty as a module's forward."""

    def __init__(self, penalty, module: nn.Module) -> None:
        super().__init__()
        self.penalty, self.module = penalty, module

    def forward(self) -> torch.Tensor:
        return self.penalty(self.module)


def test_value_is_the_sum_of_the_equation():
    module = net()
    assert rbv2(module).item() == pytest.approx(by_hand(module), rel=1e-14)
    everything = math.fsum(x * x for p in module.parameters() for x in p.flatten().tolist())
    assert weight_decay(module).item() == pytest.approx(everything, rel=1e-14)


def test_path_form_is_the_least_over_all_rescalings():
    module = net()
    least = rbv2_path(module).item()
    generator = torch.Generator().manual_seed(1)
    for spread in (0.01, 1.0, 3.0):
        for _ in range(20):
            with torch.no_grad():
                for block in module:
                    a = torch.exp(spread * torch.randn(5, generator=generator, dtype=torch.float64))
                    block.outer.weight.mul_(a)
                    block.inner.weight.div_(a[:, None])
                    block.inner.bias.div_(a)
            assert rbv2_path(module).item() == pytest.approx(least, rel=1e-10)
            assert rbv2(module).item() >= least * (1 - 1e-12)
    module.balance_()
    assert rbv2(module).item() == pytest.approx(least, rel=1e-10)


def test_zeros_and_half_types():
    block = RidgeBlock(3, 4, 2)
    with torch.no_grad():
        for p in block.parameters():
            p.zero_()
    for penalty in (rbv2, rbv2_path):
        value = penalty(block)
        assert value == 0
        for p, grad in zip(
            block.parameters(), torch.autograd.grad(value, list(block.parameters()), allow_unused=True), strict=True
        ):
            assert grad is None or (grad == 0).all(), p.shape
    for dtype in (torch.bfloat16, torch.float16):
        small = net().to(dtype)
        assert rbv2(small).dtype == torch.float32
        assert rbv2(small).item() == pytest.approx(by_hand(small), rel=1e-5)


def test_blocks_count_once_wherever_they_are():
    block = RidgeBlock(3, 4, 3)
    shared = nn.Sequential(nn.Linear(3, 3), block, nn.ReLU(), block)
    assert torch.equal(rbv2(shared), rbv2(block))
    assert torch.equal(rbv2(RidgeBlock(3, 0, 2, skip=False)), torch.tensor(0.0))


def test_errors():
    for name, penalty in (("rbv2", rbv2), ("rbv2_path", rbv2_path)):
        with pytest.raises(ValueError, match=rf"{name}: Linear has no sparsenn.nn.RidgeBlock"):
            penalty(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="GELU is not positively homogeneous"):
        rbv2_path(sparsenn.nn.RidgeNet(2, 1, width=3, activation=nn.GELU))
