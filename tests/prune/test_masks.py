"""Masks hold through optimizers, checkpoints and compilation, and come off."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

import sparsenn
from sparsenn import prune
from sparsenn.metrics import sparsity
from sparsenn.optim import FactorizedSGD, Proximal, ProxSGD
from sparsenn.penalties import GroupL1


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))


def some_masks(model: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {name: torch.rand(p.shape, generator=generator) < 0.4 for name, p in model.named_parameters()}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step), dtype=next(model.parameters()).dtype)
        optimizer.zero_grad()
        (model(x) - x[:, :3].sin()).square().mean().backward()
        optimizer.step()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a copy of the model holds once its masks are off."""
    return dict(prune.remove(copy.deepcopy(model)).named_parameters())


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.3, amsgrad=True),
    "factorized": lambda p: FactorizedSGD(p, 0.1, depth=2, lam=1e-3, momentum=0.9),
    "prox": lambda p: ProxSGD(p, 0.1, lam=1e-3, momentum=0.9),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_mask_holds_through_momentum_and_decay_that_were_there_before_it(make, dtype):
    model = net().to(dtype)
    optimizer = make(model.parameters())
    train(model, optimizer, 5)  # every momentum is in motion
    masks = some_masks(model)
    prune.apply_masks(model, masks)
    if isinstance(optimizer, FactorizedSGD):  # the masks zeroed products of its factors
        optimizer.resync()
    before = weights(model)
    train(model, optimizer, 5, start=5)
    after = weights(model)
    for name, mask in masks.items():
        assert torch.equal(after[name][~mask], torch.zeros_like(after[name][~mask])), name
        assert not after[name][~mask].signbit().any()
    moved = [not torch.equal(before[name][mask], after[name][mask]) for name, mask in masks.items()]
    assert all(moved)


def test_training_under_a_mask_is_training_with_projected_steps():
    model, masks = net().double(), some_masks(net())
    twin = copy.deepcopy(model)
    prune.apply_masks(model, masks)
    with torch.no_grad():
        for name, p in twin.named_parameters():
            p.mul_(masks[name])
    named = dict(twin.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    plain = torch.optim.SGD(twin.parameters(), 0.1, momentum=0.9)
    for step in range(10):
        train(model, optimizer, 1, start=step)
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        plain.zero_grad()
        (twin(x) - x[:, :3].sin()).square().mean().backward()
        for name, p in named.items():
            p.grad.mul_(masks[name])
        plain.step()
    for name, p in weights(model).items():
        torch.testing.assert_close(p, named[name], rtol=1e-12, atol=1e-14)


def test_hidden_numbers_reach_neither_the_output_nor_the_weight_that_comes_back():
    model = prune.apply_masks(nn.Linear(3, 2), {"weight": torch.tensor([[True, False, True], [False, True, True]])})
    x, before = torch.randn(4, 3), weights(model)["weight"].clone()
    out = model(x)
    with torch.no_grad():
        model.parametrizations.weight.original[0, 1] = float("nan")
    assert torch.equal(model(x), out)
    assert torch.equal(prune.remove(model).weight, before)


def test_a_masked_entry_has_the_gradient_zero_and_the_others_their_own():
    model = nn.Linear(3, 2)
    x, mask = torch.randn(4, 3), torch.tensor([[True, False, True], [False, True, True]])
    weight = model.weight.detach().clone().mul_(mask).requires_grad_()
    (x @ weight.t() + model.bias).square().sum().backward()
    prune.apply_masks(model, {"weight": mask})
    model(x).square().sum().backward()
    torch.testing.assert_close(model.parametrizations.weight.original.grad, weight.grad * mask)


def test_names_order_and_parameter_objects_come_back():
    model = net()
    before = dict(model.named_parameters())
    prune.apply_masks(model, some_masks(model))
    assert isinstance(model[0], nn.Linear)
    assert {id(p) for p in model.parameters()} == {id(p) for p in before.values()}
    prune.apply_masks(model, {"0.weight": torch.ones(5, 6, dtype=torch.bool)})
    prune.remove(model)
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert type(model[0]) is nn.Linear
    assert list(model.state_dict()) == list(net().state_dict())
    prune.apply_masks(model, {"0.weight": torch.ones(5, 6, dtype=torch.bool)})
    assert [row.name for row in prune.magnitude(model, compression=1).tensors] == list(before)
    assert list(dict(prune.remove(model).named_parameters())) == list(before)


def test_what_optimizers_read_under_a_mask_is_zero():
    """A group's norm, and a count of zeros, are those of the model."""
    torch.manual_seed(0)
    masked = nn.Linear(100, 4, bias=False)
    prune.magnitude(masked, compression=20)
    plain = prune.remove(copy.deepcopy(masked))
    for model in (masked, plain):
        optimizer = Proximal(torch.optim.SGD(model.parameters(), lr=0.1), GroupL1(0.05, "rows"))
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert torch.equal(masked.weight, plain.weight)
    assert ProxSGD(masked.parameters(), 0.1, lam=1e-3).sparsity() == sparsity(masked) == 0.95


def test_a_new_mask_takes_the_old_ones_buffer():
    model = nn.Linear(2, 1)
    prune.apply_masks(model, {"weight": torch.tensor([[True, False]])})
    buffer = prune.masks(model)["weight"]
    prune.apply_masks(model, {"weight": torch.tensor([[False, True]])})
    assert prune.masks(model)["weight"] is buffer
    assert model.weight.tolist() == [[0.0, 0.0]]
    assert model.parametrizations.weight.original.tolist() == [[0.0, 0.0]]


def test_a_checkpoint_goes_on_as_the_run_does():
    model = prune.apply_masks(net(), some_masks(net()))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    train(model, optimizer, 4)
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    train(model, optimizer, 4, start=4)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    torch.manual_seed(9)
    fresh = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    prune.apply_masks(fresh, prune.stored_masks(state["model"]))
    fresh.load_state_dict(state["model"])
    again = torch.optim.SGD(fresh.parameters(), 0.1, momentum=0.9)
    again.load_state_dict(state["optimizer"])
    train(fresh, again, 4, start=4)
    assert all(torch.equal(p, weights(fresh)[name]) for name, p in weights(model).items())
    assert all(torch.equal(m, prune.masks(fresh)[name]) for name, m in prune.masks(model).items())


def test_tied_parameters_have_one_mask_and_stay_tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    weight = model[0].weight
    mask = torch.eye(4, dtype=torch.bool)
    prune.apply_masks(model, {"1.weight": mask})
    assert list(prune.masks(model)) == ["0.weight"]
    assert torch.equal(model[0].weight, model[1].weight)
    assert int(model[0].weight.count_nonzero()) == 4
    model(torch.randn(3, 4)).sum().backward()
    assert weight.grad[~mask].count_nonzero() == 0
    fresh = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    fresh[1].weight = fresh[0].weight
    fresh = prune.apply_masks(fresh, prune.stored_masks(model.state_dict()))
    fresh.load_state_dict(model.state_dict())
    prune.remove(model)
    assert model[0].weight is model[1].weight is weight
    assert len(list(model.parameters())) == 3


def test_a_mask_on_a_copy_leaves_the_model_alone():
    model = prune.apply_masks(nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
    twin = prune.apply_masks(copy.deepcopy(model), {"bias": torch.tensor([False])})
    assert twin.bias.item() == 0.0
    assert isinstance(model.bias, nn.Parameter)
    assert list(prune.masks(model)) == ["weight"]


def test_a_copy_has_its_own_masks():
    model = prune.apply_masks(net(), some_masks(net()))
    twin = copy.deepcopy(model)
    prune.remove(model)
    assert set(prune.masks(twin)) == {name for name, _ in net().named_parameters()}
    assert prune.masks(model) == {}
    assert int(twin[0].weight.count_nonzero()) == int(model[0].weight.count_nonzero())


def test_a_compiled_model_is_the_same_function_with_the_same_gradients():
    model = prune.apply_masks(net().eval(), some_masks(net()))
    x = torch.randn(4, 6)
    model(x).square().sum().backward()
    expected, grads = model(x), [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    compiled(x).square().sum().backward()
    for p, grad in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(p.grad, grad)


def test_recurrent_layers_and_lists_are_masked_too():
    model = nn.LSTM(3, 4)
    masks = some_masks(model)
    prune.apply_masks(model, masks)
    reference = nn.LSTM(3, 4)
    with torch.no_grad():
        for name, p in reference.named_parameters():
            p.copy_(getattr(model, name))
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(model(x)[0], reference(x)[0])
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(x)[0], reference(x)[0])
    prune.remove(twin)
    torch.testing.assert_close(twin(x)[0], reference(x)[0])
    assert list(dict(twin.named_parameters())) == list(dict(reference.named_parameters()))


def test_empty_and_0d_and_channels_last_parameters():
    model = nn.ParameterDict({"empty": torch.empty(0, 3), "scalar": torch.tensor(2.0), "conv": torch.randn(4, 3, 2, 2)})
    model["conv"].data = model["conv"].data.contiguous(memory_format=torch.channels_last)
    pointer = model["conv"].data_ptr()
    masks = {"empty": torch.empty(0, 3, dtype=torch.bool), "scalar": torch.tensor(False), "conv": torch.rand(4, 3, 2, 2) < 0.5}
    prune.apply_masks(model, masks)
    assert model["scalar"].item() == 0.0
    assert model["conv"].is_contiguous(memory_format=torch.channels_last)
    prune.remove(model)
    assert model["conv"].data_ptr() == pointer
    assert torch.equal(model["conv"] != 0, masks["conv"])


@pytest.mark.parametrize(
    ("masks", "sentence"),
    [
        ({"2.weight": torch.ones(3, 5).bool()}, r"masks has '2.weight'; the model has 0.weight, 0.bias"),
        ({"0.weight": torch.ones(5, 6)}, r"is torch.float32 \(5, 6\); it takes a tensor of torch.bool \(5, 6\)"),
        ({"0.weight": torch.ones(6, 5).bool()}, r"is torch.bool \(6, 5\); it takes a tensor of torch.bool \(5, 6\)"),
        ({"0.weight": [[True]]}, "is a list; it takes a tensor"),
    ],
)
def test_masks_that_do_not_fit_change_nothing(masks, sentence):
    model = net()
    good = {"3.weight": torch.zeros(3, 5, dtype=torch.bool)}
    with pytest.raises(ValueError, match=sentence):
        prune.apply_masks(model, good | masks)
    assert prune.masks(model) == {}
    assert model[3].weight.count_nonzero() == 15


def unmaskable() -> dict[str, tuple[nn.Module, str]]:
    named = nn.Module()
    named.keys = nn.Parameter(torch.ones(2, 2))
    return {
        "factors": (sparsenn.factorize(nn.Linear(2, 2), 2), "is a product of factors; collapse the model first"),
        "spectral-norm": (parametrizations.spectral_norm(nn.Linear(2, 2)), "carries the parametrization _SpectralNorm"),
        "lazy": (nn.LazyLinear(2), "is not initialized yet"),
        "meta": (nn.Linear(2, 2, device="meta"), "is on the meta device"),
        "sparse": (nn.Embedding(3, 2, sparse=True), "belongs to an embedding with sparse or max_norm"),
        "named": (named, "has the name of an attribute"),
    }


@pytest.mark.parametrize("kind", unmaskable())
def test_what_cannot_be_masked_says_why(kind):
    model, sentence = unmaskable()[kind]
    with pytest.raises(ValueError, match=sentence):
        prune.apply_masks(model, {"keys" if kind == "named" else "weight": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(ValueError, match=sentence):
        prune.magnitude(model, compression=2)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("make", "part"),
    [
        (nn.utils.weight_norm, "weight_v"),
        (nn.utils.spectral_norm, "weight_orig"),
        (lambda layer: torch_prune.random_unstructured(layer, "weight", 1), "weight_orig"),
    ],
    ids=["weight-norm", "spectral-norm", "prune"],
)
def test_what_a_hook_makes_a_weight_of_is_no_weight(make, part):
    model = make(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=rf"{part}' is what the hook \w+ makes 'weight' of; remove that hook first"):
        prune.apply_masks(model, {part: torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(ValueError, match="makes 'weight' of; remove that hook first"):
        prune.magnitude(model, compression=2)


def test_phi_is_no_weight():
    with pytest.raises(ValueError, match="is a part of a spectrum and no weight; collapse the model first"):
        prune.magnitude(sparsenn.nn.SpectralLinear(3, 2), compression=2)


def test_a_mask_is_bool_and_covers_what_is_assigned():
    with pytest.raises(ValueError, match=r"mask is torch.float32; it takes bool"):
        prune.Mask(torch.ones(2))
    model = prune.apply_masks(nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
    model.weight = torch.tensor([[3.0, 4.0]])
    assert model.parametrizations.weight.original.tolist() == [[3.0, 0.0]]


def test_the_sparsity_report_sees_the_masks():
    model = prune.apply_masks(net(), some_masks(net()))
    report = sparsenn.metrics.sparsity_report(model, 0.0)
    whole = sparsenn.metrics.sparsity_report(prune.remove(model), 0.0)
    assert {row.name: row.zeros for row in report.layers} == {row.name: row.zeros for row in whole.layers}
