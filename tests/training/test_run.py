import dataclasses
import errno
import json
import os
import signal

import pytest
import safetensors.torch
import torch

import sparsenn
from sparsenn import models
from sparsenn.optim import balance
from sparsenn.training import (
    ConfigError,
    Fit,
    RunFolderError,
    TrainingDiverged,
    TrainingInterrupted,
    configure,
    resume,
    run,
    schedules,
    train,
)
from sparsenn.training.checkpoint import load_checkpoint
from sparsenn.training.folder import alone_in, fresh_name, open_new
from sparsenn.training.result import Result

FILES = {
    "accuracy.png",
    "checkpoint.pt",
    "compression.png",
    "config.json",
    "metrics.jsonl",
    "misalignment.png",
    "model.safetensors",
    "report.json",
    "report.txt",
    "sparse.safetensors",
    "twin",
    "weights.png",
}


def config(**given):
    return configure(
        **{
            "epochs": 4,
            "batch_size": 20,
            "eval_every": 1,
            "checkpoint_every": 2,
            "lam": 3e-2,
            "lr": 0.2,
            "clip_norm": 0,
            "input_noise": 0,
            "lam_schedule": "constant",
            **given,
        }
    )


@pytest.fixture(scope="module")
def finished(shapes, tmp_path_factory) -> Result:
    out = tmp_path_factory.mktemp("run") / "out"
    return train(config(epochs=200, eval_every=50, lam=1e-2, clip_norm=1.0), out, images=shapes)


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing takes longer than training here; the tests that do not look at the pictures leave it out."""
    monkeypatch.setattr(run, "write_pictures", lambda result, folder: [])


def test_a_run_says_which_factors_became_one_root(shapes, tmp_path, no_pictures, monkeypatch):
    def trained(name, **given):
        return train(config(depth=3, epochs=3, twin=False, **given), tmp_path / name, images=shapes)

    assert "No parameter's factors were ever balanced." in str(trained("never", balanced="auto"))
    assert "balanced from the start: one root" in str(trained("root", balanced="auto", factor_init="root"))
    plain = trained("plain")
    assert ("switches" in plain.to_dict()["net"], "switched" in plain.net.history[0]) == (False, False)
    monkeypatch.setattr(balance, "EVERY", 6)
    monkeypatch.setattr(balance, "imbalances", lambda factors, momenta: torch.tensor([1e-4, 2e-4]).double())
    result = trained("auto", balanced="auto")
    records = [json.loads(line) for line in (tmp_path / "auto" / "metrics.jsonl").read_text().splitlines()]
    names = sorted(name for name, _ in result.net.model.named_parameters())
    steps = -(-len(shapes.train_labels) // 20)
    assert [sorted(r["switched"]) for r in records] == [names if epoch * steps >= 6 else [] for epoch in (1, 2, 3)]
    report = json.loads((tmp_path / "auto" / "report.json").read_text())["net"]["switches"]
    assert sorted(report) == names
    assert {(own["factors"], own["momenta"]) for own in report.values()} == {
        (float(torch.tensor(1e-4)), float(torch.tensor(2e-4)))
    }
    largest = max(own["jump"] for own in report.values())
    assert f"a weight jumped by {largest:.2g} at most" in (tmp_path / "auto" / "report.txt").read_text()


def test_a_run_writes_its_folder_and_nothing_else(finished):
    assert {f.name for f in finished.folder.iterdir()} == FILES
    assert {f.name for f in (finished.folder / "twin").iterdir()} == {"checkpoint.pt", "metrics.jsonl", "model.safetensors"}


def test_the_stored_model_is_the_collapsed_net(finished, shapes):
    path = finished.folder / "model.safetensors"
    with safetensors.safe_open(path, "pt") as file:
        net = models.build(**{"name" if k == "model" else k: v for k, v in json.loads(file.metadata()["sparsenn"]).items()})
    net.load_state_dict(safetensors.torch.load_file(path))
    entries = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert not ((entries != 0) & (entries.abs() <= torch.finfo(torch.float32).eps)).any()
    assert int((entries != 0).sum()) == finished.net.weights
    right = (net.eval()(shapes.test_images).argmax(1) == shapes.test_labels).double().mean().item()
    assert right == finished.net.accuracy


def test_the_collapse_makes_exactly_the_small_weights_zero(finished):
    before, after = finished.net.before.total, finished.net.after.total
    assert before.below > before.zeros
    assert after.zeros == after.below == before.below
    assert finished.net.weights == after.numel - before.below


def test_the_net_of_the_fixture_is_sparse_and_right(finished):
    assert finished.net.compression_ratio > 30
    assert finished.net.accuracy == finished.twin.accuracy == 1.0


def test_the_dense_twin_is_not_collapsed_and_keeps_every_weight_but_biases_of_dead_neurons(finished):
    assert finished.twin.after == finished.twin.before
    assert all(row.zeros == 0 for row in finished.twin.after.layers if len(row.shape) > 1)
    assert finished.twin.total == finished.net.total


def test_the_report_holds_the_figures_of_the_result(finished):
    report = json.loads((finished.folder / "report.json").read_text())
    assert report["config"] == finished.net.config.to_dict() == json.loads((finished.folder / "config.json").read_text())
    assert report["net"]["weights"] == finished.net.weights
    assert report["net"]["before_collapse"] == finished.net.before.to_dict()
    assert report["comparison"]["times_fewer_weights"] == finished.twin.weights / finished.net.weights
    assert (finished.folder / "report.txt").read_text() == f"{finished}\n"


def test_the_report_compares_in_words(finished):
    better = Result(finished.twin, finished.net, None)
    assert f"{finished.fewer_weights:.1f} times fewer weights than the dense twin, 0.00 points of test accuracy lost." in str(
        finished
    )
    worse = Result(dataclasses.replace(finished.net, accuracy=0.75), dataclasses.replace(finished.twin, accuracy=0.8), None)
    assert "5.00 points of test accuracy lost" in str(worse)
    assert worse.points_lost == pytest.approx(5.0)
    assert Result(worse.twin, worse.net, None).points_lost == pytest.approx(-5.0)
    assert better.fewer_weights < 1


def test_metrics_are_json_lines_of_the_history(finished):
    lines = (finished.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == finished.net.history
    assert [r["epoch"] for r in finished.net.history] == [50, 100, 150, 200]


def test_a_model_that_cannot_be_traced_ends_in_a_complete_folder(shapes, tmp_path):
    result = train(config(model="row-transformer", epochs=1, twin=False), tmp_path / "r", images=shapes)
    assert {f.name for f in result.folder.iterdir()} == FILES - {"twin"}
    sentence = "The sparse artefact holds the tensors alone, which sparsenn.load(path, into=model) reads back: 'transpose'"
    assert sentence in (tmp_path / "r" / "report.txt").read_text()
    assert json.loads((tmp_path / "r" / "report.json").read_text())["untraced"] == result.untraced
    net = models.build("row-transformer", num_classes=3, image_size=8)
    sparsenn.load(tmp_path / "r" / "sparse.safetensors", into=net)
    assert all(torch.equal(tensor, result.net.model.state_dict()[name]) for name, tensor in net.state_dict().items())
    kept = (tmp_path / "r" / "report.txt").read_text()
    assert str(resume(tmp_path / "r", images=shapes)) + "\n" == kept


def test_the_artefact_of_a_run_is_its_net(finished, shapes):
    assert finished.untraced is None
    again = sparsenn.load(finished.folder / "sparse.safetensors")
    torch.testing.assert_close(again(shapes.test_images), finished.net.model(shapes.test_images))


def test_a_run_in_memory_writes_nothing_and_is_the_same(shapes, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = train(finished.net.config, images=shapes)
    assert result.folder is None
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(p, q) for p, q in zip(result.net.model.parameters(), finished.net.model.parameters(), strict=True))


def test_a_run_leaves_the_callers_random_numbers_and_threads(shapes):
    torch.manual_seed(1)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(1)
    train(config(epochs=1, threads=threads + 1), images=shapes)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_too_much_penalty_kills_the_net_and_the_report_says_so(shapes, tmp_path, no_pictures):
    result = train(config(lam=5.0, lr=0.02, epochs=60, eval_every=60), tmp_path / "dead", images=shapes)
    assert result.net.weights == 0
    assert result.net.history[-1]["compression_ratio"] is None
    assert "No weight is left" in str(result)
    report = json.loads((tmp_path / "dead" / "report.json").read_text())
    assert report["net"]["compression_ratio"] is None
    assert report["comparison"]["times_fewer_weights"] is None


def test_a_folder_with_a_run_is_refused_with_the_cure(finished, shapes):
    before = {f.name: f.stat().st_mtime_ns for f in finished.folder.iterdir()}
    with pytest.raises(RunFolderError, match="holds another run; add --resume to go on with it, or name another folder"):
        train(config(), finished.folder, images=shapes)
    assert before == {f.name: f.stat().st_mtime_ns for f in finished.folder.iterdir()}


def test_a_folder_with_other_files_is_refused(shapes, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunFolderError, match="is not empty"):
        train(config(), tmp_path, images=shapes)
    with pytest.raises(RunFolderError, match=r"letter\.txt: cannot be written"):
        train(config(), tmp_path / "letter.txt", images=shapes)
    with pytest.raises(RunFolderError, match=r"letter\.txt/of/mine: cannot be written"):  # the error is of a parent
        train(config(), tmp_path / "letter.txt/of/mine", images=shapes)


def test_a_folder_is_for_one_process_at_a_time(finished, shapes, tmp_path):
    half = finished.folder / "checkpoint.pt.part"
    half.write_bytes(b"ha")
    with alone_in(finished.folder), pytest.raises(RunFolderError, match="another process trains here; wait for it"):
        resume(finished.folder, images=shapes)
    assert half.read_bytes() == b"ha"  # the other process may be about to write it
    half.unlink()
    with alone_in(tmp_path), pytest.raises(RunFolderError, match="another process trains here"):
        train(config(), tmp_path, images=shapes)
    assert list(tmp_path.iterdir()) == []  # of two that find the same empty folder, one writes its settings


def test_a_full_disk_is_a_sentence(shapes, tmp_path, no_pictures, monkeypatch):
    whole = train(config(), images=shapes)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sparsenn.training.checkpoint.write_atomic", full)
        sentence = r"r: cannot be written \(No space left on device\); go on with: sparsenn train --out .*r --resume"
        with pytest.raises(RunFolderError, match=sentence):
            train(config(), tmp_path / "r", images=shapes)
    assert resume(tmp_path / "r", images=shapes).net.history == whole.net.history


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "labels.npz"),
        PermissionError(errno.EACCES, "Permission denied", "/labels.npz"),
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
    ],
)
def test_an_error_of_something_else_than_the_folder_stays_what_it_is(tmp_path, error, monkeypatch):
    with pytest.raises(type(error)), alone_in(tmp_path):
        raise error

    def fail(*_):
        raise error

    monkeypatch.setattr("sparsenn.training.folder.write_json", fail)
    with pytest.raises(type(error)):
        open_new(tmp_path, config())


def same_files(one, other) -> bool:
    names = ("model.safetensors", "metrics.jsonl", "twin/model.safetensors", "twin/metrics.jsonl")
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_folder_that_resumes_to_the_same_bits(shapes, tmp_path, no_pictures, monkeypatch, number):
    whole = train(config(), tmp_path / "whole", images=shapes)
    steps = iter(range(1000))

    def shot_at_step_7(step: int, steps_in_all: int) -> float:
        if next(steps) == 7:
            os.kill(os.getpid(), number)
        return schedules.cosine(step, steps_in_all)

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setitem(schedules.SCHEDULES, "cosine", shot_at_step_7)
        with pytest.raises(TrainingInterrupted, match=r"go on with: sparsenn train --out .*broken --resume") as caught:
            train(config(), tmp_path / "broken", images=shapes)
    assert caught.value.exit_code == 128 + number
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    state = load_checkpoint(tmp_path / "broken" / "checkpoint.pt")
    assert (state["epoch"], state["batch"]) == (1, 2)
    again = resume(tmp_path / "broken", images=shapes)
    assert again.net.history == whole.net.history
    assert same_files(tmp_path / "whole", tmp_path / "broken")


@pytest.fixture
def no_compiler(monkeypatch):
    def called(*_):
        raise RuntimeError("there is none")

    monkeypatch.setattr(torch, "compile", lambda function, **_: called)


@pytest.mark.usefixtures("no_compiler", "no_pictures")
def test_without_a_compiler_no_folder_is_made_and_only_a_complete_run_is_reported(shapes, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="there is none"):
        train(config(compile=True), tmp_path / "new", images=shapes)
    assert not (tmp_path / "new").exists()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", lambda net, **_: net)
        whole = train(config(compile=True), tmp_path / "whole", images=shapes)
    assert resume(tmp_path / "whole", images=shapes).to_dict() == whole.to_dict()
    with pytest.raises(ConfigError, match=r"drop compile \(False, the run has True\)"):
        resume(tmp_path / "whole", images=shapes, compile=False)
    (tmp_path / "whole" / "checkpoint.pt").unlink()
    with pytest.raises(ConfigError, match="there is none"):
        resume(tmp_path / "whole", images=shapes)


def test_a_signal_that_ends_the_compiler_too_leaves_a_folder_that_resumes(shapes, tmp_path, no_pictures, monkeypatch):
    compiling = config(compile=True, batch_size=30, checkpoint_every=1)
    monkeypatch.setattr(torch, "compile", lambda net, **_: net)
    train(compiling, tmp_path / "whole", images=shapes)
    honest, steps = Fit._step, []

    def ended(fit, *batch):
        steps.append(fit.epoch)
        if len(steps) == 8:  # of the third epoch
            torch.rand(1)
            os.kill(os.getpid(), signal.SIGINT)
            raise RuntimeError("the compiler was ended")
        honest(fit, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Fit, "_step", ended)
        with pytest.raises(TrainingInterrupted):
            train(compiling, tmp_path / "broken", images=shapes)
    resume(tmp_path / "broken", images=shapes)
    assert same_files(tmp_path / "whole", tmp_path / "broken")


def test_a_target_that_was_missed_is_said(shapes):
    result = train(config(epochs=30, lam=0.1), images=shapes)
    net = result.net
    assert net.kept_over_asked is None
    assert 0 < net.weights < 0.7 * net.total
    for times, said in ((1.2, False), (1.3, True), (0.8, False), (0.7, True)):
        aim = dataclasses.replace(net.config, target_sparsity=1 - net.weights / net.total / times)
        other = dataclasses.replace(net, config=aim)
        assert other.kept_over_asked == pytest.approx(times)
        shown = str(dataclasses.replace(result, net=other))
        assert (f"The target was missed: {times:.2g} times the weights asked for. More --epochs" in shown) == said
        assert ("was missed" in shown) == said
    part = dataclasses.replace(net, config=dataclasses.replace(net.config, target_sparsity=0.9, penalize_biases=False))
    assert part.kept_over_asked is None


def test_divergence_of_a_search_names_the_strength_that_it_was_at(shapes, monkeypatch):
    monkeypatch.setitem(schedules.SCHEDULES, "constant", lambda step, steps: 1.0 if step < 16 else 1e30)
    with pytest.raises(TrainingDiverged, match=r"or take more --epochs \(it is 10; the search for the target was at λ = "):
        train(config(epochs=10, schedule="constant", target_sparsity=0.5), images=shapes)


def test_divergence_names_epoch_checkpoint_and_hint(shapes, tmp_path, monkeypatch):
    monkeypatch.setitem(schedules.SCHEDULES, "constant", lambda step, steps: 1.0 if step < 16 else 1e30)
    with pytest.raises(
        TrainingDiverged, match=r"in epoch 4; the last good checkpoint, after epoch 2, is .*; lower --lr"
    ) as caught:
        train(config(epochs=10, schedule="constant"), tmp_path / "r", images=shapes)
    assert (caught.value.epoch, caught.value.exit_code) == (4, 3)
    state = load_checkpoint(caught.value.checkpoint)
    assert state["epoch"] == 2
    assert all(torch.isfinite(t).all() for t in state["model"].values())


def test_divergence_before_the_first_checkpoint_says_that_there_is_none(shapes):
    poisoned = dataclasses.replace(shapes, train_images=shapes.train_images * float("nan"))
    with pytest.raises(TrainingDiverged, match="in epoch 1; there is no checkpoint from before") as caught:
        train(config(), images=poisoned)
    assert caught.value.checkpoint is None


def test_what_is_no_configuration_and_no_images_is_named(shapes, tmp_path):
    for given in (None, config().to_dict(), "digits"):
        with pytest.raises(
            ConfigError, match=f"train: config is of type {type(given).__name__}; it takes a TrainConfig, as conf"
        ):
            train(given, tmp_path / "r", images=shapes)
    for images in (shapes.train_images, "digits", []):
        with pytest.raises(ConfigError, match=f"train: images is of type {type(images).__name__}; it takes an ImageData"):
            train(config(), tmp_path / "r", images=images)
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_not_there_is_named(shapes):
    with pytest.raises(ConfigError, match=r"device is 'cuda:99', but .*; device cpu works everywhere"):
        train(config(device="cuda:99"), images=shapes)


def test_a_fresh_name_is_fresh(tmp_path):
    first = fresh_name(tmp_path, config(seed=3))
    assert first == tmp_path / "digits-lenet-300-100-dwf2-seed3"
    first.mkdir()
    assert fresh_name(tmp_path, config(seed=3)) == tmp_path / "digits-lenet-300-100-dwf2-seed3-2"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_cuda_repeats_itself_and_comes_near_the_cpu(shapes):
    first, second = (train(config(device="cuda", twin=False), images=shapes) for _ in range(2))
    assert first.net.history == second.net.history
    cpu = train(config(twin=False), images=shapes)
    assert first.net.history[0]["train_loss"] == pytest.approx(cpu.net.history[0]["train_loss"], rel=1e-3)
