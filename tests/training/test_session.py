"""What a run changes in its surroundings, and puts back."""

import pytest
import torch
from torch.backends import cudnn

from sparsenn.training import configure
from sparsenn.training.errors import ConfigError
from sparsenn.training.session import check_compiler, session


@pytest.mark.parametrize("flags", [(False, True), (True, True)])
def test_convolutions_are_deterministic_within_a_run_and_what_they_were_after_it(monkeypatch, flags):
    monkeypatch.setattr(cudnn, "deterministic", flags[0])
    monkeypatch.setattr(cudnn, "benchmark", flags[1])

    def failing():
        with session(configure()):
            assert (cudnn.deterministic, cudnn.benchmark) == (True, False)
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert (cudnn.deterministic, cudnn.benchmark) == flags


def test_threads_and_random_numbers_are_what_they_were():
    before, state = torch.get_num_threads(), torch.get_rng_state()
    with session(configure(threads=before + 1)):
        assert torch.get_num_threads() == before + 1
        torch.rand(3)
    assert torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_a_compiler_that_does_not_work_is_said_in_one_line(monkeypatch):
    check_compiler("cpu")

    def failing(function):
        def call(_):
            raise RuntimeError("no compiler found\n\nSet this for more")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(
        ConfigError, match=r"^compile takes a torch.compile that works on cpu; here it says: no compiler found$"
    ):
        check_compiler("cpu")
