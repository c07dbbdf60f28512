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


def cause_of(error: Exception) -> Exception:
    """As a compiler's, whose reason stands in what it was raised from."""
    outer = RuntimeError("backend raised:\n\nmore")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("no compiler found\n\nSet this for more"), "no compiler found"),
        (cause_of(RuntimeError("\nno compiler found")), "no compiler found"),
        (OSError(28, "No space left on device"), r"\[Errno 28\] No space left on device"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_a_compiler_that_does_not_work_is_said_in_one_line(monkeypatch, error, reason):
    def failing(function):
        def call(_):
            raise error

        return call

    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(ConfigError, match=f"^compile takes a torch.compile that works on cpu; here it says: {reason}$"):
        check_compiler("cpu")


def test_a_compiler_for_a_device_that_is_not_there():
    check_compiler("cpu")
    with pytest.raises(ConfigError, match=r"^device is 'cuda:99', but"):
        check_compiler("cuda:99")
