import json
import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from sparsenn import data as datasets
from sparsenn.cli import main
from sparsenn.data import ImageData
from sparsenn.metrics import misalignment
from sparsenn.optim import FactorizedSGD
from sparsenn.papers import ITEMS, reproduce
from sparsenn.papers.dwf import figures, items, runs
from sparsenn.papers.dwf.compare import Ours, accuracies, published, ratios, verdict
from sparsenn.papers.dwf.curves import accuracy_at, band, compression_at, front, sparsest
from sparsenn.papers.dwf.runs import Place, keep_state, kept_state, train
from sparsenn.papers.dwf.settings import COMPRESSIONS, IMAGES, KEY, LAMS, Given, fine_tuned, log_spaced, onset, source_of
from sparsenn.papers.dwf.tables import starts as starts_table
from sparsenn.papers.dwf.tables import table1, table2
from sparsenn.papers.dwf.trajectories import excess
from sparsenn.training import ConfigError, Fit, TrainingInterrupted, make_scheduler
from sparsenn.training import train as train_once

FASHION = Given("fashion-mnist", "lenet-300-100")
SMALL = Given("digits", "lenet-300-100", epochs=2, seeds=1, batch_size=20)


def row(key, compression, accuracy, **changes):
    """A row as training would leave it; ``compression`` is None for a net of which nothing is left."""
    weights = 0 if compression is None else round(266_610 / compression)
    layers = {"kept": [weights, 1, 1], "norm": [3.0, 2.0, 1.0], "misalignment": [1e-4, 1e-5, 1e-6]}
    history = [
        {
            "epoch": epoch,
            "lam": key["lam"],
            "train_loss": 1.0 / epoch,
            "train_accuracy": accuracy,
            "test_accuracy": accuracy,
            "penalty": 0.5,
            "misalignment": 1e-7,
            "norm": norm,
            "weights": weights if epoch > 2 else 266_610,
            "compression_ratio": compression if epoch > 2 else 1.0,
            "layers": layers,
        }
        for epoch, norm in ((1, 9.0), (2, 5.0), (3, 8.0), (4, 6.0))
    ]
    figures = {
        "status": "finished",
        "accuracy": accuracy,
        "compression": compression,
        "parameters": 266_610,
        "weights": weights,
        "misalignment": 0.0,
        "norm": 6.0,
        "layers": ["1.weight", "3.weight", "5.weight"],
        "sizes": [235_200, 30_000, 1000],
        "kept": [weights, 1, 1],
        "pruned": [(c, accuracy - 0.1) for c in (2.0, 2000.0)],
        "history": history,
    }
    return {**{name: key[name] for name in KEY}, **figures, **changes}


def curve(given=FASHION, depth=3, seed=0, points=((10, 0.9), (100, 0.88), (1000, 0.80), (None, 0.1))):
    return [row(given.key("dwf", seed, depth=depth, lam=1e-4 * (i + 1)), c, a) for i, (c, a) in enumerate(points)]


def test_the_published_numbers_are_found():
    first, second = published(1, "fashion-mnist", "lenet-300-100"), published(2, "fashion-mnist", "lenet-300-100")
    assert [first["dwf", depth, at].value for at in (5, 10) for depth in (2, 3, 4)] == [141, 506, 486, 362, 1422, 1442]
    assert (second["dwf", 3, 99.9].value, second["dwf", 3, 99.9].std) == (81.35, 0.16)
    assert second["dense", 1, 0.0].value == 89.12
    assert len(second) == 7 * 8 + 1
    assert len(published(2, "fashion-mnist", "lenet-5")) == 7 * 8 + 1 - 6
    columns = [
        ("kuzushiji-mnist", "lenet-5"),
        ("cifar-10", "resnet-18"),
        ("cifar-100", "vgg-19"),
        ("tiny-imagenet", "resnet-18"),
    ]
    assert [len(published(1, *column)) for column in columns] == [12] * 4
    assert published(1, "mnist", "lenet-5") == {}


def test_between_nets_a_curve_is_linear_in_the_logarithm_of_the_compression():
    rows = curve()
    assert accuracy_at(rows, 10 * math.sqrt(10)) == pytest.approx(0.89)
    assert accuracy_at(rows, 10.0) == 0.9
    assert accuracy_at(rows, 1000.0) == 0.8
    assert accuracy_at(rows, 9.0) is None  # nothing is extrapolated
    assert accuracy_at(rows, 1100.0) == 0.1  # what a dead net has
    assert accuracy_at(rows[:3], 1100.0) is None
    assert compression_at(rows, 0.84) == pytest.approx(10**2.5)
    assert (compression_at(rows, 0.8), compression_at(rows, 0.7), compression_at(rows, 0.91)) == (1000, 1000, None)
    assert sparsest(rows, 0.84) == 100
    bumpy = curve(points=((10, 0.9), (20, 0.7), (40, 0.85), (80, 0.75)))
    assert compression_at(bumpy, 0.8) == pytest.approx(40 * math.sqrt(2))  # the largest, though the curve was below before
    pruned = [row(FASHION.key("magnitude", prune_to=c), c * (1 + 1e-4), 0.8) for c in COMPRESSIONS]
    assert all(
        accuracy_at(pruned, c) == pytest.approx(0.8) for c in COMPRESSIONS
    )  # whole weights are left, so ratios are rounded


def test_a_band_is_the_median_and_the_least_over_seeds():
    rows = [r for seed, a in enumerate((0.9, 0.7, 0.8)) for r in curve(seed=seed, points=((10 + seed, a), (None, 0.1)))]
    assert band(rows) == type(band(rows))([11], [0.8], [0.7])
    assert front([(1.0, 0.9), (2.0, 0.95), (2.0, 0.7), (8.0, 0.8), (4.0, 0.8)]) == [(8.0, 0.8), (2.0, 0.95)]


def test_pruned_nets_are_read_at_the_sparsity_that_they_were_pruned_to():
    """Not at the one that training ends with, where biases that reach no output are zeros too."""
    rows = [row(FASHION.key("random", prune_to=c), 1.5 * c, 1 - c / 1000) for c in COMPRESSIONS[:4]]
    own = accuracies(rows, ("random", 1))
    expected = {
        s: Ours(1, pytest.approx(100 * (1 - c / 1000)), 0.0)
        for s, c in zip((90.0, 95.0, 98.0, 99.0), COMPRESSIONS[:4], strict=True)
    }
    assert {s: value for s, value in own.items() if value is not None} == expected


def test_tables_follow_from_their_rows():
    dense = [row(FASHION.key("dense", seed), 1.0, accuracy) for seed, accuracy in ((0, 0.88), (1, 0.90))]
    rows = [*dense, *curve(), *curve(seed=1, points=((10, 0.9), (1000, 0.80)))]
    ratio = ratios(rows, ("dwf", 3), 5)  # at 84 %: 10^2.5 on one curve, 10^2.2 on the other
    assert (ratio.at.mean, ratio.at.count) == (pytest.approx((10**2.5 + 10**2.2) / 2), 2)
    assert ratio.trained.mean == (100 + 10) / 2
    assert ratios(rows[2:], ("dwf", 3), 5) is None
    own = accuracies(rows, ("dwf", 3))
    assert own[99.0] == Ours(2, pytest.approx((88 + 85) / 2), pytest.approx(1.5))
    assert own[99.9].mean == pytest.approx(80)
    assert accuracies(rows[2:6] + rows[6:], ("dwf", 2))[99.0] is None
    text = table1(rows, "fashion-mnist", "lenet-300-100", 9)
    assert "| D = 3 | 5 | 237 ± 79 | 99.58 | 55 ± 45 | 506 | 0.47 |" in text
    assert "8 of 9 runs, 2 seeds; 0 diverged." in text
    text = table1([row for row in rows if row["accuracy"] > 0.84], "fashion-mnist", "lenet-300-100", 9)
    assert "| D = 3 | 5 | ≥ " in text  # the curves end before they are 5 points below
    text = table2(rows, "fashion-mnist", "lenet-300-100", 8)
    assert "Dense: 89.00 ± 1.00 (89.12 ± 0.40)." in text
    assert "| 86.50 ± 1.50 (86.97 ± 0.11) |" in text
    assert "| highest | D = 3 (SNIP) | D = 3 (GMP) | D = 3 (D = 4) |" in text
    theirs = published(2, "fashion-mnist", "lenet-300-100")["dwf", 3, 99.0]
    assert [verdict(Ours(3, mean, 0.1), theirs) for mean in (86.4, 87.4, 87.6)] == ["lower", "alike", "higher"]


def test_a_depth_that_the_paper_has_not_is_in_the_tables():
    dense = row(FASHION.key("dense"), 1.0, 0.90)
    rows = [dense, *curve(depth=4), *curve(depth=5, points=((10, 0.9), (100, 0.89), (1000, 0.86)))]
    first, second = (make(rows, "fashion-mnist", "lenet-300-100", 8) for make in (table1, table2))
    for depth in (2, 3, 4, 5):
        assert first.count(f"| D = {depth} | ") == 2
        assert sum(line.startswith(f"| D = {depth} | ") for line in second.splitlines()) == 1
    assert "| D = 5 | 5 | ≥ 1000 | ≥ 99.90 | 1000 | – | – |" in first
    assert "| D = 5 | 90.00 | " in second
    others = [row(FASHION.key(method, prune_to=10.0), 10.0, 0.8) for method in ("random", "synflow", "snip", "magnitude")]
    told = table2([*others, *rows, *curve(depth=10)], "fashion-mnist", "lenet-300-100", 99).splitlines()
    names = [line.split(":")[0] for line in told if line.startswith("- ")]
    assert names == ["- Dense", "- D = 4", "- D = 5", "- D = 10", "- GMP", "- SNIP", "- SynFlow", "- Random"]
    assert "| highest | D = 4 (SNIP) | D = 5 (GMP) | D = 5 (D = 4) |" in second


def test_pictures_of_any_depth_can_be_drawn(tmp_path):
    points = ((10, 0.9), (100, 0.88), (1000, 0.8))
    for item in ("table1", "table2", "fig1", "fig4", "fig8", "fig10", "fig13", "fig14"):
        own, given = items.ITEMS[item], {"seeds": 1, "points": 3, "lams": (1e-4, 1e-2)}
        for depths in ((10, 20), (1,)):
            folder = tmp_path / f"{item}-{depths[0]}"
            folder.mkdir()
            keys = own.keys(Given(own.dataset, own.model, **given), items.Choice(depths, own.methods))
            lines = [json.dumps(row(key, *points[i % 3])) for i, key in enumerate(keys)]
            (folder / "nets.jsonl").write_text("\n".join([*lines, ""]))
            path = reproduce("dwf", item, out=folder, depths=depths, no_train=True, **given)
            if path.suffix == ".md":
                assert all(f"| D = {depth} | " in path.read_text() for depth in depths)


def test_a_picture_beside_l1_shows_the_depths_that_were_asked_for(monkeypatch):
    drawn, honest = [], figures.tradeoff
    monkeypatch.setattr(
        figures, "tradeoff", lambda axes, rows, label, color: drawn.append(label) or honest(axes, rows, label, color)
    )
    rows = [r for depth in (2, 6) for r in curve(depth=depth)]
    figures.fig1(rows, "")
    assert drawn == ["vanilla L1", "proximal L1", "D = 2", "D = 6"]
    assert len({figures.color_of(("dwf", depth)) for depth in range(2, 9)}) == 7


def test_a_weight_without_gradients_is_at_the_threshold_at_the_onset():
    lr, steps = 0.2, 6000
    for depth in (2, 3):
        weight = torch.nn.Parameter(torch.tensor([0.05], dtype=torch.float64))
        optimizer = FactorizedSGD([weight], lr, depth=depth, lam=onset(lr, steps), momentum=0.9)
        schedule = make_scheduler(optimizer, "cosine", steps)
        for _ in range(steps):
            weight.grad = torch.zeros_like(weight)
            optimizer.step()
            schedule.step()
        assert math.log(weight.item() / 2**-23) == pytest.approx(0, abs=0.8)  # of 12.9; a step is no derivative


def test_grids_share_their_nets():
    nets = (("fashion-mnist", "lenet-300-100"), ("mnist", "lenet-300-100"), ("fashion-mnist", "lenet-5"))
    rates = [[Given(*net).key("dwf", depth=d)["lr"] for d in (2, 3, 4)] for net in nets]
    assert rates == [[0.3, 0.15, 0.08], [0.3, 0.15, 0.15], [0.15, 0.15, 0.15]]
    assert log_spaced(1e-6, 1e-1, 6) == pytest.approx([10.0**k for k in range(-6, 0)])
    for depth in (2, 3, 4):
        lams = [{key["lam"] for key in Given("mnist", "lenet-300-100", points=n).sweep(depth, [0])} for n in (7, 13)]
        assert lams[0] <= lams[1]
    tables = items.ITEMS["table2"].keys(FASHION, items.Choice((2, 3, 4), items._METHODS))
    assert len(tables) == 3 * (1 + 3 * 13 + 3 * 8 + 6)
    assert len({json.dumps(key) for key in tables}) == len(tables)
    first = [key for key in items.ITEMS["fig1"].keys(FASHION, items.Choice((2, 3), ())) if key["method"] == "dwf"]
    assert all(key in tables for key in first)
    key = FASHION.key("dwf", depth=2, lam=1e-3)
    assert source_of(fine_tuned(key, 40.0, 50, 0.11)) == key


def test_grids_begin_at_the_onset_of_their_own_learning_rate():
    given = Given("mnist", "lenet-300-100", points=2, seeds=1)
    steps = 75 * -(-60_000 // 256)
    for lr in (0.15, 0.6):
        lams = [key["lam"] for key in given.sweep(2, lr=lr)]
        assert lams == pytest.approx([share * onset(lr, steps) for share in LAMS[2]], rel=1e-3)
    whole = {lr: [key["lam"] for key in given.sweep(4, **({"lr": lr} if lr else {}))] for lr in (None, 0.3)}
    assert whole[None] == pytest.approx([share * onset(0.15, steps) for share in (0.7, 16)], rel=1e-3)
    assert whole[0.3] == pytest.approx([share * onset(0.3, steps) for share in LAMS[4]], rel=1e-3)
    asked = [key["lam"] for key in Given("mnist", "lenet-300-100", points=2, seeds=1, lr=0.3).sweep(4)]
    assert asked == whole[0.3]
    assert [key["lam"] for key in given.l1_sweep("prox")] == [key["lam"] for key in given.sweep(2)]


def test_random_pruning_ends_where_nothing_is_left_but_biases_and_normalization():
    grids = {
        (model, method): [key["prune_to"] for key in Given("mnist", model, seeds=1).pruned(method)]
        for model in ("lenet-300-100", "lenet-5")
        for method in ("random", "snip")
    }
    assert grids["lenet-300-100", "random"] == [10, 20, 50, 100, 200, 400]  # of 266,610 parameters 410 are biases
    assert grids["lenet-5", "random"] == [10, 20, 50, 100, 200]  # of 61,750 they are 280
    assert grids["lenet-5", "snip"] == grids["lenet-300-100", "snip"] == list(COMPRESSIONS)
    digits = Given("digits", "lenet-300-100", seeds=1).pruned("random")
    assert [key["prune_to"] for key in digits] == [10, 20, 50, 100]  # of 50,610 parameters 410 are biases


def test_a_data_set_is_what_is_supposed_before_it_is_read():
    data = datasets.load("digits")
    assert IMAGES["digits"] == (
        len(data.train_labels),
        len(data.test_labels),
        data.in_channels,
        data.image_size,
        data.num_classes,
    )
    assert set(IMAGES) == set(datasets.names())


def test_items_are_made_of_rows_and_read_no_data(tmp_path, monkeypatch):
    monkeypatch.setattr(runs.datasets, "load", lambda *_, **__: pytest.fail("no data is needed"))
    assert set(ITEMS["dwf"]) == set(items.ITEMS) | {
        "table3",
        "table4",
        "fig3",
        "fig25",
        "fig26",
        "fig27",
        "path",
        "transformer",
    }
    points = ((10, 0.9), (100, 0.88), (1000, 0.8), (None, 0.1))
    each = [
        "table1",
        "fig1",
        "fig4",
        "fig5a",
        "fig6",
        "fig8",
        "fig10",
        "fig11",
        "fig12a",
        "fig13",
        "fig17",
        "fig18",
        "fig19",
        "fig20",
        "fig21",
        "starts",
    ]  # one of every kind
    given = {"seeds": 1, "points": 3, "lams": (1e-4, 1e-2)}
    for item, own in items.ITEMS.items():
        keys = own.keys(Given(own.dataset, own.model, **given), items.Choice(own.depths[:1], own.methods))
        assert keys
        assert all(runs.config_of(key, Place(tmp_path)).model == own.model for key in keys)
        if item in each:
            rows = [row(key, *points[i % 4]) for i, key in enumerate(keys)]
            folder = tmp_path / item
            folder.mkdir()
            (folder / "nets.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in rows))
            path = reproduce("dwf", item, out=folder, depths=own.depths[:1], no_train=True, **given)
            assert path.name.startswith(f"{item}-{own.model}-{own.dataset}.")
            assert path.read_bytes().startswith(b"\x89PNG" if item.startswith("fig") else b"# ")


@pytest.mark.parametrize("item", ["fig3", "fig25"])
def test_some_pictures_need_no_runs(tmp_path, item):
    assert reproduce("dwf", item, out=tmp_path / "new").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=f"dwf {item} takes no epochs"):
        reproduce("dwf", item, out=tmp_path, epochs=1)


def test_the_tables_of_data_sets_and_settings_have_the_published_numbers(tmp_path):
    text = reproduce("dwf", "table3", out=tmp_path / "new").read_text(encoding="utf-8")
    for line in (
        "| kuzushiji-mnist | 60,000 | 10,000 | 10 | 784 (28 × 28 × 1) |",
        "| cifar-100 | 50,000 | 10,000 | 100 | 3,072 (32 × 32 × 3) |",
        "| tiny-imagenet | 100,000 | 10,000 | 200 | 12,288 (64 × 64 × 3) |",
    ):
        assert line in text
    lines = reproduce("dwf", "table4", out=tmp_path / "new").read_text(encoding="utf-8").splitlines()
    found = {tuple(cells[1:3]): cells for line in lines if len(cells := [cell.strip() for cell in line.split("|")]) == 13}
    assert len(found) == 2 + 16  # the head, and every row of the paper's table
    for (net, dataset), epochs, batch, rates in (
        (("lenet-300-100", "kuzushiji-mnist"), "75", "256", "0.4"),
        (("lenet-5", "fashion-mnist"), "75", "256", "0.15"),
        (("vgg-19", "cifar-100"), "250", "128", "0.3, 0.6, 0.6"),
        (("resnet-34", "tiny-imagenet"), "150", "128", "0.2, 0.5, 0.7"),
    ):
        assert found[net, dataset][4:6] == [epochs, batch]
        assert found[net, dataset][9] == rates
    ours = found["lenet-300-100", "fashion-mnist"]
    assert ours[3] == "266,610"
    assert ours[8:11] == ["0.3, 0.15, 0.08", "0.15", "0.15"]
    with pytest.raises(ValueError, match="dwf table4 takes no seeds"):
        reproduce("dwf", "table4", out=tmp_path, seeds=1)


def test_the_table_of_starts_tells_what_a_net_began_with():
    tuned = [row(key, 10.0, 0.85) for key in FASHION.tuned(3, "root", [0])[:1]]
    tuned += [row({**tuned[0], "lam": 1.0}, 1000.0, 0.81)]
    scratch = [row(FASHION.key("dwf", depth=3, lam=1e-3, factor_init="root"), c, a) for c, a in ((10.0, 0.88), (1000.0, 0.86))]
    pruned = [row(FASHION.key("magnitude", prune_to=c, after_epochs=8), c, 0.7) for c in (10.0, 50.0)]
    text = starts_table([row(FASHION.key("dense"), 1.0, 0.88), *tuned, *scratch, *pruned], "fashion-mnist", "lenet-300-100", 9)
    assert "7 of 9 runs, 1 seeds; 0 diverged." in text
    assert "| a random net | 75 | D = 3, root | 88.00 | 87.70 |" in text
    assert "| a trained net | 8 | D = 3, root | 85.00 | 84.40 |" in text
    assert text.count(" | 100 |") == 1  # where the curve of the tuned nets is at 83 %
    assert "| a trained net | 8 | GMP | 70.00 | – | 70.00 | – | – | – |" in text


def test_a_row_says_what_training_once_more_says(place):
    key = SMALL.key("dwf", depth=3, lam=2e-2, lr=0.4)
    (made,) = train([key], place)
    again = train_once(runs.config_of(key, place), images=place.images(runs.config_of(key, place))).net
    assert (made["accuracy"], made["weights"], made["parameters"]) == (again.accuracy, again.weights, again.total)
    assert made["compression"] == again.compression_ratio
    state = kept_state(place.net_file(key))
    assert all(torch.equal(state[name], tensor) for name, tensor in again.model.state_dict().items())
    assert made["kept"] == [int(again.model[i].weight.count_nonzero()) for i in (1, 3, 5)]
    assert [record["epoch"] for record in made["history"]] == [1, 2]
    assert not (place.folder / "state").exists() or not any((place.folder / "state").iterdir())


def test_the_figures_of_the_layers_are_those_of_the_factors(place):
    config = runs.config_of(SMALL.key("dwf", depth=3, lam=2e-2, lr=0.4), place)
    fit = Fit(config, place.images(config))
    fit.train_epoch()
    record = fit.end_epoch()
    factors = [[f.double() for f in fit.optimizer.factors(p)] for p in fit.model.parameters()]
    weights = [a * b * c for a, b, c in factors]
    lam = record["lam"]
    assert record["penalty"] == pytest.approx(lam / 3 * sum(float((f * f).sum()) for own in factors for f in own))
    assert record["norm"] == pytest.approx(math.sqrt(sum(float((w * w).sum()) for w in weights)), rel=1e-6)
    each = [lam / 3 * sum(float((f * f).sum()) for f in own) for own in factors[::2]]
    assert record["layers"]["penalty"] == pytest.approx(each)
    least = lam * sum(float(w.abs().pow(2 / 3).sum()) for w in weights)
    made = {"parameters": sum(w.numel() for w in weights)}
    assert record["penalty"] - excess(made, record) == pytest.approx(least, rel=1e-5)
    assert record["layers"]["kept"] == [int((w.abs() > 1.1920929e-07).sum()) for w in weights[::2]]
    each = [float(misalignment(own)) / own[0].numel() for own in factors[::2]]
    assert record["layers"]["misalignment"] == pytest.approx(each, rel=1e-12)


def test_a_pruned_run_begins_with_the_dense_net_and_is_that_of_one_piece(place):
    key = SMALL.key("magnitude", prune_to=8.0)
    (made,) = train([key], place)
    assert [r["method"] for r in place.table.rows] == ["dense", "magnitude"]
    config = runs.config_of(key, place)
    plain = {**config.to_dict(), "input_noise": 0.0}  # noise is drawn on the way, so two pieces draw other noise
    whole = train_once(type(config)(**plain), images=place.images(config)).net
    fit = Fit(type(config)(**plain), place.images(config))
    source = source_of(key)
    dense = type(config)(**{**runs.config_of(source, place).to_dict(), "input_noise": 0.0})
    fit.begin_with(train_once(dense, images=place.images(config)).net.model.state_dict())
    while not fit.done:
        fit.train_epoch()
        fit.end_epoch()
    assert all(torch.equal(p, q) for p, q in zip(runs.outcome(fit).model.parameters(), whole.model.parameters(), strict=True))
    assert made["compression"] == pytest.approx(8, rel=1e-3)
    assert [record["epoch"] for record in made["history"]] == [3, 4]


def test_a_net_is_factorized_when_it_is_trained(place):
    (key,) = Given("digits", "lenet-300-100", epochs=10, seeds=1, batch_size=20, points=1).tuned(3, "preserve")
    (made,) = train([key], place)
    dense, tuned = place.table.rows
    assert [(r["method"], r["depth"], r["epochs"], r["after_epochs"]) for r in (dense, tuned)] == [
        ("dense", 1, 10, 0),
        ("dwf", 3, 10, 1),
    ]
    assert source_of(key) == {column: dense[column] for column in KEY}
    assert [record["epoch"] for record in made["history"]] == [1]
    config = runs.config_of(key, place)
    assert (config.epochs, config.lr, config.depth) == (1, key["after_lr"], 3)
    weights = kept_state(place.net_file(source_of(key)))
    fit = Fit(config, place.images(config))
    fit.begin_with(weights)
    for name, p in fit.model.named_parameters():
        a, b, c = fit.optimizer.factors(p)
        floor = weights[name].abs() > 1e-4
        assert floor.any()
        assert torch.allclose((a * b * c)[floor], weights[name][floor], rtol=1e-6, atol=0)


def test_interrupted_runs_end_in_the_same_table_and_nothing_is_trained_twice(place, monkeypatch, tmp_path):
    keys = [SMALL.key("dense"), *(SMALL.key("dwf", depth=2, lam=lam) for lam in (1e-3, 1e-2)), SMALL.key("snip", prune_to=8.0)]
    whole = train(keys, place)
    broken = Place(tmp_path / "broken")
    monkeypatch.setattr(runs, "CHECKPOINT_SECONDS", 0.0)  # a checkpoint after every step
    honest, steps = Fit._step, []

    def stopping(fit, images, labels):
        honest(fit, images, labels)
        steps.append(1)
        if len(steps) in (3, 14):
            raise KeyboardInterrupt  # as a kill would, in the middle of a run: nothing is written any more

    monkeypatch.setattr(Fit, "_step", stopping)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(keys, broken)
    rows = train(keys, broken)
    assert len(steps) == 2 * 5 * 4 + 2  # of each killed run the step that no checkpoint knew
    timed = ("seconds",)
    for made, expected in zip(rows, whole, strict=True):
        assert {k: v for k, v in made.items() if k not in timed} == {k: v for k, v in expected.items() if k not in timed}
    assert train(keys, broken) == rows
    assert len(steps) == 2 * 5 * 4 + 2
    assert broken.table.rows_of(keys[2:]) == rows[2:]


def test_rows_that_another_process_wrote_before_it_let_go_are_not_trained_again(place, monkeypatch):
    key = SMALL.key("dense")
    (there,) = train([key], place)
    line = place.table.path.read_text()
    place.table.path.write_text("")

    @contextmanager
    def later(folder):
        place.table.path.write_text(line)
        yield

    monkeypatch.setattr(runs, "alone_in", later)
    monkeypatch.setattr(runs, "train_net", lambda *_, **__: pytest.fail("it is there"))
    assert train([key], place) == [there]
    assert place.table.path.read_text() == line


def test_the_runs_of_the_first_seed_come_first_and_rows_in_the_order_that_was_asked_for(place):
    given = replace(SMALL, seeds=2, epochs=1)
    keys = [given.key("dense", 1), given.key("snip", 0, prune_to=8.0), given.key("dense", 0)]
    rows = train(keys, place)
    assert [(r["method"], r["seed"]) for r in place.table.rows] == [("snip", 0), ("dense", 0), ("dense", 1)]
    assert [(r["method"], r["seed"]) for r in rows] == [("dense", 1), ("snip", 0), ("dense", 0)]


def test_a_net_that_is_mostly_zeros_is_kept_as_what_is_left_of_it(tmp_path):
    state = {"few": torch.zeros(30, 40), "half": torch.ones(8), "none": torch.zeros(3, 2), "count": torch.tensor(7)}
    state["few"][3, 5], state["few"][29, 39], state["half"][:4] = -1.5, 2.0, 0.0
    keep_state(tmp_path / "net", state)
    names = set(load_file(tmp_path / "net"))
    parts = {f"{name}:{part}" for name in ("few", "none") for part in ("places", "values", "shape")}
    assert names == {"half", "count", *parts}
    assert (tmp_path / "net").stat().st_size < 30 * 40 * 4
    kept = kept_state(tmp_path / "net")
    assert all(torch.equal(kept[name], tensor) and kept[name].dtype == tensor.dtype for name, tensor in state.items())


def test_a_signal_is_answered_with_how_to_go_on(place, monkeypatch):
    monkeypatch.setattr(runs.StopSignal, "wanted", lambda stop: True)
    monkeypatch.setattr(runs.StopSignal, "number", 2, raising=False)
    monkeypatch.setattr(runs.StopSignal, "__init__", lambda stop: stop.__dict__.update(_before={}))
    with pytest.raises(TrainingInterrupted, match="the same command goes on from there"):
        train([SMALL.key("dense")], place)


def test_a_diverged_run_is_a_row(place):
    key = SMALL.key("dwf", depth=4, lam=1e-3, lr=1e6)
    (made,) = train([key], place)
    assert (made["status"], made["stopped_at"]) == ("diverged", 1)
    assert train([fine_tuned(key, 8.0, 1, 0.1)], place)[0]["status"] == "diverged"


def test_from_the_command_line_to_the_figure_of_nets_pruned_further(place, capsys):
    command = ["reproduce", "dwf", "fig21", "--dataset", "digits", "--model", "lenet-300-100", "--epochs", "1", "--seeds", "1"]
    assert main([*command, "--points", "1", "--out", str(place.folder)]) == 0
    rows = place.table.rows
    assert [(r["method"], r["depth"], r["after_epochs"]) for r in rows] == [("dwf", 2, 0)] + [("magnitude", 2, 50)] * 3
    assert [r["prune_to"] for r in rows[1:]] == [float(f"{f * rows[0]['compression']:.4g}") for f in (2, 4, 8)]
    said = capsys.readouterr().err
    assert "3/3  digits, lenet-300-100, magnitude, compression 8" in said
    assert [" left\n" in line for line in said.splitlines(keepends=True)] == [False, True, True, False]  # of 1 and of 3 runs


def test_the_time_that_is_left_goes_by_epochs():
    todo = [SMALL.key("dense"), SMALL.key("magnitude", prune_to=8.0, after_epochs=10), FASHION.key("snip", prune_to=8.0)]
    assert runs._left(todo, 1, 6.0) == "; about 4 min left"  # 2 of 2 + 10 + 75 epochs
    assert runs._left(todo, 3, 6.0) == ""


def test_what_no_run_ended_for_is_no_picture_and_an_empty_table(tmp_path):
    with pytest.raises(ConfigError, match="fig7: none of its 39 runs has ended well"):
        reproduce("dwf", "fig7", out=tmp_path, no_train=True)
    text = reproduce("dwf", "table2", out=tmp_path, no_train=True).read_text()
    assert "0 of 210 runs" in text
    assert "| D = 3 | – (87.84 ± 0.12) |" in text


@pytest.mark.parametrize(
    ("item", "options", "message"),
    [
        ("table2", {"seeds": 0}, "seeds is 0; it takes 1 or more"),
        ("fig8", {"points": 0}, "points is 0; it takes 1 or more"),
        ("fig1", {"lams": (1.0, 0.5)}, "lams is 1 0.5; it takes 0 < smallest λ <= largest λ"),
        ("fig1", {"lams": (1e-3, math.inf)}, "lam is inf; it takes"),
        ("fig1", {"methods": ["snip"]}, "fig1 compares no methods; drop methods"),
        ("table1", {"methods": ["random"]}, "methods: got 'random'; table1 takes some of dwf, magnitude, snip, synflow"),
        ("fig20", {"depths": [2, 3]}, "depths: fig20 shows one depth; got 2"),
        ("table2", {"dataset": "imagenet"}, "unknown name 'imagenet'"),
        ("table2", {"epochs": 0}, "epochs is 0"),
        ("table2", {"dataset": "mnist", "model": "vgg-16"}, "model vgg-16 has no settings for mnist"),
    ],
)
def test_a_setting_that_does_not_fit_is_named_before_anything_is_written(tmp_path, item, options, message):
    with pytest.raises(ConfigError, match=message):
        reproduce("dwf", item, out=tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_large_nets_go_the_same_way(tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(8, 3, 32, 32, generator=generator), torch.arange(8) % 2
    data = ImageData("tiny", images[:4], labels[:4], images[4:], labels[4:], ("a", "b"))
    monkeypatch.setattr(runs.datasets, "load", lambda *_, **__: data)
    monkeypatch.setattr(runs, "_PRUNED", (10.0,))
    given = Given("cifar-10", "resnet-18", epochs=1, seeds=1, batch_size=4)
    (made,) = train([given.key("dwf", depth=3, lam=9e-5)], Place(tmp_path))
    assert len(made["layers"]) == 21
    assert len(made["history"][0]["layers"]["kept"]) == len(made["layers"])
    assert (made["lr"], made["batch_size"]) == (0.5, 4)


def test_nets_are_compiled_on_demand_and_their_rows_keep_their_names(place, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda net, **_: compiled.append(net) or net)
    command = ["reproduce", "dwf", "fig1", "--dataset", "digits", "--depths", "2", "--points", "1", "--seeds", "1"]
    command += ["--epochs", "1", "--out", str(place.folder), "--quiet"]
    assert main([*command, "--compile"]) == 0
    nets = [net for net in compiled if isinstance(net, torch.nn.Module)]
    assert len(nets) == len((place.folder / "nets.jsonl").read_text().splitlines()) > 0
    compiled.clear()
    assert main(command) == 0
    assert not compiled
