import csv
import dataclasses
import errno
import json
from contextlib import contextmanager
from importlib import resources

import pytest
import torch

import sparsenn
from sparsenn.cli import main
from sparsenn.data import taught
from sparsenn.models import build_student, teacher
from sparsenn.ops import permutation
from sparsenn.papers import ITEMS, reproduce
from sparsenn.papers.l1 import courses, items, runs
from sparsenn.papers.l1.compare import comparison, reference
from sparsenn.papers.l1.runs import kept_weights
from sparsenn.papers.l1.settings import EXPERIMENTS, KEY, PAIRS, grid, jobs_of
from sparsenn.papers.l1.tables import correlations, loss_matrix, losses, mean_and_std, sparsities, weights
from sparsenn.training.errors import ConfigError, RunFolderError
from sparsenn.training.folder import alone_in
from sparsenn.training.table import Table

pytest.importorskip("scipy")


def test_the_grids_are_the_papers():
    sizes = {number: len(grid(number)) for number in EXPERIMENTS}
    assert sizes == dict.fromkeys(range(1, 7), 270)
    for number, own in EXPERIMENTS.items():
        for key in grid(number):
            limit = {0.2: 2000, 1.0: 5000}[key["scale"]] if number in (3, 4, 5) else 10_000
            assert key["size"] == (100_000 if number in (3, 4, 5) else 5120)
            assert key["max_epochs"] == (limit if key["method"] == "none" else 100_000)
        assert own.learning_rate("prox") == own.learning_rate("l1")
    flat = [key for job in jobs_of(grid(3)) for key in job]
    assert sorted(map(str, flat)) == sorted(map(str, grid(3)))
    assert [len(job) for job in jobs_of(grid(3))] == [5] * 54
    assert [len(job) for job in jobs_of(grid(2))] == [270]
    twice = grid(1, methods=["l1", "l1"], scales=[0.2, 0.2], seeds=[3, 3])
    assert twice == grid(1, methods=["l1"], scales=[0.2], seeds=[3])  # what is named twice is trained once


def test_learning_rates_are_those_of_the_stored_runs():
    text = resources.files("sparsenn.papers.l1").joinpath("reference.csv").read_text()
    usable = [row for row in csv.DictReader(text.splitlines()) if row["usable"] == "True"]
    for row in usable:
        method = row["reg"].replace("noReg", "none")
        assert EXPERIMENTS[int(row["exp"])].learning_rate(method) == float(row["lr"])


def row(loss, *, method="l1", scale=0.2, pair=("relu", "relu"), seed=1, sparsity=0.5, experiment=2, **changes):
    key = grid(experiment, methods=[method], scales=[scale], pairs=[pair], seeds=[seed])[0]
    figures = {"status": "finished", "loss": loss, "mse": loss, "sparsity": sparsity, "exact_sparsity": 0.0, "perfect": False}
    return {**key, **figures, "precision": 1, "recall": 1, "distance": 0, "epochs": 9, "lr": 0.01, "lam": 1e-5, **changes}


def test_a_cell_agrees_by_its_spread():
    published = next(
        c for c in reference() if (c.experiment, c.method, c.scale, c.teacher, c.student) == (2, "l1", 0.2, "relu", "tanh")
    )
    assert (published.loss, published.paper_loss, published.usable) == (3.617257, 3.6173, True)
    pair = ("relu", "tanh")
    near = comparison([row(3.60, pair=pair, sparsity=0.0), row(3.65, pair=pair, seed=2, sparsity=0.0)], 2)
    assert [(e["cell"], e["loss_agrees"], e["same_band"], e["sparsity_agrees"]) for e in near] == [
        (published, True, True, True)
    ]
    far = comparison([row(3.0, pair=pair), row(3.1, pair=pair, seed=2)], 2)
    assert [(e["loss_agrees"], e["same_band"], e["sparsity_agrees"]) for e in far] == [(False, True, False)]
    assert comparison([row(3.6, pair=pair, size=64)], 2) == []
    assert comparison([row(3.6, pair=pair, status="diverged")], 2) == []
    assert comparison([row(0.2, pair=("tanh", "relu"))], 2) == []  # published runs with random teachers


def test_a_sparsity_agrees_within_a_percentage_point_of_the_range():
    pair = ("relu", "relu")
    (cell,) = (c for c in reference() if (c.experiment, c.method, c.scale, c.teacher, c.student) == (2, "l1", 1.0, *pair))
    assert cell.sparsity == 81.25
    for beyond, agrees in ((0.99, True), (1.01, False)):
        for side in (-1, 1):
            near, far = (cell.sparsity + side * (beyond + extra) for extra in (0, 3))
            rows = [row(1e-4, scale=1.0, pair=pair, seed=s, sparsity=p / 100) for s, p in ((1, near), (2, far))]
            (entry,) = comparison(rows, 2)
            assert entry["sparsity_agrees"] is agrees


def test_tables_show_means_deviations_bands_and_the_papers_numbers():
    rows = [row(1e-4), row(3e-4, seed=2), row(0.3, method="prox")]
    table = losses(rows, 2, 0.2)
    assert "| ReLU → ReLU | 0.0002 ± 0.0001 low, 2 of 5 (0.0001 ± 0.0000) | 0.3000 ± 0.0000 high, 1 of 5 |" in table
    assert "0.0849 ± 0.1157, random teachers" in table
    assert mean_and_std([1e-4, 3e-4], 2) == "0.0002 ± 0.0001"
    text = sparsities([row(1e-4, experiment=4, scale=1.0, sparsity=0.9933)], 4)
    assert "| ReLU → ReLU | 99.33 (99.33, random teachers) |" in text
    matrix = loss_matrix([row(0.1, experiment=1, method="none", pair=("sigmoid", "relu"))], "none", 0.2)
    assert "| Sigmoid | 0.1000 (0.2557) |" in matrix


def test_the_correlation_is_of_ranks():
    rows = [row(loss, sparsity=s, seed=i) for i, (loss, s) in enumerate([(1e-4, 0.9), (1e-3, 0.8), (10.0, 0.1)], start=1)]
    assert "| L1 | 3 | -1.00 |" in correlations(rows)
    assert "| L1 | 1 | – |" in correlations(rows[:1])


def test_weights_stand_beside_the_teachers(tmp_path):
    values = [[0.5] * 12, [9e-5] * 32, [-0.00123] * 8]
    text = weights([("ours", row(1e-4, values=values)), ("none", None)], 2, tmp_path)
    assert "| layer 1 | 2.59, -2.83, 0.87 | 0.50, 0.50, 0.50<br>0.50" in text
    assert "| layer 3 | 0.86, -0.84 | -0.0012, -0.0012<br>" in text
    assert text.count("| –") == 4
    assert "| layer 2 | -1.38, 1.29 | 0, 0<br>" in text


def test_an_experiment_from_nothing_to_its_report(tmp_path, capsys):
    command = ["reproduce", "l1", "exp2", "--size", "48", "--epochs", "2", "--seeds", "1", "--pairs", "matched"]
    assert main([*command, "--methods", "l1", "prox", "--scales", "0.2", "--out", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "exp2.jsonl").read_text().splitlines()]
    assert [(r["method"], r["teacher_activation"], r["student_activation"]) for r in rows] == [
        (method, a, a) for method in ("l1", "prox") for a in ("relu", "tanh", "sigmoid")
    ]
    assert {r["version"] for r in rows} == {sparsenn.__version__}
    assert all(r["weights"] == [12, 32, 8] and r["epochs"] == 2 and r["status"] == "finished" for r in rows)
    assert [w.shape for w in kept_weights(rows[0], tmp_path)] == [(1, 4, 1, 3), (1, 4, 4, 2), (1, 1, 4, 2)]
    report = (tmp_path / "exp2.md").read_text()
    assert "- L1: 3 of 90 runs of 48 samples, lr 0.01, λ 1e-05; 0 diverged; 2 to 2 epochs" in report
    assert "Beside the published runs" not in report
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["exp2.jsonl", "exp2.md"]
    before = (tmp_path / "exp2.jsonl").read_bytes()
    assert main([*command, "--methods", "l1", "--scales", "0.2", "--out", str(tmp_path), "--no-train"]) == 0
    assert (tmp_path / "exp2.jsonl").read_bytes() == before
    capsys.readouterr()


@pytest.mark.parametrize("method", ["l1", "l2", "none"])
def test_a_run_is_the_public_codes_loop(tmp_path, method):
    """Its L2 is in the loss and, once more, in the optimizer as weight decay, of which the loss knows nothing."""
    key = grid(2, methods=[method], scales=[1.0], pairs=[("tanh", "sigmoid")], seeds=[3], size=40, epochs=30)[0]
    (made,) = runs.train([key], tmp_path)
    x, y = taught(teacher("baselineCNN", "tanh"), 40, seed=3)
    net = build_student("multiChannelCNN", "sigmoid", seed=3)
    decay = {"weight_decay": 1e-5} if method == "l2" else {}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, **decay)
    means = []
    for epoch in range(30):
        found = []
        for batch in permutation(40, 3, epoch).split(16):
            loss = (net(x[batch]) - y[batch]).square().mean()
            if method == "l1":
                loss = loss + 1e-5 * sum(p.abs().sum() for p in net.parameters())
            if method == "l2":
                loss = loss + 1e-5 * sum(p.square().sum() for p in net.parameters())
            found.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        means.append(sum(found) / len(found))
    assert made["loss"] == pytest.approx(min(means), rel=1e-5)
    assert made["last_loss"] == pytest.approx(means[-1], rel=1e-5)
    for ours, theirs in zip(kept_weights(made, tmp_path), net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-7)


def test_courses_say_since_when_a_run_has_the_weights_that_it_ends_with(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "LAM", 0.05)  # zeros within a few epochs
    out = tmp_path / "out"
    asked = {"out": out, "pairs": "matched", "scales": [0.2], "seeds": 2, "size": 64, "epochs": 40}
    path = reproduce("l1", "courses", **asked)
    assert sorted(entry.name for entry in out.iterdir()) == ["courses.jsonl", "courses.md"]
    rows = [json.loads(line) for line in (out / "courses.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 3 * 2
    key = grid(2, methods=["prox"], scales=[0.2], pairs=[("tanh", "tanh")], seeds=[2], size=64, epochs=40)[0]
    (found,) = [r for r in rows if {name: r[name] for name in KEY} == key]
    ends = []
    for epochs in range(1, found["epochs"] + 1):  # by as many runs of every length
        (short,) = runs.train([{**key, "max_epochs": epochs}], tmp_path / "short")
        weights = torch.cat([w.flatten() for w in kept_weights(short, tmp_path)])
        ends.append(((weights.abs() >= 1e-4).nonzero().flatten().tolist(), weights.nonzero().flatten().tolist()))
    assert ends[-1] == (found["support"], found["exact_support"])
    for which, since in enumerate((found["settled"], found["exact_settled"])):
        assert all(end[which] == ends[-1][which] for end in ends[since - 1 :])
        assert since > 1
        assert ends[since - 2][which] != ends[-1][which]
    assert all(r["exact_settled"] is None and len(r["exact_support"]) == 52 for r in rows if r["method"] == "l1")
    text = path.read_text()
    assert "# Experiment 2: baselineCNN → multiChannelCNN: when connections are found" in text
    assert text.count(" of 2 |") == 3
    before = (out / "courses.jsonl").read_bytes()
    reproduce("l1", "courses", **asked)
    assert (out / "courses.jsonl").read_bytes() == before


def test_courses_that_another_process_wrote_before_it_let_go_are_not_taken_again(tmp_path, monkeypatch):
    keys = grid(2, methods=["prox"], scales=[0.2], pairs=[("relu", "relu")], seeds=1, size=32, epochs=2)
    courses.train(keys, tmp_path)
    path = courses.table_in(tmp_path).path
    line = path.read_text()
    path.write_text("")

    @contextmanager
    def later(folder):
        folder.mkdir()
        path.write_text(line)
        yield

    monkeypatch.setattr(courses, "alone_in", later)
    monkeypatch.setattr(courses, "_rows", lambda group: pytest.fail("it is there"))
    courses.train(keys, tmp_path)
    assert path.read_text() == line


def test_killed_runs_go_on_and_rows_from_elsewhere_count(tmp_path, monkeypatch):
    keys = grid(1, methods=["l1"], scales=[0.2], seeds=1, size=32, epochs=3)
    whole = runs.train(keys, tmp_path / "whole")
    few = Table(tmp_path / "few" / "exp1.jsonl", KEY)
    for made in whole[:4]:
        few.add(made)
    trained = []
    job = runs._job

    def killed(group, folder):
        trained.append(len(group))
        made = job(group, folder)
        return dataclasses.replace(made, build=lambda: (_ for _ in ()).throw(KeyboardInterrupt))

    monkeypatch.setattr(runs, "_job", killed)
    with pytest.raises(KeyboardInterrupt):
        runs.train(keys, tmp_path / "few")
    assert trained == [5]
    monkeypatch.setattr(runs, "_job", lambda group, folder: trained.append(len(group)) or job(group, folder))
    few.add(whole[4])
    again = runs.train(keys, tmp_path / "few")
    assert trained == [5, 5]  # the list that was begun, whose checkpoint would hold all of it
    for made, expected in zip(again, whole, strict=True):
        assert {c: made[c] for c in KEY} == {c: expected[c] for c in KEY}
        assert made["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert [entry.name for entry in (tmp_path / "few").iterdir()] == ["exp1.jsonl"]


def test_an_experiment_that_another_process_trains_is_left_alone_and_the_others_are_free(tmp_path):
    few = {"methods": ["l1"], "scales": [0.2], "pairs": [("relu", "relu")], "seeds": 1, "size": 32, "epochs": 1}
    with alone_in(tmp_path / "exp1.state"):
        with pytest.raises(RunFolderError, match=r"exp1\.state: another process trains here"):
            runs.train(grid(1, **few), tmp_path)
        runs.train(grid(2, **few), tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["exp1.state", "exp2.jsonl"]
    runs.train(grid(1, **few), tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["exp1.jsonl", "exp2.jsonl"]


def test_a_weight_map_of_a_large_student(tmp_path):
    pytest.importorskip("matplotlib")
    picture = reproduce("l1", "fig6", out=tmp_path, size=32, epochs=1)
    assert picture.read_bytes().startswith(b"\x89PNG")
    stored = json.loads((tmp_path / "exp3.jsonl").read_text())
    assert "values" not in stored
    kept = kept_weights(stored, tmp_path)
    assert [w.shape for w in kept] == [(256, 12), (32, 256), (1, 32)]
    assert [int((w.abs() >= 1e-4).sum()) for w in kept] == stored["nonzero"]


def test_a_weight_map_of_a_copied_table_trains_what_has_no_weights(tmp_path):
    pytest.importorskip("matplotlib")
    reproduce("l1", "fig6", out=tmp_path / "first", size=32, epochs=1)
    copied = tmp_path / "copied"
    copied.mkdir()
    other = row(0.1, experiment=3)
    lines = (tmp_path / "first" / "exp3.jsonl").read_text(), json.dumps(other) + "\n"
    (copied / "exp3.jsonl").write_text("".join(lines))
    with pytest.raises(RunFolderError, match=r"l1-tanh-tanh-0\.2-1-32-1\.safetensors missing, .*; drop --no-train"):
        reproduce("l1", "fig6", out=copied, size=32, epochs=1, no_train=True)
    assert [entry.name for entry in copied.iterdir()] == ["exp3.jsonl"]
    reproduce("l1", "fig6", out=copied, size=32, epochs=1)
    stored = [json.loads(line) for line in (copied / "exp3.jsonl").read_text().splitlines()]
    assert stored[0] == other
    assert len(stored) == 2
    first, second = (kept_weights(stored[1], tmp_path / name) for name in ("first", "copied"))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_report_is_of_all_rows_of_this_size_whichever_were_asked_for(tmp_path):
    Table(tmp_path / "exp2.jsonl", KEY).add(row(1e-4))
    for made in (
        row(3e-4, method="prox"),
        row(7.7, method="l2", size=64),
        row(2e-4, seed=6, pair=("tanh", "tanh")),
        row(2e-4, scale=0.5, lam=2.0),
    ):
        Table(tmp_path / "exp2.jsonl", KEY).add(made)
    asked = {"methods": ["prox"], "scales": [0.2], "pairs": "matched", "seeds": 1, "no_train": True}
    report = reproduce("l1", "exp2", out=tmp_path, **asked).read_text()
    assert "- L1: 1 of 90 runs and 2 others of 5120 samples, lr 0.01, λ 1e-05, 2; " in report
    assert "- proximal L1: 1 runs" in report
    assert "Of the paper's runs 269 are not there" in report
    assert "| ReLU → ReLU | 0.0001 ± 0.0000 low, 1 of 5" in report
    assert "7.7" not in report
    done = reproduce("l1", "exp2", out=tmp_path, **{**asked, "size": 64, "methods": ["l2"]}).read_text()
    assert "- L2: 1 of 90 runs of 64 samples" in done


def test_a_folder_of_others_or_one_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "letter.txt").write_text("dear")
    few = {"methods": ["l1"], "scales": [0.2], "pairs": "matched", "seeds": 1, "size": 32, "epochs": 1}
    with pytest.raises(RunFolderError, match="holds other files; name another folder with --out"):
        reproduce("l1", "exp1", out=tmp_path, **few)
    assert [entry.name for entry in tmp_path.iterdir()] == ["letter.txt"]
    for out in (tmp_path / "letter.txt" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(RunFolderError, match=r"cannot be written \(.*\); name another folder with --out"):
            reproduce("l1", "exp1", out=out, **few)

    def fail(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(items, "write_atomic", fail)
    with pytest.raises(RunFolderError, match=r"new: cannot be written \(Permission denied\); name another folder with --out"):
        reproduce("l1", "exp1", out=tmp_path / "new", no_train=True)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/elsewhere/data"),
        PermissionError(errno.EACCES, "Permission denied", "/elsewhere/data"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
    ],
)
def test_an_error_that_is_not_about_the_folder_stays_what_it_is(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(items, "train", fail)
    with pytest.raises(type(error)) as caught:
        reproduce("l1", "exp1", out=tmp_path)
    assert caught.value is error


@pytest.mark.parametrize("item", ["table1", "table2", "table5", "table11", "fig3", "fig4"])
def test_an_item_can_be_made_of_few_rows_or_none(tmp_path, item):
    own = items._ITEMS[item]
    if item.startswith("fig"):  # a picture of nothing would look like a result
        pytest.importorskip("matplotlib")
        with pytest.raises(ConfigError, match=rf"{item}: none of its \d+ runs is in .*; without no-train they are trained"):
            reproduce("l1", item, out=tmp_path, no_train=True)
        assert not list(tmp_path.iterdir())
    else:
        assert reproduce("l1", item, out=tmp_path, no_train=True).stat().st_size > 0
    first = own.columns[0] if own.columns else items.Column("l1", 0.2, "relu", "relu")
    names = {"method": first.method, "scale": first.scale, "pair": (first.teacher, first.student), "seed": first.seed}
    counts = [p.numel() for p in build_student(EXPERIMENTS[own.experiment].student, "relu", seed=0).parameters()]
    values = [torch.linspace(-2, 2, n).tolist() for n in counts]
    made = row(0.1, experiment=own.experiment, **names, weights=counts, nonzero=counts, values=values)
    (tmp_path / f"exp{own.experiment}.jsonl").write_text(json.dumps(made) + "\n")
    path = reproduce("l1", item, out=tmp_path, no_train=True)
    if path.suffix == ".md" and item != "table5":
        assert any(text in path.read_text() for text in ("50.00", "-2.00"))


def test_the_command_line_names_every_item():
    assert set(items._ITEMS) | {f"exp{n}" for n in EXPERIMENTS} == set(ITEMS["l1"])
    for item in items._ITEMS.values():
        for column in item.columns:
            assert (column.teacher, column.student) in PAIRS


@pytest.mark.parametrize(
    ("item", "options", "message"),
    [
        ("exp1", {"methods": ["l3"]}, "methods: got 'l3'; it takes some of l1, l2, none, prox"),
        ("exp1", {"scales": [0.0]}, "scales: got 0.0; it takes numbers above 0"),
        ("exp1", {"seeds": 0}, "seeds is 0; it takes 1 or more"),
        ("exp1", {"size": 10**12}, "size is 1000000000000; it takes a whole number from 1 to 100000000"),
        ("exp1", {"epochs": 2**31}, "epochs is 2147483648; it takes a whole number from 1 to 2147483647"),
        ("exp1", {"size": 0}, "size is 0; it takes a whole number from 1 to 100000000"),
        ("exp1", {"pairs": "some"}, "pairs is 'some'; it takes all or matched"),
        ("table2", {"seeds": 3, "pairs": "matched"}, "table2 shows single runs; it has no use for seeds, pairs"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(tmp_path, item, options, message):
    with pytest.raises(ConfigError, match=message):
        reproduce("l1", item, out=tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_options_of_other_papers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="l1 exp1 takes no dataset, data-root; it takes "):
        reproduce("l1", "exp1", dataset="mnist", data_root="x")
    with pytest.raises(ValueError, match="rbv2 fig2 takes no no-train"):
        reproduce("rbv2", "fig2", no_train=True)
    with pytest.raises(ValueError, match=r"unknown l1 fig99; known are dwf table1, .*, l1 exp1"):
        reproduce("l1", "fig99")
