"""The pruning baselines against brute force, hand-computed nets and torch's own pruning."""

import copy
import itertools
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune as torch_prune

from sparsenn import prune
from sparsenn.prune.budgets import allocate, erdos_renyi_kernel, largest, uniform


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(9, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))


BATCH = (torch.randn(16, 9, generator=torch.Generator().manual_seed(3)), torch.arange(16) % 3)
CALLS = {
    "magnitude": lambda model, **given: prune.magnitude(model, **given),
    "layerwise": lambda model, **given: prune.magnitude(model, scope="layerwise", **given),
    "erk": lambda model, **given: prune.magnitude(model, scope="erk", **given),
    "snip": lambda model, **given: prune.snip(model, batch=BATCH, loss_fn=functional.cross_entropy, **given),
    "synflow": lambda model, **given: prune.synflow(model, input_shape=(9,), iterations=10, **given),
    "random": lambda model, **given: prune.random(model, budget="global", **given),
    "random-uniform": lambda model, **given: prune.random(model, **given),
    "random-erk": lambda model, **given: prune.random(model, budget="erk", **given),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def kept(model: nn.Module) -> int:
    """Parameters that no mask covers, counted apart from the code under test."""
    hidden = sum(int((~mask).sum()) for mask in prune.masks(model).values())
    return sum(p.numel() for p in model.parameters()) - hidden


@every_call
@pytest.mark.parametrize("exclude", [("bias", "norm"), ()], ids=["weights", "all"])
@pytest.mark.parametrize("compression", [1, 1.5, 3.7])
def test_exactly_n_over_c_parameters_stay(call, compression, exclude):
    model = net()
    total = sum(p.numel() for p in model.parameters())
    report = call(model, compression=compression, exclude=exclude, on_collapse="ignore")
    assert report.kept == kept(model) == math.floor(total / compression)
    assert report.parameters == total
    assert report.compression_ratio == total / report.kept
    expected = {"0.weight", "3.weight", "5.weight"} if exclude else {name for name, _ in net().named_parameters()}
    assert set(prune.masks(model)) == expected
    assert report.collapsed == tuple(n for n, m in prune.masks(model).items() if not m.any() and "bias" not in n)


@every_call
def test_pruning_again_takes_more_and_gives_nothing_back(call):
    model = net()
    call(model, compression=2, on_collapse="ignore")
    before = {name: mask.clone() for name, mask in prune.masks(model).items()}
    call(model, compression=3, on_collapse="ignore")
    assert kept(model) == sum(p.numel() for p in model.parameters()) // 3
    assert all(not (mask & ~before[name]).any() for name, mask in prune.masks(model).items())
    with pytest.raises(ValueError, match=r"compression is 2, but the masks of the model give 3 already"):
        call(model, compression=2)


@every_call
def test_a_compression_out_of_reach_changes_nothing_and_says_what_is_possible(call):
    model = net()
    free = 8 + 5 + 3 + 16
    with pytest.raises(
        ValueError, match=rf"{free} of 159 parameters are never pruned .*, so it takes at most {159 / free:.6g}"
    ):
        call(model, compression=20)
    for wrong in (0.5, math.nan, math.inf, "2", True):
        with pytest.raises(ValueError, match=r"compression is .*; it takes a number >= 1"):
            call(model, compression=wrong)
    with pytest.raises(ValueError, match="on_collapse is 'stop'; it takes one of 'warn', 'raise', 'ignore'"):
        call(model, compression=2, on_collapse="stop")
    assert prune.masks(model) == {}


@every_call
def test_the_model_keeps_the_rest_of_its_weights_gradients_buffers_and_mode(call):
    model = net()
    model(BATCH[0]).sum().backward()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters()]
    call(model, compression=2, on_collapse="ignore")
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), sorted_like(model, grads), strict=True))
    for name, mask in prune.masks(model).items():
        state[name][~mask] = 0.0
    assert all(torch.equal(tensor, state[name]) for name, tensor in prune.remove(model).state_dict().items())
    assert model.training


def sorted_like(model: nn.Module, grads: list[torch.Tensor]) -> list[torch.Tensor]:
    """Gradients of the plain model in the order in which the masked one lists its parameters."""
    plain = dict(zip([name for name, _ in net().named_parameters()], grads, strict=True))
    return [plain[name.replace("parametrizations.", "").replace(".original", "")] for name, _ in model.named_parameters()]


def test_global_magnitude_is_torchs():
    model, twin = net(), net()
    prune.magnitude(model, compression=1.9)
    weights = [(layer, "weight") for layer in twin if isinstance(layer, nn.Linear)]
    amount = sum(int((~mask).sum()) for mask in prune.masks(model).values())
    torch_prune.global_unstructured(weights, pruning_method=torch_prune.L1Unstructured, amount=amount)
    for name, mask in prune.masks(model).items():
        assert torch.equal(mask, twin.get_submodule(name.removesuffix(".weight")).weight_mask.bool())


def test_layerwise_magnitude_keeps_the_same_share_of_every_tensor():
    model = net()
    prune.magnitude(model, compression=2, scope="layerwise")
    sizes = {"0.weight": 72, "3.weight": 40, "5.weight": 15}
    counts = {name: int(mask.sum()) for name, mask in prune.masks(model).items()}
    density = sum(counts.values()) / sum(sizes.values())
    assert all(abs(counts[name] - density * size) < 1 for name, size in sizes.items())
    for name, mask in prune.masks(model).items():
        weight = dict(net().named_parameters())[name].abs()
        assert weight[mask].min() > weight[~mask].max()


def test_of_equal_magnitudes_the_first_stay():
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False))
    for p in model.parameters():
        nn.init.constant_(p, -0.5)
    prune.magnitude(model, compression=10 / 7)
    assert [mask.flatten().tolist() for mask in prune.masks(model).values()] == [[True] * 6, [True] + [False] * 3]


def test_frozen_parameters_stay_and_count():
    model = net()
    model[0].weight.requires_grad_(False)
    report = prune.magnitude(model, compression=1.4)
    assert report.kept == math.floor(159 / 1.4)
    assert "0.weight" not in prune.masks(model)
    with pytest.raises(ValueError, match="and frozen ones"):
        prune.magnitude(net().requires_grad_(False), compression=2)


def test_tied_parameters_count_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    report = prune.magnitude(model, compression=2)
    assert (report.parameters, report.kept) == (16, 8)
    assert torch.equal(model[0].weight, model[2].weight)


def test_the_limit_is_the_largest_compression_that_works():
    limit = prune.compression_limit(net())
    assert limit == 159 / 32
    assert prune.magnitude(net(), compression=limit, on_collapse="ignore").kept == 32
    with pytest.raises(ValueError, match=f"it takes at most {limit:.6g}"):
        prune.magnitude(net(), compression=limit * (1 + 1e-12))
    assert prune.compression_limit(net(), exclude=()) == prune.compression_limit(nn.ReLU()) == math.inf


def test_selectors_are_those_of_param_groups():
    model = net()
    prune.magnitude(model, compression=1.2, exclude=("bias", "norm", "5.*"))
    assert set(prune.masks(model)) == {"0.weight", "3.weight"}
    with pytest.raises(ValueError, match="magnitude: exclude has 'fc', which is no kind"):
        prune.magnitude(net(), compression=2, exclude=("fc",))
    with pytest.raises(ValueError, match="scope is 'local'; it takes one of 'global', 'layerwise', 'erk'"):
        prune.magnitude(net(), compression=2, scope="local")
    with pytest.raises(ValueError, match="budget is 'all'; it takes one of 'uniform', 'erk', 'global'"):
        prune.random(net(), compression=2, budget="all")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("call", ["magnitude", "erk", "synflow"])
def test_half_types_are_ranked_as_their_values_in_float64(call, dtype):
    model = net().to(dtype)
    wide = copy.deepcopy(model).double()
    for chosen in (model, wide):
        CALLS[call](chosen, compression=3, on_collapse="ignore")
    assert all(torch.equal(mask, prune.masks(wide)[name]) for name, mask in prune.masks(model).items())


def test_the_largest_of_many_that_fall_and_of_ties():
    falling = torch.linspace(1, 0, 300_000)
    ties = torch.arange(9.0).repeat_interleave(3).flip(0)
    for k in (1, 4, 299_999):
        chosen = largest([falling], k)[0]
        assert chosen[:k].all()
        assert not chosen[k:].any()
    for k in range(28):
        assert torch.equal(largest([ties], k)[0], torch.arange(27) < k)


def test_nan_is_refused():
    model = net()
    with torch.no_grad():
        model[3].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"'3\.weight' holds NaN"):
        prune.magnitude(model, compression=2)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda m: prune.snip(m, compression=2, batch=BATCH[0], loss_fn=functional.cross_entropy),
            "snip: batch is a Tensor; it takes a pair",
        ),
        (
            lambda m: prune.snip(m, compression=2, batch=(*BATCH, 1), loss_fn=functional.cross_entropy),
            "snip: batch is a tuple of 3; it takes",
        ),
        (lambda m: prune.snip(m, compression=2, batch=BATCH, loss_fn=lambda *_: 1.0), "snip: loss_fn gives a float"),
        (
            lambda m: prune.snip(m, compression=2, batch=(BATCH[0], BATCH[1][:3]), loss_fn=functional.cross_entropy),
            "snip: loss_fn fails on the model's outputs and the batch's targets: Expected input batch_size",
        ),
        (lambda m: prune.synflow(m, compression=2, input_shape=6), "synflow: input_shape is 6; it takes the sizes"),
        (lambda m: prune.synflow(m, compression=2, input_shape=(1.5,)), r"synflow: input_shape is \(1.5,\); it takes"),
    ],
)
def test_what_is_no_batch_loss_or_shape_is_named(call, sentence):
    model = net()
    with pytest.raises(ValueError, match=sentence):
        call(model)
    assert prune.masks(model) == {}


def test_a_model_without_parameters_and_one_with_empty_ones():
    assert prune.magnitude(nn.ReLU(), compression=5).compression_ratio == 1.0
    model = nn.Sequential(nn.Linear(0, 3), nn.Linear(3, 2))
    assert prune.magnitude(model, compression=2, exclude=()).kept == 5
    assert prune.synflow(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), compression=2, input_shape=(3,)).kept == 4


# the guard


def lopsided() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    with torch.no_grad():
        model[2].weight.mul_(1e-6)
    return model


def test_a_collapsed_layer_is_named_by_a_warning_or_an_error():
    with pytest.warns(prune.LayerCollapseWarning, match=r"magnitude: no weight is left in 2\.weight") as caught:
        report = prune.magnitude(lopsided(), compression=40 / 24)
    assert report.collapsed == ("2.weight",)
    assert caught[0].filename == __file__
    with pytest.warns(prune.LayerCollapseWarning, match=r"synflow: no weight is left") as caught:
        prune.synflow(lopsided(), compression=5, input_shape=(4,), iterations=1)
    assert caught[0].filename == __file__
    model = lopsided()
    with pytest.raises(prune.LayerCollapseError, match=r"2\.weight"):
        prune.magnitude(model, compression=40 / 24, on_collapse="raise")
    assert prune.masks(model) == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune.magnitude(lopsided(), compression=40 / 24, on_collapse="ignore")
        prune.magnitude(lopsided(), compression=40 / 25)  # one is left
        assert prune.magnitude(net(), compression=159 / 143, exclude=("norm", "*weight")).collapsed == ()  # biases alone


# SNIP


def test_snip_scores_are_the_change_of_the_loss_when_a_connection_fades():
    model = net().double()
    x, y = BATCH[0].double(), BATCH[1]
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    gates = [torch.ones_like(layer.weight, requires_grad=True) for layer in linear]

    def loss(*gates):
        h = x
        for layer, gate in zip(linear[:1], gates[:1], strict=True):
            h = functional.linear(h, layer.weight * gate, layer.bias)
        h = functional.batch_norm(h, None, None, model[1].weight, model[1].bias, training=True).relu()
        h = functional.linear(h, linear[1].weight * gates[1], linear[1].bias).relu()
        return functional.cross_entropy(functional.linear(h, linear[2].weight * gates[2], linear[2].bias), y)

    scores = torch.cat([g.abs().flatten() for g in torch.autograd.grad(loss(*gates), gates)])
    prune.snip(model, compression=2.5, batch=(x, y), loss_fn=functional.cross_entropy)
    found = torch.cat([mask.flatten() for mask in prune.masks(model).values()])
    assert torch.equal(found, largest([scores], int(found.sum()))[0])


def test_snip_sees_the_masks_that_are_there():
    model, twin = net().eval(), net().eval()
    prune.random(model, compression=1.5, generator=torch.Generator().manual_seed(5))
    masks = prune.masks(model)
    with torch.no_grad():
        for name, p in twin.named_parameters():
            p.mul_(masks.get(name, torch.tensor(1)))
    functional.cross_entropy(twin(BATCH[0]), BATCH[1]).backward()
    scores = [(p * p.grad).abs().masked_fill(~masks[n], -1) for n, p in twin.named_parameters() if n in masks]
    prune.snip(model, compression=3, batch=BATCH, loss_fn=functional.cross_entropy)
    expected = largest(scores, sum(int(m.sum()) for m in prune.masks(model).values()))
    assert all(map(torch.equal, prune.masks(model).values(), expected))


def test_snip_wants_one_finite_number():
    with pytest.raises(ValueError, match=r"the loss of the batch is the tensor \(16,\); it takes a loss_fn"):
        prune.snip(net(), compression=2, batch=BATCH, loss_fn=lambda x, y: functional.cross_entropy(x, y, reduction="none"))
    with pytest.raises(ValueError, match="the loss of the batch is nan"):
        prune.snip(net(), compression=2, batch=(BATCH[0] * math.nan, BATCH[1]), loss_fn=functional.cross_entropy)


# SynFlow


def path_sums(matrices: list[torch.Tensor]) -> list[torch.Tensor]:
    """For every weight of a chain the sum over all paths through it of the products of magnitudes, by listing the paths."""
    sums = [torch.zeros_like(m) for m in matrices]
    widths = [matrices[0].shape[1], *(m.shape[0] for m in matrices)]
    for path in itertools.product(*map(range, widths)):
        product = math.prod(float(m[path[i + 1], path[i]].abs()) for i, m in enumerate(matrices))
        for i, own in enumerate(sums):
            own[path[i + 1], path[i]] += product
    return sums


def test_synflow_scores_are_sums_over_paths():
    torch.manual_seed(2)
    model = nn.Sequential(*(nn.Linear(m, n, bias=False) for m, n in ((4, 3), (3, 5), (5, 2)))).double()
    model.insert(1, nn.ReLU())
    sums = path_sums([layer.weight.detach() for layer in model if isinstance(layer, nn.Linear)])
    prune.synflow(model, compression=2, input_shape=(4,), iterations=1)
    expected = largest(sums, 37 // 2)
    assert all(map(torch.equal, prune.masks(model).values(), expected))


def test_synflow_computes_scores_anew_in_every_iteration():
    torch.manual_seed(4)
    model = nn.Sequential(*(nn.Linear(m, n, bias=False) for m, n in ((4, 3), (3, 5), (5, 2)))).double()
    matrices = [layer.weight.detach().clone() for layer in model]
    masks = [torch.ones_like(m, dtype=torch.bool) for m in matrices]
    for k in (1, 2, 3, 4):
        sums = [s.masked_fill(~mask, -1) for s, mask in zip(path_sums(matrices), masks, strict=True)]
        masks = largest(sums, round(37 * (6 / 37) ** (k / 4)))
        matrices = [m * mask for m, mask in zip(matrices, masks, strict=True)]
    prune.synflow(model, compression=6, input_shape=(4,), iterations=4)
    assert all(map(torch.equal, prune.masks(model).values(), masks))


def test_synflow_leaves_one_path_where_magnitude_empties_layers():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(n, n, bias=False) for n in (8, 8, 8, 8)))
    with torch.no_grad():
        model[2].weight.mul_(1e-3)
    report = prune.synflow(copy.deepcopy(model), compression=256 / 4, input_shape=(8,), iterations=300, on_collapse="raise")
    assert [row.kept for row in report.tensors] == [1, 1, 1, 1]
    with pytest.raises(prune.LayerCollapseError):
        prune.magnitude(model, compression=256 / 4, on_collapse="raise")


def test_synflow_is_finite_where_float32_overflows():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(48, 48, bias=False) for _ in range(60)))
    for layer in model:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    magnitudes = copy.deepcopy(model)
    with torch.no_grad():
        for p in magnitudes.parameters():
            p.abs_()
        assert torch.isinf(magnitudes(torch.ones(1, 48)).sum())
    report = prune.synflow(model, compression=20, input_shape=(48,), iterations=20, on_collapse="raise")
    assert report.kept == 60 * 48 * 48 // 20
    with torch.no_grad():
        for layer in model:
            layer.weight = layer.weight * 1e30
    with pytest.raises(ValueError, match="the flow through the model is not finite in float64"):
        prune.synflow(model, compression=40, input_shape=(48,))


def test_synflow_does_not_see_batch_statistics_or_dropout():
    model, twin = net(), net()
    with torch.no_grad():
        twin[1].running_mean.uniform_(-3, 3)
        twin[1].running_var.uniform_(0.1, 9)
    twin.insert(1, nn.Dropout(0.5))
    for chosen in (model, twin):
        prune.synflow(chosen, compression=3, input_shape=(9,))
    assert all(map(torch.equal, prune.masks(model).values(), prune.masks(twin).values()))


@pytest.mark.parametrize(
    ("model", "shape"), [(nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 2)), (5,)), (nn.Linear(3, 2), (4,))]
)
def test_synflow_names_an_input_that_a_model_cant_take(model, shape):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=rf"the model can't take ones of shape \(1, {shape[0]}\).*snip or magnitude"):
        prune.synflow(model, compression=2, input_shape=shape)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not prune.masks(model)


def narrow() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 9), nn.ReLU(), nn.Linear(9, 1))


@pytest.mark.parametrize(
    ("options", "kept"),
    [({"compression": 109.0, "exclude": ()}, 1), ({"compression": prune.compression_limit(narrow())}, 0)],
    ids=["one parameter", "biases alone"],
)
def test_synflow_ends_where_its_masks_cut_the_last_path(options, kept):
    """It keeps as many as were asked for, and reports the layers that are empty."""
    net = narrow()
    with pytest.warns(prune.LayerCollapseWarning):
        report = prune.synflow(net, input_shape=(10,), **options)
    assert sum(int(mask.sum()) for mask in prune.masks(net).values()) == kept
    assert report.collapsed
    with pytest.raises(prune.LayerCollapseError):
        prune.synflow(narrow(), input_shape=(10,), on_collapse="raise", **options)


def test_synflow_without_flow_says_so():
    with pytest.raises(ValueError, match="no flow passes through any weight"):
        prune.synflow(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)), compression=1.1, input_shape=(3,))
    with pytest.raises(ValueError, match="iterations is 0; it takes an int >= 1"):
        prune.synflow(net(), compression=2, input_shape=(9,), iterations=0)


# random


def test_random_masks_follow_the_generator_alone():
    def masks(seed):
        model = net()
        prune.random(model, compression=2, budget="global", generator=torch.Generator().manual_seed(seed))
        return torch.cat([mask.flatten() for mask in prune.masks(model).values()])

    torch.manual_seed(77)
    first = masks(0)
    torch.manual_seed(78)
    assert torch.equal(first, masks(0))
    assert not torch.equal(first, masks(1))


def test_random_pruning_keeps_every_weight_equally_often():
    generator, counts, draws = torch.Generator().manual_seed(0), torch.zeros(20), 300
    for _ in range(draws):
        model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False), nn.Linear(2, 1, bias=False))
        prune.random(model, compression=4, budget="global", generator=generator, on_collapse="ignore")
        counts += torch.cat([mask.flatten() for mask in prune.masks(model).values()])
    assert counts.sum() == 5 * draws
    assert (counts - draws / 4).abs().max() < 4.5 * (draws * 0.25 * 0.75) ** 0.5


# budgets


def test_the_erk_density_of_a_convolution_is_the_papers():
    shapes = [(64, 3, 3, 3), (128, 64, 3, 3), (10, 128)]
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 128, 3), nn.Linear(128, 10))
    report = prune.random(model, compression=5, budget="erk", exclude=("bias",))
    density = {row.name: row.kept / row.numel for row in report.tensors if "weight" in row.name}
    paper = [sum(shape) / math.prod(shape) for shape in shapes]
    assert density["0.weight"] == density["2.weight"] == 1.0  # both would be denser than full
    free = 64 + 128 + 10 + math.prod(shapes[0]) + math.prod(shapes[2])
    assert density["1.weight"] == (report.parameters // 5 - free) / math.prod(shapes[1])
    sparse = prune.random(model, compression=200, budget="erk", exclude=("bias",))
    counts = [row.kept for row in sparse.tensors if "weight" in row.name]
    ratios = [n / math.prod(shape) / d for n, shape, d in zip(counts, shapes, paper, strict=True)]
    assert max(ratios) / min(ratios) == pytest.approx(1.0, abs=0.05)


def test_shares_are_sizes_or_sums_of_sizes():
    assert uniform([(2, 3), (4,), ()]) == [6.0, 4.0, 1.0]
    assert erdos_renyi_kernel([(2, 3), (4, 5, 6), (), (0, 7)]) == [5.0, 15.0, 1.0, 0.0]


def test_an_allocation_is_exact_monotone_and_within_its_bounds():
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        layers = int(torch.randint(1, 7, (), generator=generator))
        capacities = torch.randint(0, 50, (layers,), generator=generator).tolist()
        shares = (torch.rand(layers, generator=generator).double() * 9 + 0.1).tolist()
        total = int(torch.randint(0, sum(capacities) + 1, (), generator=generator))
        counts = allocate(shares, capacities, total)
        assert sum(counts) == total
        assert all(0 <= n <= c for n, c in zip(counts, capacities, strict=True))
        below = [i for i in range(layers) if counts[i] < capacities[i] - 1]
        for i, j in itertools.combinations(below, 2):  # whoever isn't full has the same scale, up to rounding
            assert abs(counts[i] / shares[i] - counts[j] / shares[j]) <= 1 / shares[i] + 1 / shares[j]


def test_the_largest_are_found_among_ties_and_infinities():
    scores = [torch.tensor([2.0, math.inf, 2.0]), torch.zeros(0), torch.tensor([[2.0, -1.0]])]
    for count, expected in ((0, [0, 0, 0, 0, 0]), (1, [0, 1, 0, 0, 0]), (3, [1, 1, 1, 0, 0]), (5, [1] * 5)):
        assert torch.cat([m.flatten() for m in largest(scores, count)]).int().tolist() == expected
    assert largest([], 0) == []


def test_the_table_shows_what_stayed():
    model = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(8.0).view(2, 4) + 1)
        model[2].weight.fill_(0.5)
    with pytest.warns(prune.LayerCollapseWarning):
        table = str(prune.magnitude(model, compression=2))
    assert table.splitlines() == [
        "parameter  shape  entries  kept  density",
        "----------------------------------------",
        "0.weight   2x4          8     4   0.5000",
        "0.bias     2            2     2   1.0000",
        "2.weight   1x2          2     0   0.0000",
        "----------------------------------------",
        "total                  12     6   0.5000",
    ]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_the_masks_of_the_cpu():
    def found(call: str, device: str) -> dict[str, torch.Tensor]:
        model, batch = net().double().to(device), (BATCH[0].double().to(device), BATCH[1].to(device))
        if call == "snip":
            prune.snip(model, compression=3, batch=batch, loss_fn=functional.cross_entropy)
        else:
            torch.manual_seed(0)
            CALLS[call](model, compression=3, on_collapse="ignore")
        return {name: mask.cpu() for name, mask in prune.masks(model).items()}

    for call in CALLS:
        cpu, gpu = found(call, "cpu"), found(call, "cuda")
        assert all(torch.equal(mask, gpu[name]) for name, mask in cpu.items()), call
