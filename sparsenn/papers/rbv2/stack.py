"""Ridge nets of one shape whose weights are one tensor, and the gradient of their losses with the chain rule written out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparsenn.nn import RidgeNet

_ops = torch.ops.sparsenn
_NARROW = 8  # columns; below, the gradient of W is quicker as the transpose of the other product


class RidgeStack:
    r"""R nets, each of which sees its own samples, and the gradients of their losses and norms.

    .. math:: \ell_r = s \sum_{n, j} (f_r(x_{rn})_j - y_{rnj})^2 + \lambda \, \mathrm{rbv2}(f_r)

    with s = 1 for sums and 1 / (N D) for means. Autograd would allocate each intermediate anew and pass over it again for the
    mask of its ReLU and for the norm; here the signals stay in memory of the stack, the masks are applied in place, and one
    call gives the gradients of all norms.

    Args:
        nets: ReLU nets of one shape, with skips. Their parameters and gradients become parts of ``weights``, so that they are
            looked at and trained as any others.

    Attributes:
        nets: as given.
        weights: all of them as one parameter, with a gradient, for an optimizer that acts on every entry by itself.
    """

    def __init__(self, nets: Sequence[RidgeNet]) -> None:
        self.nets = nn.ModuleList(nets)
        alike = [torch.stack([p.detach() for p in own]) for own in zip(*(net.parameters() for net in nets), strict=True)]
        self.weights = nn.Parameter(torch.cat([p.flatten() for p in alike]))
        self.weights.grad = torch.zeros_like(self.weights)
        sizes = [p.numel() for p in alike]
        values, slopes = (
            [part.view_as(p) for part, p in zip(flat.split(sizes), alike, strict=True)]
            for flat in (self.weights.detach(), self.weights.grad)
        )
        for own, value, slope in zip(zip(*(net.parameters() for net in nets), strict=True), values, slopes, strict=True):
            for p, mine, gradient in zip(own, value, slope, strict=True):
                p.data, p.grad = mine, gradient
        names = [name for name, _ in nets[0].named_parameters()]
        self._values = dict(zip(names, values, strict=True))
        self._slopes = dict(zip(names, slopes, strict=True))
        self._depth = len(nets[0])
        kinds = [[f"{i}.{kind}.weight" for i in range(self._depth)] for kind in ("outer", "inner", "skip")]
        self._normed = [[w for name in own for w in self._values[name]] for own in kinds]
        self._normed_slopes = [slope for own in kinds for name in own for slope in self._slopes[name]]
        self._room: dict[int, list[Tensor]] = {}

    @torch.no_grad()
    def gradients(self, inputs: Tensor, targets: Tensor, lam: Tensor | None, *, mean: bool = True) -> None:
        """Overwrite the gradients of all nets.

        Args:
            inputs: (R, N, d).
            targets: (R, N, D).
            lam: λ of the norm, a 0-d tensor; None without.
            mean: whether squared errors are averaged or added.
        """
        *hidden, delta = self._memory(inputs)
        ones = inputs.new_ones(1, 1, inputs.shape[1]).expand(len(inputs), -1, -1)
        seen = [inputs]
        for i, h in enumerate(hidden):
            w, b, v, c, skip = self._block(self._values, i)
            torch.baddbmm(b[:, None], seen[i], w.mT, out=h).relu_()
            seen.append(torch.baddbmm(c[:, None], h, v.mT).baddbmm_(seen[i], skip.mT))
        error = (seen.pop() - targets).mul_(2 / targets[0].numel() if mean else 2)
        for i in reversed(range(self._depth)):
            x, h = seen[i], hidden[i]
            w, _, v, _, skip = self._block(self._values, i)
            to_w, to_b, to_v, to_c, to_skip = self._block(self._slopes, i)
            torch.bmm(error.mT, h, out=to_v)
            torch.bmm(error.mT, x, out=to_skip)
            torch.bmm(ones, error, out=to_c[:, None])
            if error.shape[2] == 1:
                torch.mul(error, v, out=delta)
            else:
                torch.bmm(error, v, out=delta)
            torch.ops.aten.threshold_backward(delta, h, 0, grad_input=delta)
            torch.bmm(ones, delta, out=to_b[:, None])
            if x.shape[2] < _NARROW:
                to_w.copy_(torch.bmm(x.mT, delta).mT)
            else:
                torch.bmm(delta.mT, x, out=to_w)
            if i:
                error = torch.bmm(delta, w).baddbmm_(error, skip)
        if lam is not None:
            torch._foreach_add_(self._normed_slopes, _ops.ridge_norm_backward.default(lam, *self._normed))

    def _block(self, parts: dict[str, Tensor], i: int) -> list[Tensor]:
        return [parts[f"{i}.{name}"] for name in ("inner.weight", "inner.bias", "outer.weight", "outer.bias", "skip.weight")]

    def _memory(self, inputs: Tensor) -> list[Tensor]:
        """What the neurons of each block say, and room for the gradient of one of them."""
        samples = inputs.shape[1]
        if samples not in self._room:
            width = self._values["0.inner.bias"].shape[1]
            self._room[samples] = [inputs.new_empty(len(inputs), samples, width) for _ in range(self._depth + 1)]
        return self._room[samples]
