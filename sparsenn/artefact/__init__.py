"""The sparse file of a model: written by ``save``, read back into PyTorch by ``load``, run without it by ``sparsenn.runtime``."""

from sparsenn.artefact.files import load, save
from sparsenn.artefact.network import Network

__all__ = ["Network", "load", "save"]
