"""The penalties of Equations 7 and 8: their value by hand, their gradient, and where they are looked for."""

import pytest
import torch
from cases import DTYPES
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

import sparsenn
from sparsenn.penalties import spectral


def mixed(dtype=torch.float64) -> nn.Sequential:
    return nn.Sequential(
        sparsenn.nn.SpectralConv2d(2, 3, 2, train_lambda_in=True, lambda_in_init=nn.init.normal_),
        sparsenn.nn.SpectralGate(3, init=nn.init.normal_),
        nn.Flatten(),
        sparsenn.nn.SpectralLinear(12, 4, lambda_out_init=nn.init.normal_),
        nn.Linear(4, 2),
    ).to(dtype)


def test_the_value_is_the_sum_written_out():
    net = mixed()
    lambdas = [net[0].lambda_in, net[0].lambda_out, net[1].lambda_out, net[3].lambda_out]
    phis = [net[0].phi, net[3].phi]
    total = 0.0
    for alpha, tensors in ((0.3, lambdas), (0.05, phis), (2.0, [net[4].weight])):
        total += alpha * sum(v**2 for tensor in tensors for v in tensor.flatten().tolist())
    value = spectral(net, alpha_lambda=0.3, alpha_phi=0.05, alpha_w=2.0)
    assert value.shape == ()
    assert float(value) == pytest.approx(total, rel=1e-13)


def test_the_gradient_is_twice_alpha_times_each_tensor_and_leaves_biases_alone():
    net = mixed()
    spectral(net, alpha_lambda=0.3, alpha_phi=0.05, alpha_w=2.0).backward()
    for name, p in net.named_parameters():
        alpha = {"lambda_in": 0.3, "lambda_out": 0.3, "phi": 0.05, "weight": 2.0}.get(name.split(".")[1])
        if alpha is None:
            assert p.grad is None
        else:
            torch.testing.assert_close(p.grad, 2 * alpha * p.detach(), rtol=1e-14, atol=0)
    parameters = [p for name, p in net.named_parameters() if "bias" not in name]
    assert torch.autograd.gradcheck(lambda *_: spectral(net, alpha_lambda=0.3, alpha_phi=0.05, alpha_w=2.0), parameters)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_half_types_are_added_up_in_float32(dtype):
    layer = nn.Linear(300, 300, bias=False).to(dtype)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    value = spectral(layer, alpha_w=1.0, layers=[""])
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert float(value) == 90_000  # beyond float16, and beyond what bfloat16 can count to


def test_a_strength_of_zero_makes_no_term():
    net = mixed()
    with torch.no_grad():
        net[4].weight.fill_(1e300)  # whose square would be infinite
    spectral(net, alpha_lambda=0.3).backward()
    assert [name for name, p in net.named_parameters() if p.grad is not None] == [
        name for name, _ in net.named_parameters() if "lambda" in name
    ]


def test_what_layers_share_counts_once():
    first, second = sparsenn.nn.SpectralLinear(3, 3), sparsenn.nn.SpectralLinear(3, 3)
    plain, other = nn.Linear(3, 3), nn.Linear(3, 3)
    second.phi, other.weight = first.phi, plain.weight
    net = nn.Sequential(first, second, plain, other).double()
    wanted = 2.0 * first.phi.square().sum() + 3.0 * plain.weight.square().sum() + 0.5 * 6  # eigenvalues of 1
    torch.testing.assert_close(spectral(net, alpha_lambda=0.5, alpha_phi=2.0, alpha_w=3.0), wanted)


def test_a_strength_may_be_a_tensor_of_one_element():
    net, alpha = mixed(), torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    value = spectral(net, alpha_lambda=alpha)
    assert value.shape == ()
    torch.testing.assert_close(value, spectral(net, alpha_lambda=0.3))
    value.backward()
    torch.testing.assert_close(alpha.grad[0], value.detach() / 0.3)


def test_the_equations_and_the_code_differ_in_the_second_layer():
    student = sparsenn.models.soft_committee(3, (5, 4))
    first, second = (float(student[i].weight.square().sum()) for i in (0, 2))
    assert float(spectral(student, alpha_w=0.1, layers=["0"])) == pytest.approx(0.1 * first)
    assert float(spectral(student, alpha_w=0.1, layers=["0", "2"])) == pytest.approx(0.1 * (first + second))
    assert float(spectral(student, alpha_w=0.1, layers=["2", "2"])) == pytest.approx(0.1 * second)
    sparsenn.spectralize(student, include="0")
    value = spectral(student, alpha_lambda=0.01, alpha_phi=0.1, layers=["0"])
    assert float(value) == pytest.approx(0.01 * 5 + 0.1 * first)
    assert float(spectral(student, alpha_w=0.1, layers=["0"])) == 0


def test_factorized_weights_count_as_their_product():
    net = sparsenn.factorize(nn.Sequential(nn.Linear(4, 3)), 2)
    assert float(spectral(net, alpha_w=0.5)) == pytest.approx(0.5 * float(net[0].weight.square().sum()))


def test_it_acts_on_the_parameters_that_torch_func_puts_in():
    nets = [sparsenn.spectralize(nn.Sequential(nn.Linear(4, 3)).double()) for _ in range(3)]
    for net in nets:
        nn.init.normal_(net[0].lambda_out)

    class Penalised(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self):
            return spectral(self.net, alpha_lambda=0.2, alpha_phi=0.7)

    parameters, _ = stack_module_state([Penalised(net) for net in nets])
    values = vmap(lambda own: functional_call(Penalised(nets[0]), own, ()))(parameters)
    torch.testing.assert_close(values, torch.stack([spectral(net, alpha_lambda=0.2, alpha_phi=0.7) for net in nets]))
    slopes = vmap(grad(lambda own: functional_call(Penalised(nets[0]), own, ())))(parameters)
    torch.testing.assert_close(slopes["net.0.phi"], 1.4 * parameters["net.0.phi"])


def test_the_minimum_over_a_node_s_factors_is_a_group_lasso():
    w = torch.randn(3, 4, dtype=torch.float64)
    alpha_lambda, alpha_phi = 5e-4, 1e-2
    balance = (alpha_phi / alpha_lambda) ** 0.25 * w.norm(dim=1).sqrt()
    layer = sparsenn.nn.SpectralLinear(4, 3, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.lambda_out.copy_(balance)
        layer.phi.copy_(-w / balance[:, None])
    torch.testing.assert_close(layer.weight.detach(), w)
    lowest = float(spectral(layer, alpha_lambda=alpha_lambda, alpha_phi=alpha_phi))
    lasso = sparsenn.penalties.GroupL1(2 * (alpha_lambda * alpha_phi) ** 0.5, "rows", weighted=False)
    assert lowest == pytest.approx(float(lasso.value(w)), rel=1e-12)
    for factor in (0.9, 1.1):
        with torch.no_grad():
            layer.lambda_out.copy_(factor * balance)
            layer.phi.copy_(-w / (factor * balance[:, None]))
        assert float(spectral(layer, alpha_lambda=alpha_lambda, alpha_phi=alpha_phi)) > lowest


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha_lambda": -1.0}, "alpha_lambda is -1.0"),
        ({"alpha_phi": float("nan")}, "alpha_phi is nan"),
        ({"alpha_w": torch.tensor([1.0, -1.0])}, "alpha_w holds a negative"),
        ({"alpha_w": torch.ones(2)}, r"alpha_w is a tensor of shape \(2,\); it takes a single number"),
        ({"layers": ["0", "7"]}, "layers holds '7'; it takes names of linear layers and convolutions: '0', '1', '3', '4'"),
    ],
)
def test_errors_name_the_argument(given, message):
    with pytest.raises(ValueError, match=message):
        spectral(mixed(), **given)


def test_a_model_without_layers_is_refused_and_no_layers_cost_nothing():
    with pytest.raises(ValueError, match="model is a ReLU"):
        spectral(nn.ReLU())
    assert float(spectral(mixed(), alpha_w=1.0, layers=[])) == 0
    with pytest.raises(ValueError, match="no layer has what alpha_lambda and alpha_phi would count; spectralize makes"):
        spectral(nn.Sequential(nn.Linear(3, 2)), alpha_lambda=5e-4, alpha_phi=1e-2)
    assert float(spectral(nn.Linear(3, 2), alpha_lambda=5e-4, alpha_w=1.0)) > 0
    assert float(spectral(nn.Linear(3, 2))) == 0
