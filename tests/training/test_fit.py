import copy
import io
import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional

from sparsenn import models
from sparsenn.training import Fit, configure
from sparsenn.training.batches import epoch_order
from sparsenn.training.evaluate import evaluate
from sparsenn.training.methods import make_control, make_optimizer

RUNS = {
    "dwf2": {"depth": 2},
    "dwf3-step": {"depth": 3, "schedule": "step", "factor_init": "dwf"},
    "dwf1-float64": {"depth": 1, "dtype": "float64"},
    "dwf2-bfloat16": {"depth": 2, "dtype": "bfloat16"},
    "prox": {"method": "prox", "lam": 1e-2},
    "l1-subgradient": {"method": "l1-subgradient", "lam": 1e-2},
    "dwf2-target": {"depth": 2, "target_sparsity": 0.9},
    "prox-target": {"method": "prox", "target_sparsity": 0.9},
    "dwf2-warmup": {"depth": 2, "warmup": 1},
    "dwf2-cosine": {"depth": 2, "lam_schedule": "cosine"},
    "dwf3-weights": {"depth": 3, "factor_init": "dwf", "penalize_biases": False},
    "dense": {"method": "dense"},
    "dense-noisy": {"method": "dense", "input_noise": 0.3},
    "dwf2-clipped": {"depth": 2, "clip_norm": 0.05},
    "dwf2-adam": {"method": "dwf-adam", "depth": 2, "lr": 0.01},
    "dwf3-balanced": {"depth": 3, "factor_init": "root", "balanced": "always"},
    "magnitude-compiled": {"method": "magnitude", "compression": 3.0, "lr": 0.02, "compile": True},
}


def config(**given):
    plain = {"clip_norm": 0, "input_noise": 0, "lam_schedule": "constant"}
    return configure(**{"epochs": 3, "batch_size": 20, "eval_every": 1, "seed": 4, "lr": 0.2, **plain, **given})


def make(shapes, **given) -> Fit:
    chosen = config(**given)
    return Fit(chosen, shapes.to("cpu", getattr(torch, chosen.dtype)))


def finish(fit: Fit) -> Fit:
    while not fit.done:
        fit.train_epoch()
        fit.end_epoch()
    return fit


def bits(fit: Fit) -> list[torch.Tensor]:
    buffers = [*fit.model.state_dict().values()]
    return buffers + [t for state in fit.optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]


def same_bits(a: Fit, b: Fit) -> bool:
    return len(bits(a)) == len(bits(b)) and all(map(torch.equal, bits(a), bits(b)))


def counted(monkeypatch) -> CompileCounterWithBackend:
    """Counts what is compiled from here on, which is to be for one shape each."""
    counter, compiler = CompileCounterWithBackend("inductor"), torch.compile

    def count(net, *, dynamic):
        assert not dynamic
        return compiler(net, dynamic=dynamic, backend=counter)

    monkeypatch.setattr(torch, "compile", count)
    return counter


def steps_behind(fit: Fit) -> int:
    return fit.epoch * fit.batches + fit.batch


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("dwf", {"depth": 3}),
        ("dwf", {"depth": 2, "factor_init": "root", "balanced": "always"}),
        ("prox", {}),
        ("l1-subgradient", {}),
    ],
)
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_biases_without_a_penalty_take_plain_steps(shapes, method, given, schedule):
    def after_a_step(**more):
        fit = make(shapes, epochs=1, batch_size=90, dtype="float64", **more)
        fit.begin_with({name: t + 0.1 * name.endswith("bias") for name, t in fit.model.state_dict().items()})
        fit.train_epoch()
        return {name: p.detach() for name, p in fit.model.named_parameters()}

    given = {"method": method, "lam": 0.5, "lam_schedule": schedule, **given}
    plain, free, held = after_a_step(method="dense"), after_a_step(**given, penalize_biases=False), after_a_step(**given)
    names = [name for name, p in plain.items() if torch.allclose(free[name], p, rtol=1e-4, atol=0)]  # starts have a floor
    assert names == ["1.bias", "3.bias", "5.bias"]
    assert not any(torch.allclose(held[name], p, rtol=1e-3, atol=0) for name, p in plain.items())


def test_balanced_factors_train_and_count_as_all_of_them(shapes):
    fits = [finish(make(shapes, depth=3, factor_init="root", balanced=when)) for when in ("always", "never")]
    assert ["root" in next(iter(fit.optimizer.state.values())) for fit in fits] == [True, False]
    one, full = (fit.history[-1] for fit in fits)
    assert one == full
    assert one["misalignment"] == 0


@pytest.mark.parametrize("stop_after", [1, 5, 7], ids=lambda n: f"step{n}")
@pytest.mark.parametrize("given", RUNS.values(), ids=RUNS)
def test_a_run_continued_from_any_step_is_the_same_bits(shapes, given, stop_after):
    whole, broken = finish(make(shapes, **given)), make(shapes, **given)
    while steps_behind(broken) < stop_after:
        if broken.train_epoch(lambda: steps_behind(broken) >= stop_after):
            broken.end_epoch()
    buffer = io.BytesIO()
    torch.save(broken.state_dict(), buffer)
    buffer.seek(0)
    revived = make(shapes, **given)
    revived.load_state_dict(torch.load(buffer, weights_only=True))
    assert steps_behind(revived) == stop_after
    assert same_bits(whole, finish(revived))
    assert whole.history == revived.history


@pytest.mark.parametrize("given", RUNS.values(), ids=RUNS)
def test_two_runs_of_a_seed_are_the_same_bits_and_another_seed_is_another_run(shapes, given):
    first, second, other = (finish(make(shapes, epochs=2, **given, **extra)) for extra in ({}, {}, {"seed": 5}))
    assert same_bits(first, second)
    assert not same_bits(first, other)


def test_a_dense_run_is_torch_sgd_written_out(shapes):
    fit = finish(make(shapes, method="dense", lr=0.1))
    torch.manual_seed(4)
    net = models.lenet_300_100(num_classes=3, image_size=8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    steps = 0
    for epoch in range(3):
        for chosen in epoch_order(90, 4, epoch).split(20):
            optimizer.param_groups[0]["lr"] = 0.1 * 0.5 * (1 + math.cos(math.pi * steps / 15))
            optimizer.zero_grad()
            functional.cross_entropy(net(shapes.train_images[chosen]), shapes.train_labels[chosen]).backward()
            optimizer.step()
            steps += 1
    assert all(torch.equal(p, q) for p, q in zip(fit.model.parameters(), net.parameters(), strict=True))


@pytest.mark.parametrize("given", [{}, {"depth": 3}, {"method": "snip"}, {"method": "prox"}], ids=str)
def test_a_compiled_run_is_the_same_but_for_rounding_and_is_compiled_twice(shapes, monkeypatch, given):
    counter = counted(monkeypatch)
    given = {"dtype": "float64", "lr": 0.05, **given}
    compiled, plain = (finish(make(shapes, compile=way, **given)) for way in (True, False))
    assert counter.frame_count == 2  # 90 images are batches of 20 and one of 10
    for p, q in zip(compiled.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
    assert compiled.model.state_dict().keys() == plain.model.state_dict().keys()


def test_however_many_nets_a_process_compiles_all_are_compiled(shapes, monkeypatch):
    counter = counted(monkeypatch)
    for seed in range(6):
        finish(make(shapes, compile=True, method="snip", lr=0.05, epochs=1, seed=seed))
    assert counter.frame_count == 12


def l1_by_hand(shapes, lam: float, step) -> list[torch.Tensor]:
    """Three epochs at lr 0.05 and momentum 0.9 in float64; ``step(w, v, g, lr)`` moves a weight and its momentum."""
    torch.manual_seed(4)
    net = models.lenet_300_100(num_classes=3, image_size=8).double()
    momenta, steps = [torch.zeros_like(p) for p in net.parameters()], 0
    for epoch in range(3):
        for chosen in epoch_order(90, 4, epoch).split(20):
            lr = 0.05 * 0.5 * (1 + math.cos(math.pi * steps / 15))
            loss = functional.cross_entropy(net(shapes.train_images[chosen].double()), shapes.train_labels[chosen])
            with torch.no_grad():
                for p, v, g in zip(net.parameters(), momenta, torch.autograd.grad(loss, list(net.parameters())), strict=True):
                    step(p, v, g, lr, lam)
            steps += 1
    return [p.detach() for p in net.parameters()]


def test_a_subgradient_run_adds_lambda_sign_w_to_the_gradient(shapes):
    def step(p, v, g, lr, lam):
        v.mul_(0.9).add_(g + lam * p.sign())
        p.sub_(lr * v)

    fit = finish(make(shapes, method="l1-subgradient", lam=1e-2, lr=0.05, dtype="float64"))
    for p, q in zip(fit.model.parameters(), l1_by_hand(shapes, 1e-2, step), strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-9, atol=1e-11)


def test_a_proximal_run_thresholds_by_ten_lr_lambda_at_momentum_nine_tenths(shapes):
    def step(p, v, g, lr, lam):
        v.mul_(0.9).add_(g)
        moved = p - lr * v
        p.copy_(moved.sign() * (moved.abs() - 10 * lr * lam).clamp_min(0))

    fit = finish(make(shapes, method="prox", lam=1e-2, lr=0.05, dtype="float64"))
    expected = l1_by_hand(shapes, 1e-2, step)
    for p, q in zip(fit.model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-9, atol=1e-11)
    zeros = sum(int((q == 0).sum()) for q in expected)
    assert zeros > 1000
    assert fit.history[-1]["weights"] == sum(q.numel() for q in expected) - zeros


def test_lambda_follows_its_schedule_from_step_to_step(shapes):
    fit, used = make(shapes, lam=0.4, lam_schedule="cosine"), []
    fit.optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lam"]))
    finish(fit)
    assert used == pytest.approx([0.4 * 0.5 * (1 + math.cos(math.pi * t / 15)) for t in range(15)])


def test_input_noise_has_the_standard_deviation_asked_for_and_is_new_for_every_batch(shapes):
    fit, seen = make(shapes, method="dense", input_noise=0.25, batch_size=90, lr=1e-9), []
    fit.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()) if module.training else None)
    for _ in range(2):
        fit.train_epoch()
        fit.end_epoch()
    noise = [batch - shapes.train_images[epoch_order(90, 4, epoch)] for epoch, batch in enumerate(seen)]
    assert [float(x.std()) for x in noise] == pytest.approx([0.25, 0.25], rel=0.03)
    assert abs(float(torch.corrcoef(torch.stack([x.flatten() for x in noise]))[0, 1])) < 0.05


def test_a_clipped_gradient_keeps_its_direction_and_has_the_norm_asked_for(shapes):
    free, clipped = (make(shapes, method="dense", lr=0.25, clip_norm=c, batch_size=90) for c in (0, 0.01))
    moves = []
    for fit in (free, clipped):
        before = torch.cat([p.detach().clone().flatten() for p in fit.model.parameters()]).double()
        fit.train_epoch()
        moves.append(before - torch.cat([p.detach().flatten() for p in fit.model.parameters()]).double())
    assert moves[1].norm() == pytest.approx(0.25 * 0.01, rel=1e-3)
    assert torch.cosine_similarity(*moves, dim=0) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("depth", [2, 3])
def test_a_factorized_run_is_algorithm_2_written_out(shapes, depth):
    given = {"depth": depth, "lam": 1e-2, "lr": 0.05, "dtype": "float64"}
    fit = make(shapes, **given)
    names = [name for name, _ in fit.model.named_parameters()]
    factors = [[f.detach().clone().requires_grad_() for f in fit.optimizer.factors(p)] for p in fit.model.parameters()]
    plain = torch.optim.SGD([f for group in factors for f in group], lr=0.05, momentum=0.9)
    net, images, steps = copy.deepcopy(fit.model), fit.data.train_images, 0
    for epoch in range(3):
        for chosen in epoch_order(90, 4, epoch).split(20):
            plain.param_groups[0]["lr"] = 0.05 * 0.5 * (1 + math.cos(math.pi * steps / 15))
            weights = {name: math.prod(group[1:], start=group[0]) for name, group in zip(names, factors, strict=True)}
            logits = torch.func.functional_call(net, weights, images[chosen])
            penalty = sum(f.square().sum() for group in factors for f in group)
            plain.zero_grad()
            (functional.cross_entropy(logits, shapes.train_labels[chosen]) + 1e-2 / depth * penalty).backward()
            plain.step()
            steps += 1
    finish(fit)
    for p, group in zip(fit.model.parameters(), factors, strict=True):
        torch.testing.assert_close(p.detach(), math.prod(group[1:], start=group[0]).detach(), rtol=1e-9, atol=1e-12)


def test_a_record_holds_the_figures_of_the_net_at_that_moment(shapes):
    fit = finish(make(shapes, depth=2))
    record = fit.history[-1]
    logits = fit.model.eval()(shapes.test_images)
    assert record["epoch"] == 3
    assert record["lr"] == 0.0
    assert record["test_accuracy"] == (logits.argmax(1) == shapes.test_labels).double().mean().item()
    assert record["test_loss"] == pytest.approx(functional.cross_entropy(logits, shapes.test_labels).item(), rel=1e-6)
    entries = torch.cat([p.detach().flatten() for p in fit.model.parameters()])
    assert record["weights"] == int((entries.abs() > torch.finfo(torch.float32).eps).sum())
    assert record["compression_ratio"] == pytest.approx(entries.numel() / record["weights"])
    factors = [fit.optimizer.factors(p) for p in fit.model.parameters()]
    gaps = sum(float(((a.double() - b.double().sign() * a.double().sign() * b.double()) ** 2).sum()) / 2 for a, b in factors)
    assert record["misalignment"] == pytest.approx(gaps / entries.numel(), rel=1e-4)


def test_evaluations_come_when_they_are_due_and_at_the_end(shapes):
    fit = finish(make(shapes, epochs=5, eval_every=2))
    assert [record["epoch"] for record in fit.history] == [2, 4, 5]


def test_the_training_figures_are_means_over_images_not_batches(shapes):
    fit = make(shapes, method="dense", lr=1e-30, batch_size=40)
    loss, accuracy = evaluate(fit.model, shapes.train_images, shapes.train_labels)
    fit.train_epoch()
    record = fit.end_epoch()
    assert record["train_loss"] == pytest.approx(loss, rel=1e-5)
    assert record["train_accuracy"] == accuracy


def test_evaluation_keeps_the_mode_and_the_statistics(shapes):
    net = models.lenet5(num_classes=3, image_size=12)
    images = functional.interpolate(shapes.test_images, size=12)
    before = copy.deepcopy(net.state_dict())
    for mode in (True, False):
        net.train(mode)
        evaluate(net, images, shapes.test_labels)
        assert net.training is mode
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_evaluation_in_pieces_is_that_of_the_whole(shapes):
    net = models.lenet_300_100(num_classes=3, image_size=8).double()
    images, labels = shapes.train_images.double().repeat(50, 1, 1, 1), shapes.train_labels.repeat(50)
    assert evaluate(net, images, labels) == pytest.approx(evaluate(net, images[:90], labels[:90]), rel=1e-12)


def test_both_nets_start_from_the_same_weights(shapes):
    chosen = config(depth=3, factor_init="root")
    sparse, dense = Fit(chosen, shapes), Fit(chosen.dense_twin(), shapes)
    for p, q in zip(sparse.model.parameters(), dense.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)


def test_drawn_factors_leave_the_scales_of_normalization_alone():
    config = configure(dataset="mnist", model="lenet-5", method="dwf", depth=3, factor_init="dwf")
    net = models.build("lenet-5")
    drawn = net[0].weight.detach().clone()
    optimizer = make_optimizer(config, net)
    torch.testing.assert_close(net[1].weight.detach(), torch.ones(6))
    assert not torch.allclose(net[0].weight, drawn)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in net.parameters()}


def test_normalization_that_is_not_penalised_has_one_factor_wherever_the_others_are_drawn():
    config = configure(
        dataset="mnist", model="lenet-5", method="dwf", depth=3, factor_init="dwf", lam=0.1, penalize_biases=False
    )
    net = models.build("lenet-5")
    named = dict(net.named_parameters())
    drawn, free = make_optimizer(config, net).param_groups
    weights = [name for name, p in named.items() if any(p is own for own in drawn["params"])]
    assert weights == [name for name, p in named.items() if p.dim() > 1]
    assert (drawn["depth"], drawn["lam"], free["depth"], free["lam"]) == (3, 0.1, 1, 0.0)
    assert len(free["params"]) == len(named) - len(weights)


@pytest.mark.parametrize("method", ["prox", "dwf", "l1-subgradient"])
def test_what_counts_as_zero_where_a_target_is_sought(shapes, method):
    """What becomes 0 in the end, next to nothing but 0 for exact zeros; under a subgradient three of the longest steps."""
    fit = make(shapes, method=method, target_sparsity=0.5)
    hovers = method == "l1-subgradient"
    threshold = {"prox": 1e-12, "dwf": 2**-23}.get(method, 3 * fit.config.lr * fit.config.lam / (1 - fit.config.momentum))
    assert not hovers or threshold > 1e-4
    control = make_control(fit.config, fit.optimizer, 10)
    weights = [p for group in fit.optimizer.param_groups for p in group["params"]]

    def below(limit):
        return sum(int((p.abs() <= limit).sum()) for p in weights) / sum(p.numel() for p in weights)

    with torch.no_grad():
        for p in weights:
            p[..., :1] = 0.999 * threshold
            p[..., 1:2] = 1.001 * threshold
    assert control.sparsity() == pytest.approx(below(threshold))
    assert 0 < control.sparsity() < 1
    for group in fit.optimizer.param_groups:
        group["lr"] = 1e-9
    assert control.sparsity() == pytest.approx(below(1e-4 if hovers else threshold))


def test_a_target_is_held_in_the_last_two_fifths_of_a_run(shapes):
    fit = make(shapes, method="prox", target_sparsity=0.5)
    assert "update 0 of 6" in repr(make_control(fit.config, fit.optimizer, 10))
