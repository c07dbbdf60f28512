"""Training runs by the pruning baselines."""

import io

import pytest
import torch

from sparsenn import models, prune
from sparsenn.data import augment
from sparsenn.training import ConfigError, Fit, configure, resume, run, train
from sparsenn.training.batches import epoch_order
from sparsenn.training.evaluate import loss_of
from sparsenn.training.presets import PRUNERS


def config(method, **given):
    plain = {"clip_norm": 0, "input_noise": 0, "twin": False, "compression": 8.0, "lr": 0.1}
    return configure(**{"method": method, "epochs": 4, "batch_size": 20, "eval_every": 1, "seed": 4, **plain, **given})


def finish(fit: Fit, stop_after: int | None = None) -> Fit:
    """Train to the end, or for so many steps."""
    steps = 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return steps == stop_after

    while not fit.done and steps != stop_after:
        if fit.train_epoch(stop):
            fit.end_epoch()
    return fit


def weights(fit: Fit) -> dict[str, torch.Tensor]:
    return dict(fit.model.state_dict())


@pytest.mark.parametrize("method", PRUNERS)
def test_a_run_ends_with_exactly_the_wanted_weights(shapes, method):
    result = train(config(method, epochs=20, eval_every=5), images=shapes)
    total = sum(p.numel() for p in models.lenet_300_100(3, 1, 8).parameters())
    assert result.net.total == total
    assert result.net.weights <= total // 8  # some may be 0 by themselves: biases of neurons that never fire
    assert result.net.weights > 0.9 * (total // 8)
    assert result.net.accuracy > 0.9
    assert f"method {method}" not in str(result)
    assert f"{method} (compression 8" in str(result)
    assert list(dict(result.net.model.named_parameters())) == list(dict(models.lenet_300_100(3, 1, 8).named_parameters()))


@pytest.mark.parametrize("stop_after", [10, 13])
@pytest.mark.parametrize("method", PRUNERS)
def test_a_run_continued_from_before_at_and_after_the_masks_is_the_same_bits(shapes, method, stop_after):
    chosen = config(method, prune_epoch=2, augment=stop_after == 13)  # the masks come after step 10
    whole, broken = finish(Fit(chosen, shapes)), finish(Fit(chosen, shapes), stop_after)
    assert bool(prune.masks(broken.model)) == (stop_after > 10)
    buffer = io.BytesIO()
    torch.save(broken.state_dict(), buffer)
    buffer.seek(0)
    revived = Fit(chosen, shapes)
    revived.load_state_dict(torch.load(buffer, weights_only=True))
    finish(revived)
    assert weights(whole).keys() == weights(revived).keys()
    assert all(torch.equal(tensor, weights(revived)[name]) for name, tensor in weights(whole).items())
    assert whole.history == revived.history


def test_magnitude_prunes_what_the_dense_net_became_and_begins_its_schedule_anew(shapes):
    fit = finish(Fit(config("magnitude", retrain_lr=0.08), shapes), 10)
    dense = finish(Fit(config("dense", epochs=2, compression=None), shapes))
    assert all(torch.equal(a, b) for a, b in zip(fit.model.parameters(), dense.model.parameters(), strict=True))
    expected = dense.model
    prune.magnitude(expected, compression=8)
    finish(fit, 1)
    found = prune.masks(fit.model)
    assert all(torch.equal(mask, found[name]) for name, mask in prune.masks(expected).items())
    finish(fit)
    assert [record["lr"] for record in fit.history] == pytest.approx([0.05, 0.0, 0.04, 0.0])
    sparse = [record["compression_ratio"] for record in fit.history]
    assert sparse[1] < 1.1
    assert sparse[2] >= 8
    same = finish(Fit(config("magnitude"), shapes))
    assert [record["lr"] for record in same.history] == pytest.approx([0.05, 0.0, 0.05, 0.0])


def test_the_masks_at_the_start_are_those_of_the_room(shapes):
    def fresh() -> torch.nn.Module:
        torch.manual_seed(4)
        return models.lenet_300_100(3, 1, 8)

    chosen = epoch_order(90, 4, 0)[:20]
    batch = (shapes.train_images[chosen], shapes.train_labels[chosen])
    calls = {
        "magnitude": lambda net: prune.magnitude(net, compression=8),
        "snip": lambda net: prune.snip(net, compression=8, batch=batch, loss_fn=loss_of),
        "synflow": lambda net: prune.synflow(net, compression=8, input_shape=(1, 8, 8)),
        "random": lambda net: prune.random(net, compression=8, generator=torch.Generator().manual_seed(4)),
    }
    for method in PRUNERS:
        fit, net = finish(Fit(config(method, prune_epoch=0), shapes), 1), fresh()
        calls[method](net)
        found = prune.masks(fit.model)
        assert all(torch.equal(mask, found[name]) for name, mask in prune.masks(net).items()), method


def test_biases_are_pruned_on_demand_and_a_compression_out_of_reach_is_refused_at_once(shapes, tmp_path):
    assert "1.bias" in prune.masks(finish(Fit(config("random", prune_biases=True), shapes), 1).model)
    with pytest.raises(ConfigError, match=r"compression is 200; lenet-300-100 takes at most 123\.829 .*prune-biases"):
        Fit(config("magnitude", compression=200.0), shapes)
    with pytest.raises(ConfigError, match=r"compression is 200; lenet-300-100 takes at most"):
        train(config("magnitude", compression=200.0), tmp_path / "run", images=shapes)
    assert not (tmp_path / "run").exists()  # where it was, the same command with another compression is not refused
    Fit(config("magnitude", compression=200.0, prune_biases=True), shapes)


def test_a_folder_of_a_pruned_run_resumes(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "write_pictures", lambda result, folder: [])
    whole = train(config("magnitude", checkpoint_every=1), tmp_path / "whole", images=shapes)
    kept = (tmp_path / "whole" / "model.safetensors").read_bytes()
    again = resume(tmp_path / "whole", images=shapes)
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == kept
    assert again.net.history == whole.net.history


def test_augmented_images_are_what_the_net_sees(shapes):
    fit, seen = Fit(config("dense", compression=None, augment=True), shapes), []
    fit.model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    torch.manual_seed(11)
    finish(fit, 1)
    torch.manual_seed(11)
    assert torch.equal(seen[0], augment(shapes.train_images[epoch_order(90, 4, 0)[:20]]))
