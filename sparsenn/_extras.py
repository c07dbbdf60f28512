"""Packages that the plain installation leaves out."""

from __future__ import annotations

import importlib
from types import ModuleType


class MissingExtraError(ImportError):
    """A feature needs a package that the plain installation leaves out; the message holds the command that adds it."""

    exit_code = 1


def require_extra(module: str, purpose: str, extra: str = "experiments") -> ModuleType:
    """Import an optional dependency, or say how to install it.

    Args:
        module: the module's dotted name.
        purpose: what needs it, as the beginning of a sentence.
        extra: the one of the package's extras that brings it.

    Raises:
        MissingExtraError: if the module cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        package = {"sklearn": "scikit-learn", "PIL": "pillow"}.get(package, package)
        raise MissingExtraError(f"{purpose} needs {package}: pip install 'sparsenn[{extra}]'") from error
