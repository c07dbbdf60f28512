"""What stacks and their fused operator do not take, and how they say it."""

import numpy as np
import pytest
import torch
from stack_cases import Residual, data_sets
from torch import nn

from sparsenn.models import baseline_cnn, fcn, split_filter_cnn
from sparsenn.ops import PatchLayer
from sparsenn.training import ConfigError
from sparsenn.training.stacked import Run, Stack
from sparsenn.training.stacked.fused_engine import NotCoveredError, layers_of
from sparsenn.training.stacked.rows import Task


class Uncopied(nn.Linear):
    def __init__(self):
        super().__init__(12, 1)

    def __deepcopy__(self, memo):
        raise TypeError("no copy, please\nreally")


class Failing(nn.Linear):
    """Raises in its forward, whatever that is."""

    def __init__(self, error):
        super().__init__(12, 1)
        self.error = error

    def forward(self, x):
        raise self.error


class FromTwo(nn.Linear):
    """Takes batches of two samples and more."""

    def forward(self, x):
        if len(x) < 2:
            raise ValueError("a batch of one")
        return super().forward(x)


_one_at_a_time = nn.Sequential(nn.Unflatten(0, (1, 1)), nn.Flatten(0, 1), nn.Linear(12, 1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"runs": []}, "it got 2 modules and 0 runs"),
        ({"modules": [], "runs": []}, "it got 0 modules and 0 runs; it takes one of each for every run, 1 or more"),
        ({"runs": [{}, {}]}, r"runs\[0\] is of type dict; it takes a list of Run objects"),
        ({"runs": [Run(), Run]}, r"runs\[1\] is of type type; it takes a list of Run objects"),
        ({"runs": Run()}, "runs is of type Run; it takes a list of Run objects"),
        ({"runs": {"lr": 0.1, "seed": 1}}, "runs is of type dict"),
        ({"modules": fcn((2,))}, "modules is of type Sequential; it takes a list of networks, a torch.nn.Module for each run"),
        ({"modules": [torch.tanh] * 2}, r"modules\[0\] is of type builtin_function_or_method; it takes a list of networks"),
        ({"modules": iter(())}, "modules is of type tuple_iterator"),
        ({"data": None}, r"data is of type NoneType; it takes a list of pairs \(x, y\) of tensors"),
        ({"data": (torch.ones(3, 12), torch.ones(3, 1))}, r"data\[0\] is a tensor of .*; it takes a list of pairs \(x, y\)"),
        ({"data": [(torch.ones(3, 12),)]}, r"data\[0\] is of type tuple; it takes a list of pairs"),
        ({"data": []}, "run 0 has data 0; there are 0 data sets"),
        ({"data": [(np.ones((3, 12)), np.ones((3, 1)))]}, "x of data set 0 is of type ndarray; it takes a tensor of floating-"),
        ({"data": [(torch.ones(3, 12), [1, 2, 3])]}, "y of data set 0 is of type list; with loss mse it takes a tensor of"),
        ({"data": [(torch.ones(3, 12), torch.ones(()))]}, r"y of data set 0 is a tensor of torch.float32 in shape \(\); "),
        ({"data": [(torch.ones(3, 12, device="meta"), torch.ones(3, 1))]}, r"in shape \(3, 12\) that has no values; it takes"),
        ({"data": [(torch.ones(3, 12).to_sparse(), torch.ones(3, 1))]}, r"in shape \(3, 12\) that is sparse; it takes"),
        ({"batch_size": 0}, "batch_size is 0; it takes a whole number from 1 to 2147483647"),
        ({"batch_size": 2.0}, "batch_size is 2.0"),
        ({"batch_size": 2**70}, "batch_size is 1180591620717411303424; it takes a whole number from 1 to 2147483647"),
        ({"batch_size": True}, "batch_size is True"),
        ({"patience": 0}, "patience is 0; it takes a whole number from 1 to 2147483647, or None"),
        ({"patience": 2**70}, "patience is 1180591620717411303424"),
        ({"max_epochs": [1]}, r"max_epochs is \[1\]; it takes a whole number from 1 to 2147483647, or a list of 2 of them"),
        ({"max_epochs": 0}, "max_epochs is 0"),
        ({"max_epochs": [1, 2**70]}, r"max_epochs is \[1, 1180591620717411303424\]"),
        ({"max_epochs": np.array([3, 3])}, r"max_epochs is array\(\[3, 3\]\)"),
        ({"max_epochs": [1] * 100}, r"max_epochs is \[1, 1, [1, ]*\.\.\.; it takes"),
        ({"dtype": torch.float16}, "dtype is torch.float16; it takes torch.float32 or torch.float64"),
        ({"dtype": "float32"}, "dtype is 'float32'; it takes torch.float32 or torch.float64"),
        ({"device": "gpu"}, "device is 'gpu'; it takes cpu, cuda or cuda:<index>"),
        ({"device": torch.device("meta")}, r"device is device\(type='meta'\); it takes cpu, cuda"),
        ({"device": "cuda:99"}, "device is 'cuda:99', but .*; device cpu works everywhere"),
        ({"device": None}, "device is None; it takes cpu"),
        ({"engine": np.array(["auto", "torch"])}, r"engine is array\(.*; it takes one of auto, fused, torch"),
        ({"loss": "hinge"}, "loss is 'hinge'; it takes one of mse, cross_entropy"),
        ({"engine": "gpu"}, "engine is 'gpu'; it takes one of auto, fused, torch"),
        ({"runs": [Run(), Run(data=1)]}, "run 1 has data 1; there are 1 data sets"),
        ({"data": [(torch.ones(3, 12).int(), torch.ones(3, 1))]}, "x of data set 0 is a tensor of torch.int32"),
        ({"data": [(torch.ones(0, 12), torch.ones(0, 1))]}, "it takes a tensor of floating-point samples"),
        (
            {"data": [(torch.ones(3, 12), torch.ones(2, 1))]},
            r"y of data set 0 .* takes a tensor of floating-point targets \(3, ...\)",
        ),
        (
            {"data": [(torch.ones(3, 12), torch.ones(3, 1))], "loss": "cross_entropy"},
            r"it takes a tensor of int64 classes \(3,\)",
        ),
        ({"data": [(torch.ones(n, 12), torch.ones(n, 1)) for n in (3, 4)]}, "the data sets of a stack have one shape"),
        (
            {"data": [(torch.ones(3, 12), torch.ones(3, dtype=torch.bool))], "loss": "cross_entropy"},
            r"y of data set 0 is a tensor of torch.bool in shape \(3,\); with loss cross_entropy it takes a tensor of int64 ",
        ),
        ({"data": [(torch.ones(3, 12), torch.ones(3))]}, r"the output has shape \(3, 1\), the targets \(3,\)"),
        ({"data": [(torch.ones(3, 5), torch.ones(3, 1))]}, "a step of Sequential fails under torch.func.vmap"),
        ({"modules": [fcn((2,)), fcn((3,))]}, "module 1 has parameters of shapes"),
        ({"modules": [nn.Sequential(nn.Linear(12, 1), nn.Dropout(0.1))] * 2}, r"module 0 has random layers \(1\)"),
        ({"modules": [nn.Sequential(nn.BatchNorm1d(12), nn.Linear(12, 1))] * 2}, "module 0 has buffers .*running_mean"),
        ({"modules": [nn.Linear(12, 1).requires_grad_(False)] * 2}, r"that do not require grad \(weight, bias\)"),
        ({"modules": [nn.ReLU()] * 2}, "module 0 has no parameters"),
        ({"modules": [fcn((2,)), nn.LazyLinear(1)]}, r"module 1 has parameters without real numbers \(weight, bias\)"),
        ({"modules": [nn.Linear(12, 1, device="meta")] * 2}, "module 0 has parameters without real numbers"),
        ({"modules": [nn.Linear(12, 1, dtype=torch.complex64)] * 2}, "module 0 has parameters without real numbers"),
        ({"modules": [Uncopied()] * 2}, r"module 0 can't be copied by copy.deepcopy: no copy, please$"),
        ({"modules": [nn.LSTM(12, 1)] * 2}, "a step of LSTM fails under torch.func.vmap: the output is of type tuple and no"),
        ({"modules": [Failing(KeyError("key"))] * 2}, "a step of Failing fails under torch.func.vmap: 'key'$"),
        ({"modules": [Failing(AssertionError())] * 2}, "a step of Failing fails under torch.func.vmap: AssertionError$"),
        ({"modules": [_one_at_a_time] * 2}, "a step of Sequential fails under torch.func.vmap: .*unflatten"),
        ({"modules": [FromTwo(12, 1)] * 2, "batch_size": 2}, "a step of FromTwo fails under torch.func.vmap: a batch of one$"),
        ({"modules": [Residual()] * 2, "engine": "fused"}, "does not cover a Residual; it covers chains of Linear"),
    ],
)
def test_what_is_no_stack_is_refused_in_a_sentence(given, message):
    arguments = {"modules": [fcn((2,)), fcn((2,))], "runs": [Run(), Run()], "data": [(torch.ones(3, 12), torch.ones(3, 1))]}
    arguments |= {"max_epochs": 1, **given}
    with pytest.raises(ValueError, match=message) as caught:
        Stack(arguments.pop("modules"), arguments.pop("runs"), arguments.pop("data"), **arguments)
    assert str(caught.value).startswith("Stack: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr": 0.0}, "Run: lr is 0.0; it takes a number above 0"),
        ({"lr": [0.1]}, r"lr is \[0.1\]; it takes a number"),
        ({"seed": -1}, "seed is -1"),
        ({"optimizer": "lion"}, "optimizer is 'lion'; it takes one of sgd, prox, factorized, adam"),
        ({"momentum": 1}, "momentum is 1"),
        ({"lam": float("nan"), "penalty": "l1"}, "lam is nan"),
        ({"lam": 0.1}, "lam is 0.1 and has no effect"),
        ({"optimizer": "prox", "penalty": "l1"}, "takes penalty 'none'"),
        ({"optimizer": "factorized", "clipping": 0.1}, "optimizer factorized takes 0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; it takes a number, 0 or more"),
        ({"betas": (0.9, 1.0)}, "betas is"),
        ({"depth": 0}, "depth is 0"),
        ({"depth": 10**9}, "depth is 1000000000; it takes a whole number from 1 to 64"),
        ({"data": 1.0}, "data is 1.0; it takes the index of a data set"),
        ({"lr": 10**400}, r"lr is 10+\.\.\.; it takes a number above 0"),
        ({"lam": torch.ones(2, 2)}, r"lam is tensor\(\[\[1\., 1\.\], \[1\., 1\.\]\]\); it takes a number, 0 or more"),
        ({"optimizer": ["sgd"]}, r"optimizer is \['sgd'\]; it takes one of"),
        ({"data": True}, "data is True"),
    ],
)
def test_a_run_with_a_wrong_setting_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        Run(**given)


@pytest.mark.parametrize(
    "kind", [nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU]
)
def test_a_layer_that_draws_is_refused(kind):
    net = nn.Sequential(nn.Linear(12, 1), kind())
    with pytest.raises(ValueError, match=r"Stack: module 0 has random layers \(1\); a stack takes none"):
        Stack([net], [Run()], data_sets()[:1], max_epochs=1)


def task(inputs: int, outputs: int) -> Task:
    return Task(torch.ones(1, 4, inputs), torch.ones(1, 4, outputs), 2, "mse")


def test_the_structure_that_the_operator_is_given():
    net = nn.Sequential(nn.Linear(12, 5), nn.Sequential(nn.Tanh(), nn.Linear(5, 2, bias=False)), nn.Identity())
    assert layers_of(net, task(12, 2)) == ([PatchLayer(12, 5, bias=True), PatchLayer(5, 2)], "tanh", "identity")
    layers, between, last = layers_of(split_filter_cnn("gelu"), task(12, 1))
    assert layers == [PatchLayer(1, 1, 12, 3, 2), PatchLayer(1, 1, 4, 2, 2), PatchLayer(1, 1, 2, 2, 1)]
    assert (between, last) == ("gelu", "gelu")
    assert layers_of(nn.Linear(12, 1), task(12, 1))[1:] == ("identity", "identity")


_shared = nn.Linear(12, 12)
_hooked = nn.Linear(12, 1)
_hooked.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    ("net", "why"),
    [
        (nn.Sequential(nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)), "several activations"),
        (nn.Sequential(nn.ReLU(), nn.Linear(12, 1)), "a ReLU in this place"),
        (nn.Sequential(nn.Linear(12, 1), nn.GELU("tanh")), "a GELU in this place"),
        (nn.Sequential(nn.Linear(12, 1), nn.ReLU(), nn.Tanh()), "a Tanh in this place"),
        (nn.Sequential(nn.Linear(12, 1), nn.ELU()), "a ELU"),
        (nn.Sequential(_shared, _shared, nn.Linear(12, 1)), "parameters that layers share"),
        (nn.Linear(11, 1), r"a Linear of 11 inputs on a sample of shape \(12,\)"),
        (nn.Linear(12, 2), "an output of length 2 for targets of length 1"),
        (nn.Sequential(*list(baseline_cnn())[:-1]), "an output that is not a vector"),
        (_hooked, "forward hooks"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(12, 1)), "a ParametrizedLinear"),
    ],
)
def test_what_the_operator_does_not_cover_is_named(net, why):
    with pytest.raises(NotCoveredError, match=why):
        layers_of(net, task(12, 1))


def test_the_stack_says_which_way_it_goes():
    data = [(torch.ones(3, 12), torch.ones(3, 4))]
    assert Stack([Residual()], [Run()], data, max_epochs=1).reason == (
        "through torch.func: the fused operator does not cover a Residual"
    )
    assert Stack([fcn((2,))], [Run()], data_sets()[:1], max_epochs=1, engine="fused").engine == "fused"
    assert "depth 9" in Stack([fcn((2,))], [Run(optimizer="factorized", depth=9)], data_sets()[:1], max_epochs=1).reason
