import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsenn.training import make_scheduler
from sparsenn.training.schedules import SCHEDULES


def rates(name: str, steps: int, lr: float = 0.3, warmup: int = 0) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make_scheduler(optimizer, name, steps, warmup)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return [*seen, optimizer.param_groups[0]["lr"]]


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_cosine_is_that_of_torch(steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    theirs = [0.3]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        theirs.append(optimizer.param_groups[0]["lr"])
    assert rates("cosine", steps) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize(("steps", "warmup"), [(2, 1), (9, 4), (30, 29)])
def test_a_warmup_is_that_of_torch(steps, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    growing = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup - 1)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - warmup)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [growing, falling], [warmup])
    theirs = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        theirs.append(optimizer.param_groups[0]["lr"])
    assert rates("cosine", steps, warmup=warmup) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("warmup", [-1, 3])
def test_a_warmup_that_leaves_no_step_is_refused(warmup):
    with pytest.raises(ValueError, match=f"warmup is {warmup}; with 3 steps it takes 0 to 2"):
        rates("cosine", 3, warmup=warmup)


def test_cosine_ends_at_exactly_zero():
    assert rates("cosine", 10)[-1] == 0.0


def test_constant_stays():
    assert rates("constant", 5) == [0.3] * 6


def test_step_falls_to_a_tenth_at_the_half_and_at_three_quarters():
    assert rates("step", 8, lr=1.0)[:-1] == [1.0] * 4 + [0.1] * 2 + [0.01] * 2


@given(name=st.sampled_from(sorted(SCHEDULES)), steps=st.integers(1, 1000), step=st.integers(0, 1000))
def test_every_schedule_starts_at_one_and_never_rises(name, steps, step):
    factor, step = SCHEDULES[name], min(step, steps - 1)
    assert steps < 2 or factor(0, steps) == 1.0
    assert 0.0 <= factor(step + 1, steps) <= factor(step, steps) <= 1.0
    assert math.isfinite(factor(step, steps))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="make_scheduler: unknown name 'linear'; known are cosine, constant, step"):
        rates("linear", 3)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="steps is 0; it takes 1 or more"):
        rates("cosine", 0)
