"""What a run changes in its surroundings, and puts back."""

import pytest
import torch
from torch.backends import cudnn

from sparsenn.training import configure
from sparsenn.training.session import session


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
