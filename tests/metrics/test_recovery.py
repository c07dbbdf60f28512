from itertools import permutations

import pytest
import torch
from torch import nn

from sparsenn.metrics import nonzero_counts, support_recovery, teacher_distance
from sparsenn.metrics.recovery import unrolled
from sparsenn.models import build_student, fcn, multi_channel_cnn, teacher
from sparsenn.nn import PatchConv1d

pytest.importorskip("scipy")


def dense(*matrices):
    net = nn.Sequential(*[nn.Linear(m.shape[1], m.shape[0], bias=False) for m in matrices])
    with torch.no_grad():
        for layer, matrix in zip(net, matrices, strict=True):
            layer.weight.copy_(matrix)
    return net


def test_the_unrolled_network_has_the_same_function():
    for name in ("baselineCNN", "splitFilterCNN", "multiChannelCNN", "fcn_128_128"):
        net = build_student(name, "tanh", seed=3)
        x = expected = torch.randn(9, 12, dtype=torch.float64)
        for matrix in unrolled(net):
            expected = torch.tanh(expected @ matrix.t())
        torch.testing.assert_close(net.double()(x), expected)


def test_the_distance_is_the_best_of_all_matchings():
    for absolute in (False, True):
        expected = 0.0
        small = nn.Sequential(nn.Linear(1, 3, bias=False), nn.Linear(3, 1, bias=False))
        large = nn.Sequential(nn.Linear(1, 5, bias=False), nn.Linear(5, 1, bias=False))
        for a, b in zip(small.parameters(), large.parameters(), strict=True):
            t, s = ([abs(v) if absolute else v for v in p.detach().double().flatten().tolist()] for p in (a, b))
            apart = {c: [abs(t[i] - s[k]) for i, k in enumerate(c)] for c in permutations(range(5), 3)}
            best = min(apart, key=lambda c: (round(sum(apart[c]), 12), sum(d * d for d in apart[c])))
            expected += sum(d * d for d in apart[best]) ** 0.5 + sum(s[k] ** 2 for k in range(5) if k not in best) ** 0.5
        assert teacher_distance(small, large, absolute=absolute) == pytest.approx(expected, rel=1e-12)
        assert teacher_distance(large, small, absolute=absolute) == pytest.approx(expected, rel=1e-12)


def test_the_order_of_weights_and_what_is_below_the_threshold_do_not_count():
    net = teacher("baselineCNN", "relu")
    student = multi_channel_cnn()
    with torch.no_grad():
        for layer, own in zip((student[1], student[3], student[5]), (net[1], net[3], net[5]), strict=True):
            layer.weight.fill_(9e-5)
            layer.weight[0, 0, -1] = own.weight[0, 0, 0].flip(0)
    assert teacher_distance(net, student) == pytest.approx(0, abs=1e-6)
    assert teacher_distance(net, student, threshold=0) > 9e-4
    assert nonzero_counts(student) == (3, 2, 2)
    assert nonzero_counts(student, 0) == (12, 32, 8)


def embed(matrices, widths, seed):
    """The same network with its hidden units scattered over wider layers."""
    generator = torch.Generator().manual_seed(seed)
    places = [torch.arange(12), *[torch.randperm(w, generator=generator) for w in widths], torch.arange(1)]
    wide = []
    for matrix, inputs, outputs in zip(matrices, places, places[1:], strict=False):
        new = torch.zeros(len(outputs), len(inputs), dtype=matrix.dtype)
        new[outputs[: len(matrix), None], inputs[None, : matrix.shape[1]]] = matrix
        wide.append(new)
    return dense(*wide)


@pytest.mark.parametrize("name", ["baselineCNN", "splitFilterCNN", "multiChannelCNN"])
def test_a_hidden_copy_of_the_teacher_is_found_whole(name):
    net = teacher(name, "relu")
    student = embed(unrolled(net), (40, 20), seed=1)
    recovery = support_recovery(net, student)
    assert (recovery.precision, recovery.recall) == (1.0, 1.0)
    assert recovery.wanted == sum(nonzero_counts(student))
    if name == "baselineCNN":
        assert nonzero_counts(student) == (12, 4, 2)


def test_weights_too_many_and_too_few_are_counted():
    net = teacher("baselineCNN", "relu")
    student = embed(unrolled(net), (10, 5), seed=2)
    with torch.no_grad():
        row = student[0].weight.count_nonzero(1).argmax()
        student[0].weight[row] = 1.0  # nine inputs too many for one unit
        student[2].weight[0, student[2].weight[0].argmax()] = 0.0  # one of two halves is cut off
    recovery = support_recovery(net, student)
    assert recovery.wanted == 18
    assert recovery.hits == 3 + 3 + 2 + 1
    assert recovery.found in (9, 18)  # the wide unit may lie in the half that is cut off
    assert recovery.recall == 0.5
    assert recovery.precision == 9 / recovery.found


def test_what_shared_filters_compute_in_vain_is_not_counted():
    """A perfect student of splitFilterCNN uses each of two channels at every other position only."""
    net = teacher("splitFilterCNN", "relu")
    student = multi_channel_cnn()
    a, b = net[1].weight[0], net[1].weight[1]
    with torch.no_grad():
        for i in (1, 3, 5):
            student[i].weight.zero_()
        student[1].weight[0, 0], student[1].weight[0, 2] = a[0], b[0]
        for out, f in ((1, 0), (3, 1)):
            student[3].weight[0, out, 0, 0], student[3].weight[0, out, 2, 1] = net[3].weight[f, 0, 0]
        student[5].weight[0, 0, 1, 0], student[5].weight[0, 0, 3, 1] = net[5].weight[0, 0, 0]
    x = torch.randn(7, 12)
    torch.testing.assert_close(student(x), net(x))
    assert nonzero_counts(student) == (6, 4, 2)
    recovery = support_recovery(net, student)
    assert (recovery.hits, recovery.found, recovery.wanted) == (18, 18, 18)


def test_no_connection_is_no_precision():
    student = dense(torch.zeros(3, 12), torch.zeros(3, 3), torch.zeros(1, 3))
    recovery = support_recovery(teacher("baselineCNN", "tanh"), student)
    assert (recovery.precision, recovery.recall) == (0.0, 0.0)


def test_networks_that_do_not_compare_are_refused():
    with pytest.raises(ValueError, match="the teacher has 3 layers, the student 2"):
        teacher_distance(teacher("baselineCNN", "relu"), fcn((4,)))
    with pytest.raises(ValueError, match="the teacher has 1 outputs, the student 2"):
        support_recovery(dense(torch.ones(1, 12)), dense(torch.ones(2, 12)))
    with pytest.raises(ValueError, match="is given 12 values; it takes 11"):
        unrolled(dense(torch.ones(1, 11)))
    with pytest.raises(ValueError, match="is given 12 values; it takes 5"):
        unrolled(nn.Sequential(PatchConv1d(5, 1, 2)))
