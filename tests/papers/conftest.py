import pytest
import torch

from sparsenn.data import ImageData
from sparsenn.papers.dwf import runs
from sparsenn.papers.dwf.runs import Place


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    images = (torch.rand(3, 1, 8, 8, generator=generator)[labels] + 0.3 * torch.rand(120, 1, 8, 8, generator=generator)) / 1.3
    data = ImageData("shapes", images[:90], labels[:90], images[90:], labels[90:], ("a", "b", "c"))
    monkeypatch.setattr(runs.datasets, "load", lambda *_, **__: data)
    return Place(tmp_path / "runs")
