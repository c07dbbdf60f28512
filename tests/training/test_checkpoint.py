import os
import pickle

import pytest
import torch

from sparsenn.training import RunFolderError
from sparsenn.training.checkpoint import load_checkpoint, save_checkpoint
from sparsenn.training.files import remove_parts, write_atomic, write_json


def test_what_was_saved_is_loaded(tmp_path):
    state = {"w": torch.randn(3), "epoch": 4, "history": [{"a": None, "b": 0.1}], "lr": 0.3}
    save_checkpoint(tmp_path / "c.pt", state)
    found = load_checkpoint(tmp_path / "c.pt")
    assert torch.equal(found.pop("w"), state.pop("w"))
    assert found == {"format": 1, **state}


def test_a_failed_write_keeps_the_last_good_one(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"epoch": 1})
    before = path.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"epoch": 2})
    assert path.read_bytes() == before
    assert load_checkpoint(path)["epoch"] == 1


def test_what_a_kill_left_half_written_goes(tmp_path):
    write_atomic(tmp_path / "a", b"whole")
    (tmp_path / "a.part").write_bytes(b"ha")
    remove_parts(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * 100], ids=["cut", "empty", "other"]
)
def test_a_damaged_checkpoint_is_named_with_the_cure(tmp_path, damage):
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"w": torch.randn(100)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunFolderError, match=r"c\.pt: the checkpoint cannot be read .*delete it to train from the start"):
        load_checkpoint(path)


def test_a_checkpoint_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    torch.save({"format": 1, "trap": Trap()}, tmp_path / "c.pt", pickle_module=pickle)
    with pytest.raises(RunFolderError, match="cannot be read"):
        load_checkpoint(tmp_path / "c.pt")
    assert not (tmp_path / "sprung").exists()


def test_another_format_is_refused(tmp_path):
    torch.save({"format": 99}, tmp_path / "c.pt")
    with pytest.raises(RunFolderError, match="not a checkpoint of format 1"):
        load_checkpoint(tmp_path / "c.pt")


def test_json_has_no_infinity_and_nothing_half_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "r.json", {"x": float("inf")})
    assert list(tmp_path.iterdir()) == []
