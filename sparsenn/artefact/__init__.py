"""The sparse file of a model: written by ``save``, read into PyTorch by ``load``, run without it by ``sparsenn.runtime``."""

from sparsenn.artefact.bridges import to_onnx, to_scipy, to_torch_sparse
from sparsenn.artefact.files import load, save
from sparsenn.artefact.hub import hub_class
from sparsenn.artefact.network import Network

__all__ = ["Network", "hub_class", "load", "save", "to_onnx", "to_scipy", "to_torch_sparse"]
