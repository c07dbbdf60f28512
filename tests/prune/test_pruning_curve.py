"""The curve of a trained net that loses its smallest weights."""

import copy

import pytest
import torch
from torch import nn

import sparsenn
from sparsenn import prune


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)).double().eval()


X = torch.randn(40, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
def response(model: nn.Module) -> float:
    """A number that every parameter changes."""
    direct = sum(float((p.flatten() * torch.arange(1, p.numel() + 1)).sum()) for p in model.parameters())
    return float(model(X).square().mean()) + direct


def brute_force(model: nn.Module, keep: int) -> float:
    """The metric with the `keep` largest parameters of all, found by sorting, the first of equal ones."""
    pruned = copy.deepcopy(model)
    entries = [(-abs(v), i, j) for i, p in enumerate(pruned.parameters()) for j, v in enumerate(p.detach().flatten().tolist())]
    chosen = {(i, j) for _, i, j in sorted(entries)[:keep]}
    with torch.no_grad():
        for i, p in enumerate(pruned.parameters()):
            p.mul_(torch.tensor([float((i, j) in chosen) for j in range(p.numel())]).view(p.shape))
    return response(pruned)


def test_the_largest_parameters_of_all_layers_together_stay():
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    total = sum(p.numel() for p in model.parameters())
    expected = [(total / keep, brute_force(model, keep)) for keep in (total >> k for k in range(1, 6))]
    assert sum(prune.pruning_curve(model, response), ()) == pytest.approx(sum(expected, ()), rel=1e-12)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    ratios = [c for c, _ in prune.pruning_curve(model, response, compressions=[5, 1.7])]
    assert ratios == [total / (total // 5), total / int(total / 1.7)]


def test_points_that_the_zeros_surpass_or_the_protected_forbid_are_left_out():
    model = net()
    with torch.no_grad():
        model[0].weight.zero_()
    alive = sum(int(p.count_nonzero()) for p in model.parameters())
    curve = prune.pruning_curve(model, response)
    assert curve
    assert all(57 / ratio <= alive for ratio, _ in curve)
    free = 5 + 2 + 10  # biases and normalization
    protected = prune.pruning_curve(net(), response, compressions=[1, 3, 57 / 17, 4], exclude=("bias", "norm"))
    assert [57 / ratio for ratio, _ in protected] == pytest.approx([57, 19, free])


def test_masks_count_as_zeros_and_stay_on_the_model():
    model = net()
    prune.magnitude(model, compression=2)
    masks = {name: mask.clone() for name, mask in prune.masks(model).items()}
    plain = prune.remove(copy.deepcopy(model))
    assert prune.pruning_curve(model, response) == prune.pruning_curve(plain, response)
    assert all(torch.equal(mask, masks[name]) for name, mask in prune.masks(model).items())


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(ValueError, match=r"compressions holds 0\.5; it takes numbers >= 1"):
        prune.pruning_curve(net(), response, compressions=[0.5])
    with pytest.raises(ValueError, match=r"'0\.weight' is a product of factors; collapse the model first"):
        prune.pruning_curve(sparsenn.factorize(net(), 2), response)
