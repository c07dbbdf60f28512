"""The optimizers over ranks: DDP, FSDP2 and distributed checkpoints, in real gloo processes."""

from __future__ import annotations

import os
import socket
import traceback
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from sparsenn.optim import FactorizedAdam, FactorizedSGD, ProxSGD

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")

STEPS = 50


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def make(model: nn.Module, **options) -> FactorizedSGD:
    """The first layer by three factors a weight, the second by one root."""
    first, last = (list(layer.parameters()) for layer in (getattr(model, "module", model)[i] for i in (0, 2)))
    groups = [{"params": first}, {"params": last, "factor_init": "root", "balanced": True}]
    return FactorizedSGD(groups, 0.05, depth=3, lam=1e-3, momentum=0.9, **options)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps, rank: int = 0, world: int = 1) -> None:
    for step in steps:
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.zero_grad()
        part = x[rank::world]
        (model(part) - part[:, :1].sin()).square().mean().backward()
        optimizer.step()


def _process(rank: int, world: int, port: int, folder: str, work) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    try:
        work(rank, world, Path(folder))
        dist.barrier()  # no rank takes its threads down while another still sends
    except BaseException:
        (Path(folder) / f"error-{rank}").write_text(traceback.format_exc())
        raise
    finally:
        dist.destroy_process_group()


def run(world: int, folder: Path, work) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        mp.start_processes(_process, (world, port, str(folder), work), nprocs=world, start_method="spawn")
    except Exception as error:
        pytest.fail("\n".join(path.read_text() for path in folder.glob("error-*")) or str(error))


def _ddp(rank: int, world: int, folder: Path) -> None:
    torch.manual_seed(100 + rank)  # ranks that seed themselves differently, as for data augmentation
    model = nn.parallel.DistributedDataParallel(net())
    optimizer = make(model)
    train(model, optimizer, range(STEPS), rank, world)
    state = [[p.detach(), *optimizer.factors(p)] for p in model.parameters()]
    torch.save(state, folder / f"rank-{rank}.pt")


def test_ddp_ranks_hold_the_same_factors_and_weights(tmp_path):
    run(2, tmp_path, _ddp)
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2))
    moved = False
    for p, a, b in zip(net().parameters(), first, second, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        moved = moved or not torch.equal(p, a[0])
    assert moved


def _sharded(world: int) -> nn.Module:
    model = net()
    mesh = dist.device_mesh.init_device_mesh("cpu", (world,))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _fsdp(rank: int, world: int, folder: Path) -> None:
    model = _sharded(world)
    optimizer = make(model, generator=torch.Generator().manual_seed(5))
    train(model, optimizer, range(STEPS))
    state = []
    for p in model.parameters():
        assert isinstance(p, DTensor)
        for name, value in optimizer.state[p].items():
            if isinstance(value, torch.Tensor):
                assert isinstance(value, DTensor), name
                assert value.shape == p.shape, name
                assert value.placements == p.placements, name
        state.append([p.full_tensor().detach(), *(f.full_tensor() for f in optimizer.factors(p))])
    with pytest.raises(ValueError, match="sharded; balance is looked for in whole parameters"):
        make(model, balanced="auto")
    with pytest.raises(ValueError, match="parameter 0 is sharded; balance is"):
        optimizer.balance()
    if rank == 0:
        torch.save(state, folder / f"world-{world}.pt")


@pytest.mark.parametrize("world", [1, 2])
def test_fsdp_steps_on_local_shards_as_one_process_does(tmp_path, world):
    run(world, tmp_path, _fsdp)
    model = net()
    optimizer = make(model, generator=torch.Generator().manual_seed(5))
    train(model, optimizer, range(STEPS))
    for p, (weight, *factors) in zip(model.parameters(), torch.load(tmp_path / f"world-{world}.pt"), strict=True):
        torch.testing.assert_close(weight, p.detach(), rtol=1e-10, atol=1e-12)
        for ours, whole in zip(factors, optimizer.factors(p), strict=True):
            torch.testing.assert_close(ours, whole, rtol=1e-10, atol=1e-12)


# ProxSGD


def lams(shape: torch.Size) -> torch.Tensor:
    """One λ for each element, of which some are large enough to make zeros."""
    return torch.linspace(0.0, 0.3, shape.numel(), dtype=torch.float64).reshape(shape)


def make_proximal(model: nn.Module, kind: str = "number") -> ProxSGD:
    groups = []
    for p in model.parameters():
        lam: float | torch.Tensor = 0.05
        if kind == "whole":
            lam = lams(p.shape)
        elif kind == "row":
            lam = torch.linspace(0.0, 0.2, len(p), dtype=torch.float32).view(-1, *[1] * (p.dim() - 1))
        elif kind == "sharded" and isinstance(p, DTensor):
            lam = distribute_tensor(lams(p.shape), p.device_mesh, p.placements)
        elif kind == "sharded":
            lam = lams(p.shape)
        groups.append({"params": [p], "lam": lam})
    return ProxSGD(groups, 0.05, momentum=0.9, dampening=0.2)


def _proximal_ddp(rank: int, world: int, folder: Path) -> None:
    model = nn.parallel.DistributedDataParallel(net())
    optimizer = make_proximal(model)
    train(model, optimizer, range(STEPS), rank, world)
    state = [[p.detach(), optimizer.state[p]["momentum_buffer"]] for p in model.parameters()]
    torch.save((state, optimizer.sparsity()), folder / f"rank-{rank}.pt")


def test_ddp_ranks_hold_the_same_sparse_weights(tmp_path):
    run(2, tmp_path, _proximal_ddp)
    (first, sparsity), (second, other) = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2))
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert 0 < sparsity == other < 1


KINDS = ("number", "row", "whole", "sharded")


def _proximal_fsdp(rank: int, world: int, folder: Path) -> None:
    for kind in KINDS:
        model = _sharded(world)
        optimizer = make_proximal(model, kind)
        assert optimizer.sparsity() == 0.0
        train(model, optimizer, range(STEPS))
        state = []
        for p in model.parameters():
            buffer = optimizer.state[p]["momentum_buffer"]
            assert isinstance(p, DTensor)
            assert isinstance(buffer, DTensor)
            assert buffer.placements == p.placements
            state.append([p.full_tensor().detach(), buffer.full_tensor(), optimizer.zeros(p)])
        sparsity = optimizer.sparsity()
        if rank == 0:
            torch.save((state, sparsity), folder / f"{kind}.pt")
    weight = next(model.parameters())
    for wrong in (
        distribute_tensor(lams(weight.shape), weight.device_mesh, [Replicate()]),
        distribute_tensor(torch.ones(weight.shape[1]).double(), weight.device_mesh, weight.placements),
    ):
        with pytest.raises(ValueError, match="lam is a DTensor"):
            ProxSGD([weight], 0.1, lam=wrong)


@pytest.mark.parametrize("world", [1, 2])
def test_fsdp_shrinks_local_shards_as_one_process_does(tmp_path, world):
    run(world, tmp_path, _proximal_fsdp)
    for kind in KINDS:
        model = net()
        optimizer = make_proximal(model, kind)
        train(model, optimizer, range(STEPS))
        state, sparsity = torch.load(tmp_path / f"{kind}.pt")
        for p, (weight, buffer, zeros) in zip(model.parameters(), state, strict=True):
            torch.testing.assert_close(weight, p.detach(), rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(buffer, optimizer.state[p]["momentum_buffer"], rtol=1e-10, atol=1e-12)
            assert zeros == optimizer.zeros(p) == (p == 0).sum()
        assert 0 < sparsity == optimizer.sparsity() < 1


# checkpoints of all


def seeded(model: nn.Module, kind: str, seed: int) -> torch.optim.Optimizer:
    generator = torch.Generator().manual_seed(seed)
    if kind == "adam":
        return FactorizedAdam(model.parameters(), 0.05, depth=3, lam=1e-3, amsgrad=True, generator=generator)
    return make_proximal(model) if kind == "proximal" else make(model, generator=generator)


def _save(rank: int, world: int, folder: Path, kind: str) -> None:
    model = _sharded(world)
    optimizer = seeded(model, kind, 5)
    train(model, optimizer, range(10))
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder / "checkpoint")
    train(model, optimizer, range(10, 20))
    whole = [p.full_tensor().detach() for p in model.parameters()]
    if rank == 0:
        torch.save(whole, folder / "expected.pt")


def _restore(rank: int, world: int, folder: Path, kind: str) -> None:
    model = _sharded(world)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    optimizer = seeded(model, kind, 77)
    weights, state = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder / "checkpoint")
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    train(model, optimizer, range(10, 20))
    whole = [p.full_tensor().detach() for p in model.parameters()]
    if rank == 0:
        torch.save(whole, folder / f"restored-{world}.pt")


@pytest.mark.parametrize("kind", ["factorized", "proximal", "adam"])
def test_a_distributed_checkpoint_goes_on_under_another_sharding(tmp_path, kind):
    run(2, tmp_path, partial(_save, kind=kind))
    expected = torch.load(tmp_path / "expected.pt")
    model = net()
    train(model, seeded(model, kind, 5), range(20))
    for a, b in zip(expected, model.parameters(), strict=True):  # as one process does
        torch.testing.assert_close(a, b.detach(), rtol=1e-10, atol=1e-12)
    for world in (1, 2):
        run(world, tmp_path, partial(_restore, kind=kind))
        for a, b in zip(torch.load(tmp_path / f"restored-{world}.pt"), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
