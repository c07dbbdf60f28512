import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import sparsenn

OPTIMIZERS = (sparsenn.optim.FactorizedSGD, sparsenn.optim.FactorizedAdam, sparsenn.optim.ProxSGD)


@pytest.fixture(params=OPTIMIZERS, ids=lambda kind: kind.__name__)
def optimizer(request):
    weight = torch.nn.Parameter(torch.tensor([0.5, -1.0]))
    weight.grad = torch.ones(2)
    return request.param([weight], lr=0.1)


def weight_of(optimizer):
    return optimizer.param_groups[0]["params"][0]


def test_hooks_of_an_optimizer_and_of_all_are_called_around_a_step(optimizer):
    calls, start = [], weight_of(optimizer).detach().clone()

    def note(name):
        return lambda opt, args, kwargs: calls.append((name, opt is optimizer, torch.equal(weight_of(opt), start)))

    handles = [optimizer.register_step_pre_hook(note("pre")), optimizer.register_step_post_hook(note("post"))]
    optimizer.step()
    assert calls == [("pre", True, True), ("post", True, False)]
    for handle in handles:
        handle.remove()
    for register in (register_optimizer_step_pre_hook, register_optimizer_step_post_hook):
        calls.clear()
        handle = register(note("any"))
        optimizer.step()
        handle.remove()
        optimizer.step()
        assert len(calls) == 1


def test_a_hook_may_replace_the_closure(optimizer):
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: ((opt, lambda: 7.0), {}))
    assert optimizer.step(lambda: 3.0) == 7.0


def test_a_profiler_sees_the_step_by_its_name(optimizer):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    name = type(optimizer).__name__
    assert f"Optimizer.step#{name}.step" in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("enabled", [True, False])
def test_a_step_has_no_gradients_its_closure_has_and_the_mode_before_is_restored(optimizer, enabled):
    with torch.set_grad_enabled(enabled):
        assert optimizer.step(torch.is_grad_enabled) is True
        assert torch.is_grad_enabled() is enabled
        with pytest.raises(ZeroDivisionError):
            optimizer.step(lambda: 1 / 0)
        assert torch.is_grad_enabled() is enabled
    assert weight_of(optimizer).grad_fn is None
    assert weight_of(optimizer).requires_grad


def test_a_scheduler_counts_the_steps(optimizer, recwarn):
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert not [w for w in recwarn if "lr_scheduler.step" in str(w.message)]
