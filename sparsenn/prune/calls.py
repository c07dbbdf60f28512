"""The calls that a model makes of what it is given, listed by torch.fx."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import fx, nn


class Tracer(fx.Tracer):
    """Traces ``model(*given)`` itself.

    torch.fx would make an input of every argument of the forward, and take ``skip is not None`` for true where skip has the
    default None. Here what is given is an input, but for None, numbers and texts: these, and defaults, are what they are.

    Args:
        leaves: types of modules that are one call, whatever they do inside.
        given: the arguments.
    """

    failed: str | None = None  # the module in which a trace ended

    def __init__(self, leaves: Collection[type], given: tuple[Any, ...]) -> None:
        super().__init__()
        self.leaves, self.given = leaves, given

    def calls(self, model: nn.Module) -> fx.Graph:
        """The calls.

        Raises:
            ValueError: where there is no such list; the message names the module.
        """
        try:
            return self.trace(model)
        except Exception as error:
            where = f"{self.failed!r} ({type(model.get_submodule(self.failed)).__name__})" if self.failed else "the model"
            raise ValueError(f"{where} cannot be traced by torch.fx: {error}") from error

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """What is one call."""
        return type(m) in self.leaves or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call of a submodule, as in ``torch.fx``."""
        try:
            if "forward" in vars(m) and self.is_leaf_module(m, ""):
                raise ValueError(
                    "its forward was replaced on the instance, so that it may be any function; take that away first "
                    "(accelerate.hooks.remove_hook_from_submodules does, for accelerate)"
                )
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """An input for each argument, and the forward that the model has, which may be its instance's own."""
        inputs = [self.create_proxy("placeholder", f"input_{i}", (), {}) for i in range(len(self.given))]
        fixed = (type(None), bool, int, float, str)
        args = [value if isinstance(value, fixed) else x for value, x in zip(self.given, inputs, strict=True)]
        return lambda *own: self.root.forward(*own), args
