"""What of a forward is stored: the calls that a trace shows, of one input, as the model itself answers."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as masks

import sparsenn


def test_functions_residuals_and_reshapes_are_traced(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 4, 3, padding="same"), nn.Conv2d(4, 4, 1)
            self.out = nn.Linear(4 * 9, 3)

        def forward(self, x):
            x = torch.relu(self.a(x))
            x = torch.add(x, self.b(nn.functional.gelu(x)))
            x = nn.functional.max_pool2d(x, 2)
            x += nn.functional.avg_pool2d(x, 3, 1, 1)
            return torch.softmax(self.out(x.view(x.size(0), -1)), -1)

    net, x = Net().eval(), torch.randn(2, 2, 6, 6)
    again = sparsenn.load(sparsenn.save(net, tmp_path / "net"))
    assert torch.equal(again(x), net(x))


class Reads(nn.Module):
    """Applies ``how`` to its layer and the input."""

    def __init__(self, how):
        super().__init__()
        self.layer, self.how = nn.Linear(4, 4), how

    def forward(self, x):
        return self.how(self.layer, x)


def changes_and_reads(layer, x):
    h = layer(x)
    return nn.functional.relu(h, inplace=True) + h


def reads_another_name(layer, x):
    h = y = layer(x)
    h += layer(x)
    return layer(y)


def reads_a_view(layer, x):
    h = layer(x)
    view = h.flatten(1)
    h.relu_()
    return view


@pytest.mark.parametrize("how", [changes_and_reads, reads_another_name, reads_a_view])
def test_what_an_operation_in_place_has_changed_is_not_read(how, tmp_path):
    with pytest.raises(ValueError, match="that an operation in place has changed"):
        sparsenn.save(Reads(how), tmp_path / "net")


def changes_what_was_read(layer, x):
    h = layer(x)
    y = layer(h)
    h += y
    return h.relu_()


def test_operations_in_place_are_stored_where_nobody_reads_what_was_before(tmp_path):
    net, x = Reads(changes_what_was_read), torch.randn(3, 4)
    with torch.no_grad():
        assert torch.equal(sparsenn.load(sparsenn.save(net, tmp_path / "net"))(x), net(x))


def test_a_model_is_stored_as_it_is_in_eval_mode_and_keeps_its_own(tmp_path):
    class Modes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return torch.relu(self.layer(x)) if self.training else self.layer(x)

    net = nn.Sequential(Modes(), nn.Linear(4, 4).eval())
    x, modes = torch.randn(3, 4), [m.training for m in net.modules()]
    again = sparsenn.load(sparsenn.save(net, tmp_path / "net"))
    assert [m.training for m in net.modules()] == modes
    with torch.no_grad():
        assert torch.equal(again(x), net.eval()(x))


def unused():
    net = nn.Sequential(nn.Linear(2, 2))
    net[0].register_buffer("count", torch.zeros(1))
    return net


def hooked():
    net = nn.Sequential(nn.Linear(2, 2))
    net[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    return net


def masked():
    net = nn.Sequential(nn.Linear(2, 2))
    masks.l1_unstructured(net[0], "weight", 0.5)
    return net


@pytest.mark.parametrize(
    ("build", "sentence"),
    [(unused, "['0.count']: the forward does not use them"), (hooked, "'0' (Linear) has forward hooks"), (masked, "remove()")],
)
def test_what_a_file_could_not_give_back_is_refused(build, sentence, tmp_path):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        sparsenn.save(build(), tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_masks_that_were_made_permanent_are_stored(tmp_path):
    net = masked()
    masks.remove(net[0], "weight")
    assert torch.equal(sparsenn.load(sparsenn.save(net, tmp_path / "net")).get_parameter("0.weight"), net[0].weight)


class Optional(nn.Module):
    """Arguments with defaults, which a trace must not take for inputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, targets=None, *rest, slope=None, skip=True, **more):
        y = self.layer(x)
        if targets is not None or rest or more:
            y = torch.softmax(y, 1)
        if slope is not None:
            y = torch.relu(y)
        return y + x if skip else y


class Wraps(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.layer(x)


def replaced_as_a_whole():
    net = Wraps()
    net.forward = lambda x: torch.relu(Wraps.forward(net, x))
    return net


def replaced_inside():
    return nn.Sequential(replaced_as_a_whole(), nn.Tanh())


@pytest.mark.parametrize(
    ("build", "sample"),
    [
        (Optional, (4,)),
        (lambda: nn.Sequential(Optional()), (4,)),
        (replaced_as_a_whole, (3, 5, 5)),
        (replaced_inside, (3, 5, 5)),
    ],
)
def test_what_is_stored_is_the_model_s_answer_to_one_input(build, sample, tmp_path):
    net, x = build().eval(), torch.randn(3, *sample)
    path = sparsenn.save(net, tmp_path / "net")
    with torch.no_grad():
        assert torch.equal(sparsenn.load(path)(x), net(x))


def replaced_layer():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    net[0].forward = lambda x: 2 * nn.Linear.forward(net[0], x)
    return net


def by_type(layer, x):
    return layer(x) if isinstance(x, torch.Tensor) else torch.relu(layer(x))


def every_other_time():
    calls = []

    def how(layer, x):
        calls.append(x)
        return layer(x) if len(calls) % 2 else torch.relu(layer(x))

    return how


class Images(Reads):
    """Its layer says neither how high nor how wide an image is, but the pooling and the last layer do."""

    def __init__(self, how):
        super().__init__(how)
        self.layer, self.last = nn.Conv2d(2, 4, 3), nn.Linear(4 * 5 * 5, 2)

    def forward(self, x):
        return self.last(nn.functional.max_pool2d(self.how(self.layer, x), 2).flatten(1))


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (replaced_layer, "save: '0' (Linear) cannot be traced by torch.fx: its forward was replaced on the instance"),
        (lambda: replaced_layer()[0], "save: '0' (Linear) cannot be traced by torch.fx: its forward was replaced"),
        (lambda: Reads(by_type), "an example of shape (2, 4); its forward does what a trace does not show"),
        (lambda: Reads(every_other_time()), "give another output than the model"),
        (lambda: Images(by_type), "an example of shape (2, 2, 12, 12)"),
        (lambda: Reads(lambda layer, x: nn.functional.dropout(layer(x))), "random in eval mode"),
    ],
)
def test_what_is_not_what_was_traced_is_refused(build, sentence, tmp_path):
    with pytest.raises(ValueError, match=f"{re.escape(sentence)}.*architecture=False"):
        sparsenn.save(build(), tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_an_example_compares_where_the_layers_do_not_say_its_shape(tmp_path):
    class Flat(Images):
        def __init__(self, how):
            super().__init__(how)
            self.last = nn.Linear(4 * 2 * 7, 2)  # of images that are no squares

    sparsenn.save(Flat(by_type), tmp_path / "net")
    with pytest.raises(ValueError, match=r"give another output than the model for an example of shape \(1, 2, 6, 17\)"):
        sparsenn.save(Flat(by_type), tmp_path / "net", example_input=torch.randn(1, 2, 6, 17))
    with pytest.raises(
        ValueError, match=r"save: the model fails on an example of shape \(1, 2, 6, 6\): .*mat1.*example_input takes"
    ):
        sparsenn.save(Flat(by_type), tmp_path / "net", example_input=torch.randn(1, 2, 6, 6))
    net, x = Flat(lambda layer, x: layer(x)), torch.randn(3, 2, 6, 17)
    path = sparsenn.save(net, tmp_path / "net", example_input=x)
    assert torch.equal(sparsenn.load(path)(x), net(x))


def test_the_comparison_draws_no_numbers_from_the_user_s_generator(tmp_path):
    net, before = Images(lambda layer, x: layer(x)), torch.get_rng_state()
    sparsenn.save(net, tmp_path / "net")
    assert torch.equal(before, torch.get_rng_state())
