import copy
import math

import pytest
import torch
from torch import nn

import sparsenn
from sparsenn.nn import SpectralLinear
from sparsenn.prune import compact, node_relevance, nodes, nodes_by_metric


def spectral(lambda_in: list[float] | None, lambda_out: list[float] | None) -> SpectralLinear:
    layer = SpectralLinear(2, 3, train_lambda_in=lambda_in is not None, train_lambda_out=lambda_out is not None)
    if lambda_out is None:
        layer = SpectralLinear(2, 3, train_lambda_in=True, train_lambda_out=False, lambda_out_init=0.0)
    values = {"phi": [[3.0, 4.0], [1.0, 0.0], [6.0, 8.0]], "lambda_in": lambda_in, "lambda_out": lambda_out, "bias": [1.0] * 3}
    with torch.no_grad():
        for name, value in values.items():
            if value is not None:
                getattr(layer, name).copy_(torch.tensor(value))
    return layer


def test_the_relevance_of_a_plain_node_is_the_norm_of_its_weights():
    layer = nn.Linear(5, 4)
    expected = torch.tensor([sum(float(w) ** 2 for w in row) ** 0.5 for row in layer.weight.tolist()])
    torch.testing.assert_close(node_relevance(layer), expected)
    conv = nn.Conv2d(3, 4, 3).double()
    expected = torch.tensor(
        [sum(float(w) ** 2 for w in row) ** 0.5 for row in conv.weight.flatten(1).tolist()], dtype=torch.float64
    )
    torch.testing.assert_close(node_relevance(conv), expected)


def test_the_relevance_of_a_spectral_node_is_its_eigenvalue_times_the_norm_of_its_vector():
    assert node_relevance(spectral(None, [-2.0, 0.5, 0.0])).tolist() == [10.0, 0.5, 0.0]
    assert node_relevance(spectral([7.0, 9.0], [-2.0, 0.5, 0.0])).tolist() == [10.0, 0.5, 0.0]
    assert node_relevance(spectral([0.0, -2.0], None)).tolist() == [8.0, 0.0, 16.0]


def test_the_relevance_of_a_factorized_node_is_that_of_the_product():
    layer = nn.Linear(5, 4)
    factorized = sparsenn.factorize(copy.deepcopy(layer), 3, "root")
    torch.testing.assert_close(node_relevance(factorized), node_relevance(layer))


def test_half_types_are_summed_in_float32():
    layer = nn.Linear(4096, 2).half()
    layer.weight.data.fill_(4.0)  # squares sum up to 65536, beyond float16
    assert node_relevance(layer).tolist() == [256.0, 256.0]


def test_other_modules_have_no_nodes():
    with pytest.raises(ValueError, match="node_relevance: layer is a ReLU; it takes linear layers and convolutions"):
        node_relevance(nn.ReLU())


def network() -> nn.Sequential:
    """Relevances 5, 1, 3 and 4, 2; two outputs."""
    net = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[5.0], [-1.0], [3.0]]))
        net[2].weight.copy_(torch.tensor([[4.0, 0, 0], [0, 2.0, 0]]))
    return net


@pytest.mark.parametrize(
    ("options", "first", "second"),
    [
        ({"threshold": 0.9}, (), ()),
        ({"threshold": 1.0}, (1,), ()),
        ({"threshold": 3.0}, (1, 2), (1,)),
        ({"threshold": 9.0}, (1, 2), (1,)),  # one of each layer stays
        ({"threshold": 9.0, "keep": 2}, (1,), ()),
        ({"threshold": 9.0, "keep": 0}, (0, 1, 2), (0, 1)),
        ({"fraction": 0.0}, (), ()),
        ({"fraction": 0.39}, (1,), ()),
        ({"fraction": 0.4}, (1,), (1,)),
        ({"fraction": 0.6}, (1, 2), (1,)),
        ({"fraction": 1.0, "keep": 0}, (0, 1, 2), (0, 1)),
        ({"fraction": 0.5, "layers": ["2"]}, None, (1,)),
    ],
)
def test_the_least_relevant_nodes_die(options, first, second):
    net = network()
    before = copy.deepcopy(net)
    report = nodes(net, **options)
    expected = {"0": first, "2": second} if first is not None else {"2": second}
    assert report.killed == expected
    for name, layer in before.named_children():
        if isinstance(layer, nn.Linear):
            dead = expected.get(name, ())
            for row in range(layer.out_features):
                for old, new in ((layer.weight[row], net[int(name)].weight[row]), (layer.bias[row], net[int(name)].bias[row])):
                    assert torch.equal(new, torch.zeros_like(old) if row in dead else old)
    relevance = [node_relevance(before[i])[list(expected.get(str(i), ()))] for i in (0, 2)]
    assert report.threshold == max([float(r.max()) for r in relevance if r.numel()], default=0.0)
    assert report.fraction == sum(map(len, expected.values())) / (5 if first is not None else 2)


@pytest.mark.parametrize("lambda_in", [None, [1.0, 2.0]], ids=["out", "in and out"])
def test_a_spectral_node_dies_with_its_eigenvalue(lambda_in):
    layer = spectral(lambda_in, [-2.0, 0.5, 1.0])
    net = nn.Sequential(layer, nn.Linear(3, 2))
    assert nodes(net, threshold=0.5).killed == {"0": (1,)}
    assert layer.lambda_out.tolist() == [-2.0, 0.0, 1.0]
    assert torch.equal(layer(torch.randn(9, 2))[:, 1], torch.zeros(9))
    assert layer.phi[1].tolist() == ([1.0, 0.0] if lambda_in is None else [0.0, 0.0])
    small = compact(net.eval(), torch.randn(1, 2))
    assert (type(small[0]), small[0].out_features) == (nn.Linear, 2)


def test_a_factorized_node_dies_with_all_its_factors():
    net = sparsenn.factorize(network(), 2, "root")
    nodes(net, threshold=1.0)
    assert torch.equal(net[0].weight[1], torch.zeros(1))
    assert net[0].bias[1] == 0
    assert all(factor[1].abs().sum() == 0 for factor in net[0].parameters())


def test_pruned_nodes_are_gone_after_compaction():
    net = network().double().eval()
    nodes(net, threshold=1.0)
    small = compact(net, torch.randn(1, 1).double())
    assert [small[i].out_features for i in (0, 2, 4)] == [1, 1, 2]  # nobody reads node 2, and with node 1 another dies
    x = torch.randn(20, 1).double()
    torch.testing.assert_close(small(x), net(x), rtol=1e-12, atol=1e-12)


def test_layers_with_one_weight_lose_the_same_nodes():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1))
    net[0].weight.data = torch.tensor([[3.0, 0.0, 0.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    net[1].weight = net[0].weight
    report = nodes(net, fraction=0.5)  # the third least relevant node is that of one layer alone
    assert report.killed == {"0": (1,), "1": (1,)}
    assert node_relevance(net[1]).tolist() == [3.0, 0.0, 2.0]


def test_layers_that_share_any_tensor_lose_the_same_nodes():
    net = nn.Sequential(
        *(sparsenn.nn.SpectralLinear(3, 3, train_lambda_in=True) for _ in range(2)), nn.Linear(3, 3), nn.Linear(3, 3)
    )
    with torch.no_grad():
        for layer in net[:2]:
            layer.phi.copy_(torch.eye(3))
        net[0].lambda_out.copy_(torch.tensor([0.01, 0.01, 1.0]))
        net[1].lambda_out.copy_(torch.tensor([1.0, 0.01, 0.01]))
        net[2].weight.copy_(torch.tensor([[0.01], [1.0], [0.01]]).expand(3, 3))
        net[3].weight.fill_(1.0)
    net[1].phi, net[2].bias = net[0].phi, net[1].bias
    assert nodes(net, threshold=0.1).killed == {"0": (), "1": (), "2": ()}
    with torch.no_grad():
        net[2].weight[1] = 0.0
    assert nodes(net, threshold=0.1).killed == {"0": (1,), "1": (1,), "2": (1,)}


@pytest.mark.parametrize("depth", [0, 2])
def test_a_weight_that_the_last_layer_shares_keeps_its_rows(depth):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[4].weight = net[0].weight
    if depth:
        sparsenn.factorize(net, depth)
    weight, x = net[0].weight.detach().clone(), torch.randn(8, 4)
    found = nodes(net, threshold=math.inf, keep=0)
    assert found.killed == {"0": (), "2": (0, 1, 2, 3)}
    assert torch.equal(net[4].weight, weight)
    assert torch.allclose(net(x), net[4].bias.expand(8, 4))  # the rest of the last layer's inputs are 0


def test_a_weight_that_an_embedding_shares_keeps_its_rows():
    net = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    net[0].weight = net[1].weight
    assert nodes(net, fraction=1.0, keep=0).killed == {"1": ()}
    assert net[0].weight.all()
    assert nodes(net, fraction=1.0, keep=0, layers=["3"]).killed == {"3": (0, 1)}


def test_a_metric_stops_the_pruning_before_it_falls_too_far():
    seen = []

    def metric(net: nn.Module) -> float:
        left = sum(int((node_relevance(net[i]) > 0).sum()) for i in (0, 2))
        seen.append(left)
        return -abs(left - 5.0)

    net = network()
    report = nodes_by_metric(net, metric, tolerance=2.0, step=0.2, keep=0)
    assert seen == [5, 4, 3, 2]
    assert report.killed == {"0": (1,), "2": (1,)}
    assert node_relevance(net[0]).tolist() == [5.0, 0.0, 3.0]
    assert node_relevance(net[2]).tolist() == [4.0, 0.0]


def test_a_metric_that_never_falls_lets_all_nodes_go_but_those_to_keep():
    assert nodes_by_metric(network(), lambda net: 0.0, tolerance=0.0, step=0.3).killed == {"0": (1, 2), "2": (1,)}


def test_a_metric_that_falls_at_once_leaves_the_model():
    net = network()
    before = copy.deepcopy(net.state_dict())
    values = iter([1.0, 0.0])
    assert nodes_by_metric(net, lambda net: next(values), tolerance=0.5, step=0.5).killed == {"0": (), "2": ()}
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_a_metric_that_fails_leaves_the_model():
    net = network()
    before = copy.deepcopy(net.state_dict())
    values = iter([1.0, 1.0])
    with pytest.raises(StopIteration):
        nodes_by_metric(net, lambda net: next(values), tolerance=0.5, step=0.2)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "threshold is None and fraction is None; it takes exactly one"),
        ({"threshold": 1.0, "fraction": 0.5}, "threshold is 1.0 and fraction is 0.5; it takes exactly one"),
        ({"threshold": -1.0}, "threshold is -1.0; it takes a number >= 0"),
        ({"fraction": 1.5}, "fraction is 1.5; it takes a number from 0 to 1"),
        ({"threshold": 9.0, "keep": -1}, "keep is -1; it takes an int >= 0"),
        ({"threshold": 9.0, "keep": 0.5}, "keep is 0.5; it takes an int >= 0"),
        ({"threshold": 9.0, "layers": "20"}, r"layers is '20'; it takes a sequence of names, such as \['20'\]"),
        (
            {"threshold": 9.0, "layers": ["2", "1"]},
            "layers holds '1'; it takes names of .*: 0, 2, 4",
        ),
    ],
)
def test_wrong_settings_are_named_and_nothing_dies(options, message):
    net = network()
    with pytest.raises(ValueError, match=f"^nodes: {message}"):
        nodes(net, **options)
    assert node_relevance(net[0]).tolist() == [5.0, 1.0, 3.0]


def test_a_parametrization_that_is_no_product_is_refused_before_anything_dies():
    net = network()
    nn.utils.parametrizations.weight_norm(net[2])
    with pytest.raises(ValueError, match="nodes: '2' computes its weight by _WeightNorm; remove that parametrization first"):
        nodes(net, threshold=9.0)
    assert node_relevance(net[0]).tolist() == [5.0, 1.0, 3.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"tolerance": -1.0}, "tolerance is -1.0"), ({"tolerance": 1, "step": 0}, "step is 0")],
)
def test_wrong_settings_of_the_search_are_named(options, message):
    with pytest.raises(ValueError, match=f"^nodes_by_metric: {message}; it takes a number"):
        nodes_by_metric(network(), lambda net: 0.0, **options)
