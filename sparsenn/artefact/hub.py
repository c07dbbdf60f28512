"""To and from the Hugging Face hub: a sparse artefact as a model repository."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sparsenn._extras import require_extra
from sparsenn.artefact.files import load, save

FILE = "model.safetensors"


@functools.cache
def hub_class() -> Any:
    """The class of models for the Hugging Face hub: any network that :func:`sparsenn.save` takes.

    ``Hub(model)`` calls the model and has ``save_pretrained``, ``push_to_hub`` and the class method ``from_pretrained`` of
    ``huggingface_hub.PyTorchModelHubMixin``. What is stored is the sparse artefact, as ``model.safetensors``: it holds the
    architecture too, so that reading one needs neither the model's class nor a configuration, and never unpickles;
    ``sparsenn.runtime.load`` takes the same file. ``.model`` is the model itself; one that was read is in eval mode.

    Returns:
        The class.

    Raises:
        MissingExtraError: if the package ``huggingface_hub`` is not installed; the message has the command.
        ValueError: from saving, for a layer that is unknown.
        ArtefactError: from reading, for a file that is missing or damaged.

    Example:
        >>> import importlib.util, tempfile, torch, sparsenn
        >>> if importlib.util.find_spec("huggingface_hub"):
        ...     Hub = sparsenn.artefact.hub_class()
        ...     net = sparsenn.models.lenet_300_100(image_size=8)
        ...     with tempfile.TemporaryDirectory() as folder:
        ...         Hub(net).save_pretrained(folder)
        ...         again = Hub.from_pretrained(folder)
        ...     assert torch.equal(again(torch.ones(1, 1, 8, 8)), net(torch.ones(1, 1, 8, 8)))
    """
    hub = require_extra("huggingface_hub", "the Hugging Face hub", "bridges")

    class Hub(nn.Module, hub.PyTorchModelHubMixin, library_name="sparsenn", tags=["sparse"]):  # type: ignore[call-arg, name-defined]
        """A network of the Hugging Face hub, stored as a sparse artefact."""

        _hub_mixin_config: dict[str, str] = {"format": "sparsenn"}

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            """What the model computes."""
            return self.model(x)

        def _save_pretrained(self, save_directory: Path) -> None:
            save(self.model, Path(save_directory) / FILE)

        @classmethod
        def _from_pretrained(
            cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **options: Any
        ) -> nn.Module:
            del strict  # reading is strict
            folder = Path(model_id)
            found = folder / FILE if folder.is_dir() else hub.hf_hub_download(model_id, FILE, **options)
            return cls(load(found)).to(map_location).eval()

    return Hub
