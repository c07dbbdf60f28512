import pytest
import torch
from torch import nn

import sparsenn
from sparsenn.models import feature_head, soft_committee


def test_a_teacher_is_the_sum_of_its_last_hidden_layer():
    teacher = soft_committee(10, (20, 20)).double()
    x = torch.randn(7, 10, dtype=torch.float64)
    w1, w2 = teacher[0].weight, teacher[2].weight
    expected = ((x @ w1.T).clamp(min=0) @ w2.T).clamp(min=0).sum(1, keepdim=True)
    torch.testing.assert_close(teacher(x), expected, rtol=1e-12, atol=0)
    assert [tuple(p.shape) for p in teacher.parameters()] == [(20, 10), (20, 20), (1, 20)]
    assert [p.requires_grad for p in teacher.parameters()] == [True, True, False]


def test_weights_start_by_glorot_s_uniform_draw():
    net = soft_committee(200, (300, 100))
    for layer, bound in ((net[0], (6 / 500) ** 0.5), (net[2], (6 / 400) ** 0.5)):
        weight = layer.weight.detach()
        assert float(weight.abs().max()) <= bound
        assert float(weight.square().mean()) == pytest.approx(bound**2 / 3, rel=0.02)


def test_both_students_start_with_the_same_links():
    torch.manual_seed(3)
    direct = soft_committee(10, (50, 20))
    torch.manual_seed(3)
    student = sparsenn.spectralize(soft_committee(10, (50, 20)), include="0")
    assert torch.equal(student[0].phi, -direct[0].weight)
    assert (student[0].lambda_out == 1).all()
    assert not student[4].weight.requires_grad
    x = torch.randn(5, 10)
    torch.testing.assert_close(student(x), direct(x))


def test_more_outputs_are_classes_whose_weights_are_trained():
    net = soft_committee(6, (4,), outputs=3)
    assert net(torch.randn(2, 6)).shape == (2, 3)
    assert all(p.requires_grad for p in net.parameters())
    assert net[2].weight.std() > 0


def test_the_head_has_three_layers_and_batch_normalization():
    head = feature_head(12, (7, 5), outputs=4)
    assert [type(layer) for layer in head] == [
        nn.Linear,
        nn.BatchNorm1d,
        nn.ReLU,
        nn.Linear,
        nn.BatchNorm1d,
        nn.ReLU,
        nn.Linear,
    ]
    before = head(torch.randn(8, 12))
    assert before.shape == (8, 4)
    sparsenn.spectralize(head)
    assert sum(hasattr(layer, "phi") for layer in head) == 3


@pytest.mark.parametrize("make", [soft_committee, feature_head])
def test_sizes_are_checked(make):
    with pytest.raises(ValueError, match="hidden is empty"):
        make(10, ())
    with pytest.raises(ValueError, match="hidden is 0; it takes 1 or more"):
        make(10, (20, 0))
    with pytest.raises(ValueError, match="in_features is 0"):
        make(0, (20, 20))
