"""Inference on the CPU from NumPy arrays, without PyTorch: ``sparsenn.runtime.load(path)(x)``."""

from sparsenn.runtime.errors import ArtefactError
from sparsenn.runtime.model import Model, load
from sparsenn.runtime.plan import Choice

__all__ = ["ArtefactError", "Choice", "Model", "load"]
