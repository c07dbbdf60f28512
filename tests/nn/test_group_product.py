"""GroupProduct: its law, its derivatives, its starts, and the nets that it makes smaller."""

import copy
import functools
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import sparsenn
from sparsenn import init
from sparsenn.data import load_digits
from sparsenn.metrics import sparsity_report
from sparsenn.nn import GroupProduct
from sparsenn.nn.parametrizations import factors_of
from sparsenn.penalties import GroupL1, factor_decay, factor_decay_min
from sparsenn.prune import compact, node_relevance, nodes
from sparsenn.training.batches import batches, epoch_order

SHAPES = {"rows": (4, 3), "columns": (4, 3), "filters": (4, 3, 2, 2), "channels": (4, 3, 5)}
DIMS = {"rows": 0, "columns": 1, "filters": 0, "channels": 1}
every_group = pytest.mark.parametrize("groups", SHAPES)


def holder(weight, depth, groups, factor_init="preserve"):
    module = nn.Module()
    module.weight = nn.Parameter(weight)
    return parametrize.register_parametrization(module, "weight", GroupProduct(depth, groups, factor_init))


def random(shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def some_factors(shape, groups, depth, *, zeros=False):
    u, scales = random(shape), [random(shape[DIMS[groups]], seed=d) for d in range(1, depth)]
    if zeros:  # one γ of the first group, all of the second, u of the third
        for d, scale in enumerate(scales):
            scale[1] = 0
            scale[0] *= d != 0
        u.select(DIMS[groups], 2).zero_()
    return [factor.requires_grad_() for factor in (u, *scales)]


def plain(u, scales, groups):
    along = [-1 if d == DIMS[groups] else 1 for d in range(u.dim())]
    return functools.reduce(torch.mul, (scale.view(along) for scale in scales), u)


def norms(weight, groups):
    return weight.movedim(DIMS[groups], 0).flatten(1).norm(dim=1)


@every_group
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_product_and_derivatives_are_those_of_the_plain_formula_also_at_zeros(groups, depth, backend):
    factors = some_factors(SHAPES[groups], groups, depth, zeros=True)
    ours, theirs = GroupProduct(depth, groups)(*factors), plain(factors[0], factors[1:], groups)
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=0)
    gradients = [torch.autograd.grad(w.sin().sum(), factors, create_graph=True) for w in (ours, theirs)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)
    seconds = [
        torch.autograd.grad(sum(g.cos().sum() for g in first), factors, allow_unused=True, materialize_grads=True)
        for first in gradients
    ]
    for a, b in zip(*seconds, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@every_group
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_no_factors_of_a_weight_have_less_decay_than_the_group_penalty(groups, depth):
    """For given γ, u is w / Πγ: minimised over γ alone, by Newton's method in log γ, the decay is Σ ‖w_G‖^(2/D)."""
    module = holder(random(SHAPES[groups]), depth, groups)
    weight = module.weight.detach()
    logs = random((depth - 1, weight.shape[DIMS[groups]]), seed=9).requires_grad_()

    def decay():
        scales = logs.exp()
        u = plain(weight, [1 / scale for scale in scales], groups)
        return (u.square().sum() + scales.square().sum()) / depth

    assert decay() > factor_decay_min(module)
    newton = torch.optim.LBFGS([logs], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure():
        newton.zero_grad()
        loss = decay()
        loss.backward()
        return loss

    newton.step(closure)
    least = norms(weight, groups).pow(2 / depth).sum()
    torch.testing.assert_close(decay(), least, rtol=1e-12, atol=0)
    torch.testing.assert_close(factor_decay_min(module), least, rtol=1e-13, atol=0)
    balanced = holder(weight.clone(), depth, groups, "root")
    torch.testing.assert_close(factor_decay(balanced), least, rtol=1e-13, atol=0)
    if depth == 2:
        penalty = GroupL1(1.0, groups, weighted=False).value(weight)
        torch.testing.assert_close(factor_decay_min(module), penalty, rtol=1e-13, atol=0)


def test_decays_add_up_over_depths_and_count_what_is_tied_once():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)).double()
    net[2].weight = net[1].weight
    sparsenn.factorize(net, 3, "root", groups="rows")
    sparsenn.factorize(net, 2, "root", include="0.bias")
    expected = net[0].weight.norm(dim=1).pow(2 / 3).sum() + net[1].weight.norm(dim=1).pow(2 / 3).sum() + net[0].bias.abs().sum()
    torch.testing.assert_close(factor_decay(net), expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(factor_decay_min(net), expected, rtol=1e-13, atol=0)
    gradients = torch.autograd.grad(factor_decay(net), [*net.parameters()], allow_unused=True)
    for (name, parameter), gradient in zip(net.named_parameters(), gradients, strict=True):
        depth = 2 if "bias" in name else 3
        assert (gradient is None) == ("original" not in name)
        if gradient is not None:
            torch.testing.assert_close(gradient, 2 / depth * parameter)


def test_a_model_without_factors_has_no_decay():
    for function in (factor_decay, factor_decay_min):
        with pytest.raises(ValueError, match=f"{function.__name__}: Linear has no factorized parameter"):
            function(nn.Linear(2, 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("factor_init", ["preserve", "root"])
@pytest.mark.parametrize("depth", [1, 2, 3])
@every_group
def test_the_split_keeps_the_weight_and_its_zeros(groups, factor_init, depth, dtype):
    weight = random(SHAPES[groups], dtype)
    weight.select(DIMS[groups], 1).zero_()
    weight.select(DIMS[groups], 2).mul_(1e-3)
    module = holder(weight.clone(), depth, groups, factor_init)
    assert {f.dtype for f in factors_of(module.parametrizations.weight)} == {dtype}
    torch.testing.assert_close(
        module.weight.detach(), weight, rtol=4 * torch.finfo(dtype).eps, atol=1e-6 if dtype.itemsize == 2 else 0
    )
    assert torch.equal(module.weight == 0, weight == 0)


@pytest.mark.parametrize("depth", [2, 3])
def test_groups_start_balanced_but_for_small_ones_which_see_a_tenth_of_their_gradient(depth):
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-6, -4e-6]], dtype=torch.float64)
    u, *scales = factors_of(holder(weight.clone(), depth, "rows", "root").parametrizations.weight)
    for scale in scales:
        torch.testing.assert_close(scale.detach(), weight.norm(dim=1) ** (1 / depth), rtol=1e-13, atol=0)
    torch.testing.assert_close(u.detach().norm(dim=1), weight.norm(dim=1) ** (1 / depth), rtol=1e-13, atol=0)
    module = holder(weight.clone(), depth, "rows")
    u, *scales = factors_of(module.parametrizations.weight)
    assert all(math.isclose(scale[0].item(), 5 ** (1 / depth)) for scale in scales)
    module.weight.sum().backward()
    gains = torch.tensor([5 ** (1 - 1 / depth), 0.1, 0.1], dtype=torch.float64)
    torch.testing.assert_close(u.grad, gains[:, None].expand(3, 2))


def test_norms_of_extreme_weights_neither_overflow_nor_vanish():
    for size in (1e200, 1e-200):
        weight = torch.tensor([[3.0, 4.0]], dtype=torch.float64) * size
        u, scale = factors_of(holder(weight.clone(), 2, "rows", "root").parametrizations.weight)
        torch.testing.assert_close(scale.detach(), torch.tensor([math.sqrt(5 * size)], dtype=torch.float64), rtol=1e-13, atol=0)
        torch.testing.assert_close(u.detach() * scale.detach(), weight, rtol=1e-14, atol=0)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("groups", ["rows", "columns"])
def test_empty_weights(groups, shape, backend):
    module = holder(torch.zeros(shape), 3, groups)
    module.weight.sum().backward()
    assert [p.grad.shape for p in module.parameters()] == [shape, *[(shape[DIMS[groups]],)] * 2]
    assert factor_decay_min(module) == 0


def test_channels_last_stays():
    weight = random((4, 3, 5, 5)).to(memory_format=torch.channels_last)
    module = holder(weight, 3, "channels")
    assert module.parametrizations.weight.original0.stride() == module.weight.stride() == weight.stride()


@every_group
@pytest.mark.parametrize("depth", [2, 3])
def test_gradient_flow_keeps_balance_and_the_penalty_brings_it(groups, depth):
    r"""d/dt (‖u_G‖² − γ²) = −(4λ/D) (‖u_G‖² − γ²) under any loss: 0 without a penalty, and decay with one."""
    lam, factors = 0.3, some_factors(SHAPES[groups], groups, depth)
    product, target = GroupProduct(depth, groups), random(SHAPES[groups], seed=5)
    penalty = lam / depth * sum(f.square().sum() for f in factors)
    velocity = [-g for g in torch.autograd.grad((product(*factors) - target).pow(4).sum() + penalty, factors)]
    u, *scales = factors
    of_u = 2 * (u * velocity[0]).movedim(DIMS[groups], 0).flatten(1).sum(1)
    for scale, own in zip(scales, velocity[1:], strict=True):
        gap = norms(u, groups).square() - scale.square()
        torch.testing.assert_close(of_u - 2 * scale * own, -4 * lam / depth * gap, rtol=1e-11, atol=1e-12)


def test_gradient_descent_ends_at_the_group_lasso_of_scikit_learn():
    """Σ over outputs, mean over samples, λ Σ_j ‖column j‖: its MultiTaskLasso with α = λ / 2."""
    x, noise = random((80, 12)), random((80, 4), seed=1)
    truth = random((4, 12), seed=2)
    truth[:, 5:] = 0
    y, lam = x @ truth.T + 0.3 * noise, 0.6
    oracle = pytest.importorskip("sklearn.linear_model").MultiTaskLasso(lam / 2, fit_intercept=False, tol=1e-14, max_iter=10**5)
    expected = torch.from_numpy(oracle.fit(x.numpy(), y.numpy()).coef_)
    layer = sparsenn.factorize(nn.Linear(12, 4, bias=False).double(), 2, groups="columns")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05, momentum=0.9, weight_decay=2 * lam / 2)
    for _ in range(900):
        optimizer.zero_grad()
        (layer(x) - y).square().sum(1).mean().backward()
        optimizer.step()
    weight = sparsenn.collapse(layer, 1e-8).weight.detach()
    dead = expected.norm(dim=0) == 0
    assert 0 < dead.sum() < 12
    assert torch.equal(weight.norm(dim=0) == 0, dead)
    torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-6)
    gradient = 2 / 80 * (weight @ x.T - y.T) @ x
    assert GroupL1(lam, "columns", weighted=False).subdiff_distance(weight, gradient).max() < 1e-6


def test_at_depth_three_living_groups_are_stationary_for_the_power_of_their_norms():
    x, lam, depth = random((80, 8)), 0.2, 3
    truth = torch.cat([random((3, 4), seed=2), torch.zeros(3, 4)], dim=1).double()
    y = x @ truth.T
    layer = sparsenn.factorize(nn.Linear(8, 3, bias=False).double(), depth, groups="columns")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.03, momentum=0.9, weight_decay=2 * lam / depth)
    for _ in range(900):
        optimizer.zero_grad()
        (layer(x) - y).square().sum(1).mean().backward()
        optimizer.step()
    torch.testing.assert_close(factor_decay(layer), factor_decay_min(layer), rtol=1e-9, atol=0)  # balanced
    weight = sparsenn.collapse(layer, 1e-8).weight.detach()
    size = weight.norm(dim=0)
    assert torch.equal(size == 0, torch.arange(8) >= 4)
    gradient = (2 / 80 * (weight @ x.T - y.T) @ x)[:, :4]
    pull = lam * (2 / depth) * size[:4] ** (2 / depth - 2) * weight[:, :4]
    torch.testing.assert_close(gradient, -pull, rtol=0, atol=1e-6)


def test_rows_of_a_net_for_digits_die_and_compaction_takes_them_out():
    data = load_digits()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))
    sparsenn.factorize(net, 2, groups="rows", exclude="5.*")
    shared = [p for name, p in net.named_parameters() if "original" in name]
    own = [p for name, p in net.named_parameters() if "original" not in name]
    optimizer = torch.optim.SGD([{"params": shared, "weight_decay": 0.01}, {"params": own}], lr=0.15, momentum=0.9)
    for epoch in range(25):
        for images, labels in batches(data.train_images, data.train_labels, epoch_order(1442, 0, epoch), 64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
    sparsenn.collapse(net)
    assert not any(parametrize.is_parametrized(module) for module in net.modules())
    weights = [net[1].weight, net[3].weight]
    dead = [(w == 0).all(1) for w in weights]
    assert dead[0].sum() > 40
    assert dead[1].sum() > 10
    assert (net(data.test_images).argmax(1) == data.test_labels).double().mean() > 0.8
    small = compact(net.eval(), data.test_images[:1])
    assert (small[1].out_features, small[3].out_features) == tuple(int((~mask).sum()) for mask in dead)
    torch.testing.assert_close(small(data.test_images), net(data.test_images), rtol=0, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < 0.5 * sum(p.numel() for p in net.parameters())


def conv_net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 2))


def parametrized_names(model):
    return {f"{n}.{t}" for n, m in model.named_modules() if parametrize.is_parametrized(m) for t in m.parametrizations}


@pytest.mark.parametrize(
    ("groups", "rules", "expected"),
    [
        ("rows", {}, {"4.weight", "5.weight"}),
        ("rows", {"exclude": "5.*"}, {"4.weight"}),
        ("rows", {"exclude": ["*.bias", "0.weight", "5.*"]}, {"4.weight"}),  # what has no such groups may be named
        ("columns", {"include": "5.*"}, {"5.weight"}),
        ("filters", {}, {"0.weight"}),
        ("channels", {"include": "*"}, {"0.weight"}),
    ],
)
def test_only_weights_that_have_such_groups_are_factorized_and_the_function_stays(groups, rules, expected):
    model = conv_net().double().eval()
    x = random((2, 3, 4, 4))
    before = model(x)
    sparsenn.factorize(model, 3, groups=groups, **rules)
    assert parametrized_names(model) == expected
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-14)
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(x), model(x))
    names = [name for name, _ in conv_net().named_parameters()]
    assert [name for name, _ in sparsenn.collapse(twin, 0.0).named_parameters()] == names
    torch.testing.assert_close(twin(x), before, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GroupProduct(2, "heads"), "groups is 'heads'; it takes one of 'rows', 'columns', 'filters', 'channels'"),
        (lambda: GroupProduct(2, ["rows"]), r"groups is \['rows'\]"),
        (lambda: GroupProduct(0, "rows"), "depth is 0; it takes an int >= 1"),
        (lambda: GroupProduct(2, "rows", "dwf"), "factor_init is 'dwf'; factors of groups take 'preserve' or 'root'"),
        (lambda: holder(torch.ones(3), 2, "rows"), r"weight has shape \(3,\); groups='rows' takes 2 dimensions"),
        (lambda: sparsenn.factorize(conv_net(), 2, groups="outputs"), "groups is 'outputs'"),
        (lambda: sparsenn.factorize(conv_net(), 2, groups="rows", include="*.bias"), "selects no parameter"),
        (
            lambda: sparsenn.factorize(nn.Linear(3, 2), 2, groups="filters"),
            "no weight with filters; these take 3 or 4 or 5 dim",
        ),
        (lambda: sparsenn.factorize(nn.LazyLinear(2), 2, groups="rows"), "is not initialized yet"),
        (lambda: holder(torch.full((2, 2), math.nan), 2, "rows"), "weight holds values that are not finite"),
    ],
)
def test_what_does_not_fit_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_weight_that_cannot_be_split_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight[0, 0] = math.inf
    with pytest.raises(ValueError, match=r"factorize: '1.weight' cannot be split: split_groups_: weight holds values"):
        sparsenn.factorize(model, 2, groups="rows")
    assert parametrized_names(model) == set()
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias", "1.weight", "1.bias"]


@pytest.mark.parametrize(
    ("factors", "options", "message"),
    [
        ([], {}, "factors must hold at least one tensor"),
        ([torch.ones(2, 3), torch.ones(3)], {}, r"factors\[1\] has shape \(3,\) on cpu; it takes \(2,\) on cpu"),
        ([torch.ones(3, 2)], {}, r"factors\[0\] has shape \(3, 2\) on cpu; it takes \(2, 3\)"),
        ([torch.ones(2, 3), torch.ones(2, dtype=torch.int)], {}, r"factors\[1\] is torch.int32"),
        ([torch.ones(2, 3)], {"dim": 2}, r"dim is 2; a weight of shape \(2, 3\) takes 0 to 1"),
        ([torch.ones(2, 3)], {"min_gain": 1.5}, r"min_gain must be in \[0, 1\]; got 1.5"),
    ],
)
def test_a_split_checks_all_before_it_writes(factors, options, message):
    before = [f.clone() for f in factors]
    with pytest.raises(ValueError, match=message):
        init.split_groups_(factors, torch.zeros(2, 3), **options)
    assert all(torch.equal(a, b) for a, b in zip(factors, before, strict=True))


@pytest.mark.parametrize(
    ("weight", "message"),
    [(torch.tensor(1.0), "a weight without dimensions has no groups"), (torch.ones(2, 3) * 1j, "weight is torch.complex64")],
)
def test_a_split_takes_real_weights_with_groups(weight, message):
    with pytest.raises(ValueError, match=message):
        init.split_groups_([torch.ones(weight.shape)], weight)


@pytest.mark.parametrize("groups", ["rows", "columns"])
def test_nodes_die_whoever_shares_the_factors_and_reports_count_the_product(groups):
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.diag(torch.tensor([1.0, 0.1, 2.0])) + 0.01)
    weight = net[0].weight.detach().clone()
    sparsenn.factorize(net, 3, include="0.weight", groups=groups)
    torch.testing.assert_close(node_relevance(net[0]), weight.norm(dim=1))
    assert nodes(net, threshold=0.5).killed == {"0": (1,)}
    weight[1] = 0
    torch.testing.assert_close(net[0].weight.detach(), weight)
    row = next(row for row in sparsity_report(net).layers if row.name == "0.weight")
    assert (row.shape, row.zeros) == ((3, 3), 3)
    assert repr(net[0].parametrizations.weight[0]) == f"GroupProduct(depth=3, groups='{groups}', factor_init='preserve')"
