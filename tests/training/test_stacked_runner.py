import io
import json
import os
import signal

import pytest
import torch
from stack_cases import data_sets
from torch import nn

from sparsenn.models import fcn
from sparsenn.training import RunFolderError, TrainingInterrupted
from sparsenn.training.checkpoint import NAME, load_checkpoint, save_checkpoint
from sparsenn.training.folder import alone_in
from sparsenn.training.session import StopSignal
from sparsenn.training.stacked import Run, Stack, figures, runner
from sparsenn.training.stacked.progress import Bar, Lines, Nobody, watch_for
from sparsenn.training.stacked.runner import Job, run_jobs
from sparsenn.training.table import Table

KEY = ("job", "index")
LIMITS = {"first": (3, 9, 6), "second": (5, 8)}


def jobs() -> list[Job]:
    def build(name):
        modules = [fcn((4,), "tanh", output_activation=False) for _ in LIMITS[name]]
        for seed, module in enumerate(modules):
            for p in module.parameters():
                nn.init.normal_(p, generator=torch.Generator().manual_seed(seed))
        runs = [Run(seed=seed, lr=0.02, data=seed % 2) for seed in range(len(modules))]
        runs[-1] = Run(lr=1e200 if name == "second" else 0.02, data=1)
        return Stack(modules, runs, data_sets(40), max_epochs=LIMITS[name], dtype=torch.float64)

    def keys(name):
        return [{"job": name, "index": index} for index in range(len(LIMITS[name]))]

    return [Job(name, keys(name), lambda name=name: build(name), figures, work=sum(LIMITS[name])) for name in LIMITS]


def table_in(folder) -> Table:
    return Table(folder / "rows.jsonl", KEY)


def without_time(folder) -> list[str]:
    lines = (folder / "rows.jsonl").read_text().splitlines()
    return [json.dumps({k: v for k, v in json.loads(line).items() if k != "seconds"}) for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run_jobs(jobs(), table_in(folder), folder)
    return folder


@pytest.fixture
def one_step_a_visit(monkeypatch):
    """Every visit is a step, and every visit is followed by a checkpoint."""
    monkeypatch.setattr(runner, "VISIT", 1e-9)
    monkeypatch.setattr(runner, "CHECKPOINT_EVERY", 0.0)


def test_runs_become_rows_when_they_end(whole):
    rows = [json.loads(line) for line in without_time(whole)]
    order = [("first", 0), ("first", 2), ("first", 1), ("second", 1), ("second", 0)]
    assert [(row["job"], row["index"]) for row in rows] == order
    assert [row["epochs"] for row in rows] == [3, 6, 9, 1, 5]
    assert [row["status"] for row in rows] == ["finished"] * 3 + ["diverged", "finished"]
    assert not (whole / NAME).exists()


class Killed(Exception):  # noqa: N818
    pass


class Killer(Nobody):
    """Ends the process, as it were, at its n-th look."""

    def __init__(self, after):
        self.left = after

    def update(self, *_):
        self.left -= 1
        if not self.left:
            raise Killed


@pytest.mark.parametrize("after", [2, 5, 9, 14, 31])
def test_a_kill_at_any_moment_ends_in_the_same_rows(whole, tmp_path, one_step_a_visit, after):
    kills = 0
    while True:
        try:
            run_jobs(jobs(), table_in(tmp_path), tmp_path, watch=Killer(after))
            break
        except Killed:
            kills += 1
            assert kills < 80
    assert kills
    assert without_time(tmp_path) == without_time(whole)


def test_rows_beyond_the_checkpoint_are_not_written_twice(whole, tmp_path, one_step_a_visit, monkeypatch):
    with pytest.raises(Killed):
        run_jobs(jobs(), table_in(tmp_path), tmp_path, watch=Killer(10))
    old = (tmp_path / NAME).read_bytes()
    with pytest.raises(Killed):
        run_jobs(jobs(), table_in(tmp_path), tmp_path, watch=Killer(12))
    assert len(without_time(tmp_path)) > 1
    (tmp_path / NAME).write_bytes(old)
    run_jobs(jobs(), table_in(tmp_path), tmp_path)
    assert without_time(tmp_path) == without_time(whole)


def test_a_stack_that_goes_on_has_the_seconds_from_before(tmp_path, one_step_a_visit):
    with pytest.raises(Killed):
        run_jobs(jobs(), table_in(tmp_path), tmp_path, watch=Killer(3))
    save_checkpoint(tmp_path / NAME, {**load_checkpoint(tmp_path / NAME), "seconds": 1000.0})
    run_jobs(jobs(), table_in(tmp_path), tmp_path)
    assert {(row["job"], row["seconds"] >= 1000) for row in table_in(tmp_path).rows} == {("first", True), ("second", False)}


def test_a_kill_after_the_last_row_leaves_no_checkpoint_for_ever(whole, tmp_path):
    run_jobs(jobs(), table_in(tmp_path), tmp_path)
    save_checkpoint(tmp_path / NAME, {"job": "second"})
    run_jobs(jobs(), table_in(tmp_path), tmp_path)
    assert not (tmp_path / NAME).exists()
    save_checkpoint(tmp_path / NAME, {"job": "third"})  # which is not theirs
    run_jobs(jobs(), table_in(tmp_path), tmp_path)
    assert (tmp_path / NAME).exists()
    assert without_time(tmp_path) == without_time(whole)


def test_what_is_done_is_not_built_again(whole):
    def fail():
        raise AssertionError("a job whose rows are there was built")

    before = (whole / "rows.jsonl").read_bytes()
    run_jobs([Job(job.name, job.keys, fail, figures) for job in jobs()], table_in(whole), whole)
    assert (whole / "rows.jsonl").read_bytes() == before


def test_a_signal_leaves_a_checkpoint_and_the_command_that_goes_on(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "VISIT", 1e-9)

    class Sender(Killer):
        def update(self, *_):
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGTERM)

    with (
        pytest.raises(TrainingInterrupted, match="stopped after a whole step; go on with: do it again") as caught,
        StopSignal() as stop,
    ):
        run_jobs(jobs(), table_in(tmp_path), tmp_path, watch=Sender(3), stop=stop, again="do it again")
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert load_checkpoint(tmp_path / NAME)["job"] == "first"
    run_jobs(jobs(), table_in(tmp_path), tmp_path)
    assert without_time(tmp_path) == without_time(whole)


def test_a_checkpoint_that_does_not_fit_is_named(tmp_path, one_step_a_visit):
    with pytest.raises(Killed):
        run_jobs(jobs(), table_in(tmp_path), tmp_path, watch=Killer(3))
    first, second = jobs()
    other = [Job("first", second.keys, second.build, figures)]
    with pytest.raises(RunFolderError, match=r"checkpoint\.pt: the checkpoint does not fit \(.*another stack.*\); delete it"):
        run_jobs(other, table_in(tmp_path), tmp_path)
    (tmp_path / NAME).write_bytes(b"?")
    with pytest.raises(RunFolderError, match=r"checkpoint\.pt: the checkpoint cannot be read"):
        run_jobs([first], table_in(tmp_path), tmp_path)


def test_figures_count_weights_below_and_exact_zeros_by_tensor():
    net = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.0, 1.0, 1e-5, -1e-5], [1.0, 1.0, -0.0, 1e-3]]))
        net[0].bias.fill_(1.0)
        net[1].weight.copy_(torch.tensor([[0.0, 2.0]]))
    stack = Stack([net], [Run()], [(torch.zeros(2, 4), torch.full((2, 1), 2.0))], max_epochs=1)  # of loss 0: nothing moves
    with pytest.raises(ValueError, match="run 0 has not ended"):
        figures(stack, 0)
    stack.epoch()
    row = figures(stack, 0)
    assert row["mse"] == row["final_loss"] == row["best_loss"] == 0.0
    assert (row["sparsity"], row["sparsity_1"], row["sparsity_2"], row["sparsity_3"]) == (5 / 12, 4 / 8, 0.0, 1 / 2)
    assert (row["exact_sparsity"], row["exact_sparsity_1"], row["exact_sparsity_3"]) == (3 / 12, 2 / 8, 1 / 2)
    assert figures(stack, 0, threshold=1e-2)["sparsity_1"] == 5 / 8
    for threshold in (-1, float("nan"), "small"):
        with pytest.raises(ValueError, match=f"figures: threshold is {threshold!r}; it takes a number, 0 or more"):
            figures(stack, 0, threshold)


def test_lines_tell_what_is_left(capsys):
    import sys

    lines = Lines(sys.stdout)
    lines.update(3, 10, "nets", 3700.0)
    lines.update(4, 10, "nets", 3600.0)  # too soon after the first
    lines.say("done")
    assert capsys.readouterr().out == "nets: 3/10 runs, about 1 h 2 min left\ndone\n"
    lines.close()
    lines.close()
    assert capsys.readouterr().out == "nets: 4/10 runs, about 1 h 0 min left\n"


def test_without_a_terminal_there_are_lines_and_none_if_quiet():
    assert isinstance(watch_for(stream=io.StringIO()), Lines)
    assert isinstance(watch_for(stream=io.StringIO(), quiet=True), Nobody)


def test_the_bar_takes_the_total_of_the_part_in_progress():
    pytest.importorskip("rich")
    stream = io.StringIO()
    bar = Bar(stream)
    bar.update(5, 5, "begun", None)
    bar.update(0, 30, "rest", None)
    bar.update(30, 30, "rest", None)
    bar.close()
    assert "30/30" in stream.getvalue()


def waiting(*, epochs: int, limits, ended) -> Stack:
    """A stack whose active runs are at an epoch; ``ended`` has the epochs of those that left, None for the others."""
    modules = [nn.Linear(12, 1) for _ in limits]
    stack = Stack(modules, [Run() for _ in limits], data_sets(16), batch_size=4, max_epochs=limits)  # four steps an epoch
    state = stack.state_dict()
    members = [index for index, own in enumerate(ended) if own is None]
    state |= {"epochs": epochs, "step": 0, "members": members}
    state |= {name: state[name][members] for name in ("state", "losses")}
    state["own_epochs"] = torch.tensor([epochs if own is None else own for own in ended])
    state["status"] = torch.tensor([0 if own is None else 1 for own in ended])
    stack.load_state_dict(state)
    return stack


def test_runs_are_expected_to_take_what_those_took_that_lasted_longer():
    stack = waiting(epochs=50, limits=[100] * 4, ended=[10, 50, None, None])
    assert stack.expected_shares().tolist() == [0.1, 0.5, 1.0, 1.0]  # nobody outlived the two
    assert stack.remaining_steps() == 2 * 50 * 4
    shares = stack.expected_shares([0.2, 0.5, 0.6, 0.8])
    assert shares.tolist() == pytest.approx([0.1, 0.5, 0.7, 0.7])
    assert stack.remaining_steps(shares) == pytest.approx(2 * 20 * 4)
    mixed = waiting(epochs=50, limits=[100, 1000, 1000], ended=[None, None, 300])
    assert mixed.expected_shares().tolist() == pytest.approx([1.0, 0.3, 0.3])
    assert mixed.remaining_steps(mixed.expected_shares()) == pytest.approx((50 + 250) * 4)


def test_a_new_stack_starts_with_what_earlier_ones_took(tmp_path):
    job = Job(
        "nets",
        [{"job": "nets", "index": i} for i in range(2)],
        lambda: waiting(epochs=0, limits=[100, 100], ended=[None, None]),
        figures,
        work=4.0,
    )
    session = runner._Session(job, table_in(tmp_path), tmp_path, 2.0, [0.1, 0.3])
    session._rate = 10.0
    # of 2 × 100 epochs of 4 steps a fifth, and half as much again later
    assert session.seconds_left() == pytest.approx(0.2 * (800 + 400) / 10)


def test_a_resumed_table_tells_what_its_runs_took(tmp_path, monkeypatch):
    """Of the rows that say how many epochs there might have been, whatever stack they are of."""
    table = table_in(tmp_path)
    for index, (epochs, limit) in enumerate(((3, 30), (0, 30), (15, 30))):
        table.add({"job": "before", "index": index, "epochs": epochs, "max_epochs": limit})
    table.add({"job": "before", "index": 3, "epochs": 7})
    given = []
    monkeypatch.setattr(runner._Session, "seconds_left", lambda session: given.append(session.shares))
    run_jobs(jobs(), table, tmp_path)
    assert given[0] == (0.1, 0.5)
    assert given[-1] == (0.1, 0.5, 1.0, 1.0, 1.0)  # and the first job's


def test_the_time_left_is_what_remains_over_the_speed(tmp_path, monkeypatch):
    seen = []

    class Listener(Nobody):
        def update(self, done, total, title, left):
            seen.append((done, total, title, left))

    monkeypatch.setattr(runner, "VISIT", 1e-9)
    clock = iter(range(10**6))
    monkeypatch.setattr(runner.time, "perf_counter", lambda: float(next(clock)))
    run_jobs(jobs(), table_in(tmp_path), tmp_path, watch=Listener())
    # a visit of the first job is one step of 3 runs, between the first and the third look at the clock
    first = [left for done, total, title, left in seen if title == "first" and left is not None]
    assert seen[0][:3] == (0, 5, "first")
    assert first[0] == pytest.approx(((3 + 9 + 6) * 3 - 3 + (5 + 8) * 3) / (3 / 2))
    assert seen[-1] == (5, 5, "second", None)


def test_a_folder_is_for_one_process_at_a_time(whole):
    with alone_in(whole), pytest.raises(RunFolderError, match="another process trains here"):
        run_jobs(jobs(), table_in(whole), whole)
    run_jobs(jobs(), table_in(whole), whole)


def never_built() -> Stack:
    raise AssertionError("a job of a list that is refused was built")


def job(name: str, *indices: int, build=never_built) -> Job:
    return Job(name, [{"job": name, "index": index} for index in indices], build, figures)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([job("a", 0), job("b", 0), job("a", 1)], "two jobs are named 'a'; the state of one would be written over the other's"),
        ([job("a", 0, 1, 0)], r"two runs have the key \{'job': 'a', 'index': 0\}; a table has one row for each key"),
        ([job("a", 0), Job("b", job("a", 0).keys, never_built, figures)], "two runs have the key"),
        ([Job("a", [{"job": "a"}], never_built, figures)], "a key of job 'a' lacks index, by which the table tells rows"),
        (job("a", 0), "jobs is of type Job; it takes a list of Job objects"),
        (iter([job("a", 0)]), "jobs is of type list_iterator; it takes a list of Job objects"),
        ([job("a", 0), never_built], r"jobs\[1\] is of type function; it takes a list of Job objects"),
    ],
)
def test_jobs_that_would_write_over_each_other_are_refused_before_any_is_built(tmp_path, listed, message):
    with pytest.raises(ValueError, match=f"run_jobs: {message}"):
        run_jobs(listed, table_in(tmp_path), tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_a_table_is_one_and_each_run_has_a_key(tmp_path):
    with pytest.raises(ValueError, match=r"run_jobs: table is of type .*Path; it takes a Table"):
        run_jobs(jobs(), tmp_path / "rows.jsonl", tmp_path)
    with pytest.raises(ValueError, match="run_jobs: job 'second' has 3 keys for 2 runs of its stack"):
        run_jobs([job("second", 0, 1, 2, build=jobs()[1].build)], table_in(tmp_path), tmp_path)
    assert table_in(tmp_path).rows == []


def test_folders_may_be_named_by_strings(whole, tmp_path):
    run_jobs(jobs(), Table(str(tmp_path / "rows.jsonl"), KEY), str(tmp_path))
    assert without_time(tmp_path) == without_time(whole)


def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Table, "add", full)
    with pytest.raises(RunFolderError, match=r"cannot be written \(No space left on device\); go on with: the same command"):
        run_jobs(jobs(), table_in(tmp_path), tmp_path)


def test_a_reader_of_what_is_printed_that_has_gone_is_no_full_disk(tmp_path):
    class Gone(Nobody):
        def update(self, *_):
            raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        run_jobs(jobs(), table_in(tmp_path), tmp_path, watch=Gone())
