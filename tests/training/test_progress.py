import io
import sys

import pytest

from sparsenn.training.logging import PlainLines, Quiet, RichBars, describe, progress_for

RECORD = {"train_loss": 0.125, "test_accuracy": 0.975, "compression_ratio": 45.1}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(progress, epochs: int = 20) -> None:
    with progress:
        progress.begin("dwf", epochs, 0)
        for epoch in range(1, epochs + 1):
            progress.advance(epoch, RECORD)


def test_a_record_is_described_by_loss_accuracy_and_compression():
    assert describe(RECORD) == "loss 0.1250, test accuracy 97.5 %, compression 45.1"
    assert describe({**RECORD, "compression_ratio": None}).endswith("compression ∞")


def test_nothing_is_said_where_nobody_watches(capsys):
    stream = io.StringIO()
    show(progress_for(stream=stream))
    show(progress_for(quiet=True, stream=Terminal()))
    assert stream.getvalue() == ""
    assert capsys.readouterr() == ("", "")
    assert type(progress_for(quiet=True, stream=Terminal())) is Quiet


def test_a_terminal_shows_a_bar_with_the_latest_figures():
    pytest.importorskip("rich")
    stream = Terminal()
    progress = progress_for(stream=stream)
    assert isinstance(progress, RichBars)
    show(progress)
    assert "20/20" in stream.getvalue()
    assert "compression" in stream.getvalue()


def test_a_terminal_without_rich_shows_about_ten_lines(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    stream = Terminal()
    progress = progress_for(stream=stream)
    assert isinstance(progress, PlainLines)
    show(progress, epochs=200)
    lines = stream.getvalue().splitlines()
    assert 10 <= len(lines) <= 12
    assert lines[-1] == f"dwf: epoch 200/200, {describe(RECORD)}"


def test_lines_come_after_a_resume_too():
    stream = Terminal()
    with PlainLines(stream) as lines:
        lines.begin("dwf", 100, 95)
        lines.advance(100, RECORD)
    assert stream.getvalue().startswith("dwf: epoch 100/100")
