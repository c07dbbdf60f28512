import math

import pytest
import torch

from sparsenn.models.teachers import TEACHERS, teacher


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def test_the_baseline_by_hand():
    x = torch.randn(12, dtype=torch.float64).tolist()
    first = [sigmoid(sum(w * v for w, v in zip((2.59, -2.83, 0.87), x[i : i + 3], strict=True))) for i in (0, 3, 6, 9)]
    second = [sigmoid(-1.38 * first[i] + 1.29 * first[i + 1]) for i in (0, 2)]
    expected = sigmoid(0.86 * second[0] - 0.84 * second[1])
    net = teacher("baselineCNN", "sigmoid", dtype=torch.float64)
    assert net(torch.tensor([x], dtype=torch.float64)).item() == pytest.approx(expected, rel=1e-14)


def test_the_split_filter_alternates():
    x = torch.randn(12, dtype=torch.float64).tolist()
    filters = ((2.59, -2.83, 0.87), (-1.22, 0.45, 0.88))
    first = [math.tanh(sum(w * v for w, v in zip(filters[i % 2], x[3 * i : 3 * i + 3], strict=True))) for i in range(4)]
    second = [math.tanh(a * first[i] + b * first[i + 1]) for i, a, b in ((0, -1.38, 1.29), (2, 0.35, -0.73))]
    expected = math.tanh(0.86 * second[0] - 0.84 * second[1])
    net = teacher("splitFilterCNN", "tanh", dtype=torch.float64)
    assert net(torch.tensor([x], dtype=torch.float64)).item() == pytest.approx(expected, rel=1e-14)


def test_the_multi_channel_teacher_has_the_published_numbers():
    net = teacher("multiChannelCNN", "relu", dtype=torch.float64)
    first, second, third = (net[i].weight[0] for i in (1, 3, 5))
    assert first[2, 0].tolist() == [-0.73, 1.96, -1.01]
    assert second[1, 2].tolist() == [-1.26, 0.30]
    assert second[3, 0].tolist() == [0.89, -0.48]
    assert third[0, 3].tolist() == [-0.22, 0.81]
    assert sum(int((w != 0).sum()) for w in (first, second, third)) == 51


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_needs_no_gradient_and_no_randomness(name):
    first, second = (teacher(name, "relu") for _ in range(2))
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_wrong_names():
    with pytest.raises(ValueError, match="unknown name 'fcn_256_32'; known are baselineCNN, splitFilterCNN, multiChannelCNN"):
        teacher("fcn_256_32", "relu")
    with pytest.raises(ValueError, match="unknown activation 'swish'"):
        teacher("baselineCNN", "swish")
