"""Warm starts along λ: what a path leaves is what one optimizer leaves whose λ is raised, and no stage is taken twice."""

import json
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from sparsenn.models import build
from sparsenn.optim import FactorizedSGD
from sparsenn.papers import reproduce
from sparsenn.papers.dwf import path, runs
from sparsenn.papers.dwf.runs import kept_state
from sparsenn.papers.dwf.settings import Given
from sparsenn.training import ConfigError, RunFolderError
from sparsenn.training.batches import epoch_order
from sparsenn.training.folder import alone_in

EPSILON = torch.finfo(torch.float32).eps
OPTIONS = {"depths": [3], "seeds": 1, "epochs": 20, "batch_size": 10, "points": 3, "lams": [0.05, 3.0], "lr": 0.1}


def rows(place):
    return [json.loads(line) for line in (place.folder / "path.jsonl").read_text().splitlines()]


def test_a_path_is_one_optimizer_whose_strength_is_raised(place):
    written = reproduce("dwf", "path", out=place.folder, **OPTIONS)
    given = Given("fashion-mnist", "lenet-300-100", epochs=20, batch_size=10, lams=(0.05, 3.0), points=3, lr=0.1)
    first, *later = given.sweep(3, [0])
    images = place.images(runs.config_of(first, place))

    net = build("lenet-300-100", 3, 1, 8)
    net.load_state_dict(kept_state(place.net_file(first)))
    optimizer = FactorizedSGD(net.parameters(), 0.1, depth=3, momentum=0.9, generator=torch.Generator().manual_seed(0))
    for key, row in zip(later, rows(place), strict=True):
        optimizer.param_groups[0]["lam"] = key["lam"]
        order = torch.cat([epoch_order(90, seed=0, epoch=epoch) for epoch in range(2)])
        for step, batch in enumerate(order.split(10)):
            falling = (1 + math.cos(math.pi * (step - 9) / 9)) / 2
            optimizer.param_groups[0]["lr"] = 0.1 * (falling if step >= 9 else (step + 1) / 9)
            optimizer.zero_grad()
            cross_entropy(net(images.train_images[batch]), images.train_labels[batch]).backward()
            optimizer.step()
        left = sum(int((p.abs() > EPSILON).sum()) for p in net.parameters())
        with torch.no_grad():
            kept = {name: p * (p.abs() > EPSILON) for name, p in net.named_parameters()}
            answers = torch.func.functional_call(net, kept, images.test_images).argmax(1)
        assert (row["lam"], row["stage_epochs"], row["weights"]) == (key["lam"], 2, left)
        assert row["accuracy"] == float((answers == images.test_labels).double().mean())
    assert 0 < rows(place)[-1]["weights"] < rows(place)[0]["weights"]

    alone, together = (line for line in written.read_text().splitlines() if line.startswith("| D = 3"))
    assert alone.startswith("| D = 3 | a net for each λ | 60 |")
    assert together.startswith("| D = 3 | one net, warm starts | 24 |")


def test_a_path_goes_on_where_rows_are_and_ends_in_the_same_table(place, monkeypatch):
    made = reproduce("dwf", "path", out=place.folder, **OPTIONS).read_text()
    both = rows(place)
    (place.folder / "path.jsonl").write_text(json.dumps(both[0]) + "\n")
    next((place.folder / "nets").iterdir()).unlink()  # where the path begins, too, can be made again
    assert reproduce("dwf", "path", out=place.folder, **OPTIONS).read_text() == made
    assert rows(place) == both
    monkeypatch.setattr(path, "Fit", None)  # nothing is left to train
    monkeypatch.setattr(runs, "train_net", None)
    assert reproduce("dwf", "path", out=place.folder, **OPTIONS, no_train=True).read_text() == made


def test_a_path_of_any_depth_is_a_line_of_the_table(place):
    text = reproduce("dwf", "path", out=place.folder, **{**OPTIONS, "depths": [20]}).read_text()
    assert [line.split(" |")[0] for line in text.splitlines() if line.startswith("| D")] == ["| D = 20"] * 2


def test_a_folder_is_for_one_path_at_a_time(place, monkeypatch):
    monkeypatch.setattr(path, "train", lambda keys, place: [])  # the nets beside it are there
    monkeypatch.setattr(path, "_follow", lambda *_: pytest.fail("another process is there"))
    with alone_in(place.folder), pytest.raises(RunFolderError, match="another process trains here"):
        reproduce("dwf", "path", out=place.folder, **OPTIONS)


def test_a_path_that_diverges_says_where_and_has_no_later_points(place):
    reproduce("dwf", "path", out=place.folder, **{**OPTIONS, "lams": [0.05, 1e6]})
    assert [row["status"] for row in rows(place)] == ["diverged"] * 2


def test_what_makes_no_path_is_refused_before_anything_is_written(place):
    with pytest.raises(ConfigError, match="points is 1; it takes 2 or more"):
        reproduce("dwf", "path", out=place.folder, points=1)
    with pytest.raises(ConfigError, match=r"lams is 1 0\.1"):
        reproduce("dwf", "path", out=place.folder, lams=[1, 0.1])
    assert not place.folder.exists()
