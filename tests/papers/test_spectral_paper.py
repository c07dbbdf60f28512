"""The rows of the spectral paper, what is read from them, and the figures on small tasks."""

import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import sparsenn
from sparsenn import cli, data
from sparsenn.data import DataError
from sparsenn.metrics import path_magnitudes
from sparsenn.models import soft_committee
from sparsenn.papers import reproduce
from sparsenn.papers.spectral import core, experiments, fig1, fig4, grouplasso, trials
from sparsenn.papers.spectral.experiments import EXPERIMENTS, Experiment, loss_of, teacher
from sparsenn.papers.spectral.pictures import exponential_fit, mean_curve, summary
from sparsenn.papers.spectral.trials import collect, core_sizes, measure

TEACHER = (5, 3, 4)


def small_task(root=None, train=300):
    return data.from_teacher(teacher(TEACHER), 5, train=train, test=100)


SMALL = Experiment("small teacher", small_task, widths=(3, 12), epochs=3, trials=2, reference=3, hidden2=4)


@pytest.fixture
def small(monkeypatch):
    for module in (experiments, core, fig1, fig4, grouplasso):
        monkeypatch.setitem(module.EXPERIMENTS, "teacher", SMALL)


def test_the_students_of_a_trial_share_their_links_and_no_student_starts_as_the_teacher():
    task = EXPERIMENTS["teacher"].load(None)
    assert (len(task.train_inputs), len(task.test_inputs)) == (13_000, 1_000)
    torch.testing.assert_close(task.test_targets, teacher()(task.test_inputs))
    spectral, direct = (EXPERIMENTS["teacher"].make(net, task, 20, 20, 0) for net in ("spectral", "direct"))
    assert torch.equal(spectral[0].phi, -direct[0].weight)
    assert torch.equal(spectral[2].weight, direct[2].weight)
    assert not torch.equal(direct[0].weight, teacher()[0].weight)
    other = EXPERIMENTS["teacher"].make("direct", task, 20, 20, 1)
    assert not torch.equal(direct[0].weight, other[0].weight)


@pytest.mark.parametrize("net", ["spectral", "direct"])
def test_the_pruning_curve_is_that_of_nets_without_these_nodes(net):
    task = small_task()
    student = SMALL.make(net, task, 9, 4, 0)
    row = measure(student, task)
    order = sparsenn.prune.node_relevance(student[0]).argsort(descending=True)
    assert row["relevances"] == sorted(row["relevances"], reverse=True)
    assert [n for n, _ in row["pruned"]] == list(range(10))
    for kept, rise in row["pruned"]:
        smaller = soft_committee(5, (kept, 4)) if kept else None
        truth = float(loss_of(torch.zeros(100, 1), task.test_targets))
        if smaller is not None:
            smaller[0].weight.data = student[0].weight.data[order[:kept]]
            smaller[2].weight.data = student[2].weight.data[:, order[:kept]]
            truth = loss_of(smaller(task.test_inputs), task.test_targets).item()
        assert rise == pytest.approx(truth - row["test_loss"], rel=1e-3, abs=1e-5)
    assert row["pruned"][-1] == (9, 0.0)
    truth = path_magnitudes(student[0].weight, student[2].weight, trials.POINTS)
    assert row["paths"] == pytest.approx(truth.tolist(), rel=1e-3, abs=1e-7)


def test_the_paths_of_a_spectral_student_leave_out_dead_nodes():
    task = small_task()
    student = SMALL.make("spectral", task, 9, 4, 0)
    with torch.no_grad():
        student[0].lambda_out[2:] = 1e-4
    alive = path_magnitudes(student[0].weight[:2], student[2].weight[:, :2], trials.POINTS)
    assert measure(student, task)["paths"] == pytest.approx(alive.tolist(), rel=1e-3, abs=1e-7)


def test_cores_are_counted_against_the_largest_relevance_of_all_trials():
    rows = [{"relevances": [2.0, 1.0, 0.11, 0.1, 0.0]}, {"relevances": [1.0, 0.09, 0.01]}, {"relevances": []}]
    assert core_sizes(rows[:1]) == [4]
    assert core_sizes(rows[:2]) == [4, 1]
    assert core_sizes([{"relevances": [0.0, 0.0]}]) == [2]


def test_an_exponential_is_found_and_what_is_not_positive_left_out():
    points = [(n, 3.0 * math.exp(-0.4 * n)) for n in range(2, 9)]
    assert exponential_fit([*points, (9, -1e-4), (10, 0.0)]) == pytest.approx((3.0, 0.4))
    assert exponential_fit(points[:1] * 3) is None
    rows = [{"pruned": [[0, 4.0], [1, 1.0]]}, {"pruned": [[0, 2.0], [1, 0.0]]}]
    assert mean_curve(rows) == [(0, 3.0), (1, 0.5)]


def test_rows_are_trained_once_and_shared(tmp_path, monkeypatch):
    rows = collect("small", SMALL, tmp_path)
    text = (tmp_path / "small.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == json.loads(json.dumps(rows))
    assert {(r["net"], r["h"], r["trial"]) for r in rows} == {(n, h, t) for n in trials.NETS for h in (3, 12) for t in (0, 1)}
    assert all(r["samples"] == 300 and r["epochs"] == 3 and r["alpha_phi"] == 0.01 for r in rows)
    trained = []
    honest = trials.train_together
    monkeypatch.setattr(trials, "train_together", lambda nets, *a, **k: trained.append(k["seeds"]) or honest(nets, *a, **k))
    assert len(collect("small", SMALL, tmp_path, widths=[3], trials=1)) == 2
    assert trained == []
    more = collect("small", SMALL, tmp_path, widths=[12], nets=["spectral"], trials=3)
    assert trained == [[2]]
    assert [r["trial"] for r in more] == [0, 1, 2]
    assert (tmp_path / "small.jsonl").read_text().startswith(text)
    trained.clear()
    other = collect("small", SMALL, tmp_path, widths=[3], trials=1, nets=["direct"], second_layer=True)
    assert trained == [[0]]
    assert other[0]["test_loss"] != next(r for r in rows if r["net"] == "direct" and r["h"] == 3)["test_loss"]
    for given, message in (({"trials": 0}, "trials is 0"), ({"widths": [3, 0]}, "widths is 0"), ({"epochs": 0}, "epochs is 0")):
        with pytest.raises(ValueError, match=f"small: {message}; it takes 1 or more"):
            collect("small", SMALL, tmp_path, **given)


def test_spectral_students_lose_the_nodes_that_a_direct_one_keeps(tmp_path):
    task = replace(SMALL, load=partial(small_task, train=1500), epochs=120, strength=4.0)
    cores = {net: core_sizes(collect(net, task, tmp_path, widths=[30], nets=[net])) for net in trials.NETS}
    assert max(cores["spectral"]) < 20
    assert min(cores["direct"]) > 25


@pytest.mark.usefixtures("small")
def test_the_figures_of_the_teacher(tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "s"
    for item, given in (("fig2", {}), ("fig1", {"widths": (3, 12)}), ("fig4", {"widths": (12,)})):
        picture = reproduce("spectral", item, out=out, **given)
        assert picture == out / f"{item}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
    lines = [line.split(",") for line in (out / "fig2.csv").read_text().splitlines()]
    assert [line[:2] for line in lines[1:]] == [[n, h] for n in ("spectral", "direct") for h in ("3", "12")]
    rows = [
        r for r in map(json.loads, (out / "teacher.jsonl").read_text().splitlines()) if (r["net"], r["h"]) == ("direct", 12)
    ]
    assert len(rows) == 2
    values = dict(zip(lines[0], lines[-1], strict=True))
    losses = [r["test_loss"] for r in rows]
    assert float(values["test_loss_mean"]) == pytest.approx(np.mean(losses), rel=1e-3)
    assert float(values["test_loss_std"]) == pytest.approx(np.std(losses), rel=1e-3, abs=1e-9)
    assert values["trials"] == "2"
    assert values["test_accuracy_mean"] == ""
    assert len((out / "teacher.jsonl").read_text().splitlines()) == 8  # one table for all three
    with pytest.raises(ValueError, match="fig4: widths is"):
        reproduce("spectral", "fig4", out=out, widths=(3, 12))


def test_features_of_a_backbone_through_three_spectral_layers(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(3, 8))
    labels = np.arange(90) % 3
    x = centres[labels] + 0.1 * generator.normal(size=(90, 8))
    np.savez(tmp_path / "f.npz", train_features=x[:60], train_labels=labels[:60], test_features=x[60:], test_labels=labels[60:])
    out = tmp_path / "s"
    flags = ["--widths", "6", "--hidden2", "5", "--trials", "2", "--epochs", "150", "--quiet", "--out", str(out)]
    assert cli.main(["reproduce", "spectral", "fig3e", *flags, "--features", str(tmp_path / "f.npz")]) == 0
    rows = [json.loads(line) for line in (out / "cifar100-features.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert all(row["test_accuracy"] > 0.9 and row["hidden2"] == 5 for row in rows)
    assert "test_accuracy_mean" in (out / "fig3e.csv").read_text()
    assert cli.main(["reproduce", "spectral", "fig3e", *flags]) == 1
    assert "--features FILE names them" in capsys.readouterr().err
    with pytest.raises(DataError, match="there is no such file"):
        reproduce("spectral", "fig3e", out=out, features=str(tmp_path / "none.npz"))


def test_an_option_of_another_item_is_refused(capsys):
    assert cli.main(["reproduce", "spectral", "fig1", "--lams", "1", "2"]) == 2
    err = capsys.readouterr().err
    assert "spectral fig1 takes no lams; it takes out, widths, trials, epochs, quiet" in err
    assert cli.main(["reproduce", "dwf", "fig1", "--trials", "2"]) == 2


def test_the_summary_counts_what_the_cut_costs():
    row = {"net": "spectral", "h": 3, "hidden2": 4, "second_layer": False, "epochs": 1, "samples": 9, "test_loss": 0.5}
    rows = [
        {**row, "test_accuracy": 0.75, "relevances": [1.0, 0.5, 0.01], "pruned": [[0, 9.0], [1, 2.0], [2, 0.25], [3, 0.0]]},
        {**row, "test_accuracy": 0.25, "relevances": [1.0, 0.02, 0.01], "pruned": [[0, 9.0], [1, 0.75], [2, 0.1], [3, 0.0]]},
    ]
    head, line = (text.split(",") for text in summary(rows).decode().splitlines())
    values = dict(zip(head, line, strict=True))
    assert (values["core_mean"], values["core_std"]) == ("1.5", "0.5")
    assert (values["loss_above_core_mean"], values["test_accuracy_mean"]) == ("0.5", "0.5")


@pytest.mark.usefixtures("small")
def test_the_group_lasso_of_the_same_strength_has_exact_zeros(tmp_path, monkeypatch):
    monkeypatch.setattr(grouplasso, "LAM", 0.3)
    path = reproduce("spectral", "grouplasso", out=tmp_path, widths=(12,), trials=2, epochs=150)
    lines = [line.split(",") for line in path.read_text().splitlines()]
    assert [line[0] for line in lines[1:]] == ["spectral", "direct", "group lasso"]
    table = (tmp_path / "grouplasso.jsonl").read_text()
    rows = [json.loads(line) for line in table.splitlines()]
    assert len(rows) == 2
    alive = [sum(r > 0 for r in row["relevances"]) for row in rows]
    assert 0 < min(alive) <= max(alive) < 12
    assert float(dict(zip(lines[0], lines[-1], strict=True))["not_zero_mean"]) == sum(alive) / 2
    reproduce("spectral", "grouplasso", out=tmp_path, widths=(12,), trials=2, epochs=150)
    assert (tmp_path / "grouplasso.jsonl").read_text() == table
    net = SMALL.make("direct", small_task(), 12, 4, 0)
    assert rows[0]["test_loss"] < measure(net, small_task())["test_loss"]  # it has learned


def test_the_group_lasso_s_strength_is_that_of_the_paper_s_alphas():
    assert pytest.approx(2 * (5e-4 * 1e-2) ** 0.5) == grouplasso.LAM
