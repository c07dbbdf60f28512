import pytest
import torch

from sparsenn.data import taught
from sparsenn.models import build_student, teacher


def test_answers_are_the_teachers_and_inputs_standard_normal():
    net = teacher("baselineCNN", "tanh")
    x, y = taught(net, 20_000, seed=5)
    assert x.shape == (20_000, 12)
    assert x.dtype == y.dtype == torch.float32
    assert torch.equal(y, net(x))
    covariance = x.T @ x / len(x)
    assert (covariance - torch.eye(12)).abs().max() < 0.05
    assert x.mean(0).abs().max() < 0.03
    assert x.pow(4).mean() == pytest.approx(3, rel=0.03)


def test_the_seed_decides_and_dtypes_see_the_same_inputs():
    first, again, other = (taught(lambda x: x, 10, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    wide, _ = taught(lambda x: x, 10, seed=1, dtype=torch.float64)
    assert torch.equal(wide.float(), first)


def test_a_student_of_the_same_seed_is_not_made_of_the_same_numbers():
    x, _ = taught(lambda x: x, 300, seed=1, dtype=torch.float64)
    weight = build_student("fcn_256_32", "relu", seed=1)[0].weight.detach().double()
    normalised = weight / weight.std()
    gaps = (x.flatten()[:, None] - normalised.flatten()[None]).abs().min(0).values
    assert gaps.median() > 1e-6


@pytest.mark.parametrize("name", ["size", "inputs"])
def test_a_size_below_one_is_named(name):
    with pytest.raises(ValueError, match=f"{name} is 0; it takes 1 or more"):
        taught(lambda x: x, **{"size": 3, name: 0})
