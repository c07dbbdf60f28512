"""Masks over ranks: DDP and FSDP2 in real gloo processes."""

from __future__ import annotations

import os
import socket
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional

from sparsenn import prune

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")

WORLD = 2


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()


def images(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return x, x.argmax(1) % 3


def _process(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    try:
        _work(rank, Path(folder))
    except BaseException:
        (Path(folder) / f"error-{rank}").write_text(traceback.format_exc())
        raise
    finally:
        dist.destroy_process_group()


def _work(rank: int, folder: Path) -> None:
    torch.manual_seed(100 + rank)  # ranks that seed themselves differently
    drawn = net()
    torch.manual_seed(100 + rank)
    prune.random(drawn, compression=2, budget="global")

    model = net().eval()
    x, y = images(0)
    prune.snip(model, compression=2, batch=(x[rank::WORLD], y[rank::WORLD]), loss_fn=functional.cross_entropy)
    by_snip = prune.masks(model)
    snipped = {name: mask.clone() for name, mask in by_snip.items()}

    model.train()
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for step in range(1, 11):
        x, y = images(step)
        optimizer.zero_grad()
        functional.cross_entropy(parallel(x[rank::WORLD]), y[rank::WORLD]).backward()
        optimizer.step()
    after = {name: mask.clone() for name, mask in prune.masks(model).items()}
    state = {name: p.detach() for name, p in prune.remove(model).named_parameters()}
    torch.save({"random": prune.masks(drawn), "snip": snipped, "after": after, "weights": state}, folder / f"rank-{rank}.pt")

    mesh = dist.device_mesh.init_device_mesh("cpu", (WORLD,))
    model, whole = net()[:1], net()[:1]
    for chosen in (model, whole):
        prune.magnitude(chosen, compression=2)
    fully_shard(model[0], mesh=mesh)
    for chosen in (model, whole):
        optimizer = torch.optim.SGD(chosen.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
        for step in range(3):
            optimizer.zero_grad()
            chosen(images(step)[0]).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(model(images(9)[0]), whole(images(9)[0]), rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match=r"remove: '0\.weight' is sharded; load the full state_dict into a whole model"):
        prune.remove(model)
    with pytest.raises(ValueError, match=r"'0\.weight' is sharded; prune the whole model, then shard it"):
        prune.magnitude(model, compression=3)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_ranks_have_the_same_masks_and_train_the_same_weights_under_them_also_in_shards(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        mp.start_processes(_process, (port, str(tmp_path)), nprocs=WORLD, start_method="spawn")
    except Exception:
        pytest.fail("\n".join(path.read_text() for path in tmp_path.glob("error-*")))
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(WORLD))
    assert all(same(first[kind], second[kind]) for kind in first)

    alone = net()  # rank 0's draw is what both have
    torch.manual_seed(100)
    prune.random(alone, compression=2, budget="global")
    assert same(first["random"], prune.masks(alone))

    whole = net().eval()  # SNIP sees the batch of all ranks
    prune.snip(whole, compression=2, batch=images(0), loss_fn=functional.cross_entropy)
    assert same(first["snip"], prune.masks(whole))
    assert same(first["snip"], first["after"])
    for name, mask in first["after"].items():
        assert not first["weights"][name][~mask].any()
        assert (first["weights"][name][mask] != dict(net().named_parameters())[name][mask]).all()
