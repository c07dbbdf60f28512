"""The GPU check's runner, on machines that have none: what it keeps of steps that pass, fail and never end."""

import contextlib
import importlib
import json
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[1] / "tools/gpu_check.py"
sys.path.insert(0, str(PATH.parent))
gpu_check = importlib.import_module("gpu_check")
sys.path.remove(str(PATH.parent))

FACTS = {"device": "Some Card (80 GB)", "commit": "0123abc"}


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def stored(check) -> dict:
    return json.loads(check.report.read_text())


def runs(process: int) -> bool:
    """Whether a process does, and has not ended without anybody asking how."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


@pytest.fixture
def check(tmp_path):
    return gpu_check.Check(tmp_path / "results", FACTS, seconds=60.0)


@pytest.mark.parametrize(
    ("code", "outcome"), [("print('fine')", "passed"), ("import sys; print('fine'); sys.exit(3)", "failed with status 3")]
)
def test_a_step_is_in_the_report_as_soon_as_it_ends(check, code, outcome):
    found, output, seconds = check.run("test", "a step", 30, python(code))
    assert (found, output) == (outcome, "fine\n")
    assert 0 < seconds < 30
    check.note("test", "a step", found, seconds, tests=7)
    report = stored(check)
    assert check.report.name.startswith("gpu-some-card-80-gb-")
    assert report["commit"] == "0123abc"
    assert report["steps"][0] | {"seconds": 0} == {
        "part": "test", "name": "a step", "outcome": outcome, "seconds": 0, "tests": 7,
    }  # fmt: skip
    assert check.failed == (outcome != "passed")
    assert "=== test: a step" in check.log.read_text()


@contextlib.contextmanager
def interrupts(handler):
    """What this process does about them: nothing in a shell's background job."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_step_that_takes_too_long_is_interrupted_and_may_still_write(check, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "_LEAST", 0.0)
    code = """
import pathlib, time
try:
    pathlib.Path('PLACE').write_text('begun')
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path('PLACE').write_text('interrupted')
"""
    place = tmp_path / "written"
    with interrupts(signal.SIG_IGN):
        outcome, _, seconds = check.run("bench", "a step", 3, python(code.replace("PLACE", str(place))))
    assert outcome == "ran past 3 s"
    assert seconds < 30
    assert place.read_text() == "interrupted"


def test_a_step_that_does_not_listen_is_killed(check, monkeypatch):
    monkeypatch.setattr(gpu_check, "_LEAST", 0.0)
    monkeypatch.setattr(gpu_check, "_PATIENCE", 0.5)
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    outcome, output, seconds = check.run("bench", "a step", 2, python(code))
    assert (outcome, output) == ("ran past 2 s", "deaf\n")
    assert seconds < 30


def test_no_step_begins_when_the_time_is_over(tmp_path):
    check = gpu_check.Check(tmp_path, FACTS, seconds=5.0)
    began = time.monotonic()
    outcome, *_ = check.run("test", "late", 100, python("import time; time.sleep(60)"))
    check.note("test", "late", outcome)
    assert time.monotonic() - began < 2
    assert stored(check)["steps"][0]["outcome"] == "skipped: no time left"
    assert not check.failed
    gpu_check.test(check)  # but without the tests nothing is known
    assert check.failed
    assert gpu_check.Check(tmp_path, FACTS, seconds=5.0).failed is False


def interrupt_once_written(place: Path) -> None:
    for _ in range(600):
        if place.exists() and place.read_text():
            break
        time.sleep(0.05)
    signal.raise_signal(signal.SIGINT)


def test_what_a_step_has_started_ends_with_it_however_that_is(check, tmp_path):
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}], stdout=open(PLACE, 'w'))"
    places = [tmp_path / "left", tmp_path / "interrupted"]
    wait = "; import time; [time.sleep(0.05) for _ in range(400) if not open(PLACE).read()]"
    for place, then in zip(places, (wait, f"{wait}; time.sleep(60)"), strict=True):
        with interrupts(signal.default_int_handler), contextlib.suppress(KeyboardInterrupt):
            if place.name == "interrupted":
                threading.Thread(target=interrupt_once_written, args=(place,)).start()
            check.run("test", "a step", 30, python((code + then).replace("PLACE", repr(str(place)))))
    assert not any(runs(int(place.read_text())) for place in places)


def test_a_folder_is_meant_from_where_the_caller_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check = gpu_check.Check(Path("here"), FACTS, seconds=60.0)
    _, output, _ = check.run("test", "a step", 30, python("import os; print(os.getcwd())"))
    assert Path(output.strip()) == PATH.parents[1]
    assert check.report.parent == tmp_path / "here"
    assert check.log.exists()


def test_skipped_steps_are_no_failures(check):
    check.note("sanitize", "compute-sanitizer", "skipped: it is not installed")
    assert not check.failed


def test_without_the_cuda_library_nothing_is_tested(tmp_path, monkeypatch, capsys):
    if torch.version.cuda:
        pytest.skip("needs a CUDA device to be absent, and a torch without CUDA")
    monkeypatch.setattr(gpu_check, "facts", lambda: FACTS)
    assert gpu_check.main(["test", "sanitize", "--out", str(tmp_path)]) == 1
    (report,) = tmp_path.glob("*.json")
    (step,) = json.loads(report.read_text())["steps"]
    assert step["name"] == "kernels"
    assert "is built without CUDA" in step["problem"]
    assert "FAILED" in capsys.readouterr().out


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        gpu_check.main([])
    assert ended.value.code == 3
    assert "finds no GPU" in capsys.readouterr().err


def test_an_unknown_part_is_named(capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(["tests"])
    assert "unknown part 'tests'; it takes build, test, bench, cost, sanitize" in capsys.readouterr().err


def test_counts_are_those_of_all_suites(tmp_path):
    path = tmp_path / "junit.xml"
    suite = '<testsuite name="s" tests="{}" failures="{}" errors="0" skipped="2"/>'
    path.write_text(f"<testsuites>{suite.format(9, 1)}{suite.format(4, 0)}</testsuites>")
    assert gpu_check._counts(path) == {"tests": 13, "failures": 1, "errors": 0, "skipped": 4}
    assert gpu_check._counts(tmp_path / "none.xml") == {}
    path.write_text("<testsuites><testsuite name=")
    assert gpu_check._counts(path) == {}


def test_benchmarks_of_several_runs_are_one_run_for_compare(tmp_path):
    def run(*names):
        stats = {"median": 2.0, "iqr": 0.1, "min": 1.0, "rounds": 3, "data": [1.0, 2.0, 3.0]}
        entries = [{"fullname": n, "group": "g", "extra_info": {"provider": n}, "stats": stats} for n in names]
        (tmp_path / "found.json").write_text(json.dumps({"machine_info": {"sparsenn": {}}, "benchmarks": entries}))

    known: dict = {}
    counts = []
    for names in (("a", "b"), ("b", "c")):
        run(*names)
        counts.append(gpu_check._merge(tmp_path / "raw.json", tmp_path / "found.json", known))
    counts.append(gpu_check._merge(tmp_path / "raw.json", tmp_path / "found.json", known))
    (tmp_path / "found.json").write_text('{"benchmarks": [')
    counts.append(gpu_check._merge(tmp_path / "raw.json", tmp_path / "found.json", known))
    assert counts == [2, 2, 0, 0]
    raw = json.loads((tmp_path / "raw.json").read_text())
    assert [entry["fullname"] for entry in raw["benchmarks"]] == ["a", "b", "c"]
    assert raw["benchmarks"][2]["stats"]["data"] == [1.0, 2.0, 3.0]
    assert gpu_check._medians(known["a"]) == {
        "group": "g", "provider": "a", "median": 2.0, "iqr": 0.1, "min": 1.0, "rounds": 3,
    }  # fmt: skip


def test_what_training_costs_is_over_the_dense_net_in_the_same_turn(tmp_path):
    table = tmp_path / "fig26-vgg-19-cuda.csv"
    rows = ["vgg-19,dense,1,128,cuda,1 2 4", "vgg-19,ours,3,128,cuda,1.1 2.4 4.2", "vgg-19,ours,3,64,cuda,9 9 9"]
    table.write_text("\n".join(["model,way,depth,batch_size,device,figures", *rows]))
    assert gpu_check._over_dense(table) == {"ours, D = 3": 1.1}
    assert gpu_check._over_dense(tmp_path / "none.csv") == {}


def test_clocks_are_medians_and_largest(tmp_path):
    path = tmp_path / "clocks"
    path.write_text("345, 2619, 31, 75.5\n1980, 3201, 55, 600.1\n1965, 3201, 56, 610.0\n19")
    found = gpu_check._Clocks(path).summary()
    assert found["clocks.sm"] == {"median": 1965, "most": 1980}
    assert found["power.draw"] == {"median": 600.1, "most": 610.0}
    assert gpu_check._Clocks(tmp_path / "none").summary() is None
