"""Training images seen anew: flips, shifts and rotations of a whole batch, on its device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sparsenn.ops.reference import accumulator


def augment(
    images: Tensor,
    *,
    flip: bool = True,
    shift: float = 0.125,
    rotation: float = 15.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Flip, rotate and shift every image of a batch by numbers of its own, in one resampling.

    Each image is flipped from left to right with probability ½, then rotated about its centre by an angle from
    U[−rotation, rotation], then shifted by fractions of its width and height from U[−shift, shift]. Values between pixels are
    bilinear, outside of the image they are 0: black for pixels in [0, 1], the mean colour for normalized ones.

    The numbers are drawn on the CPU, so that a seed means the same on every device; nothing is waited for.

    Args:
        images: The batch; it stays as it is.
        flip: Whether images are flipped at all.
        shift: The largest shift as a share of the side, ≥ 0.
        rotation: The largest angle in degrees, ≥ 0.
        generator: A generator on the CPU; torch's default one where it is None.

    Shape:
        - images and output: (N, C, H, W), floating point; N may be 0.

    Raises:
        ValueError: for images of another shape or dtype, and a negative or not finite shift or rotation.

    Source: Kolb et al. 2025, Appendix G.2, which has these three at 12.5 % and 15° and leaves the rest open: order,
        interpolation and what lies outside are our choice.

    Example:
        >>> import torch, sparsenn
        >>> batch = torch.rand(8, 3, 32, 32)
        >>> sparsenn.data.augment(batch, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([8, 3, 32, 32])
    """
    if images.dim() != 4 or not images.is_floating_point():
        raise ValueError(f"augment: images are {images.dtype} {tuple(images.shape)}; it takes floating point (N, C, H, W)")
    for name, value in (("shift", shift), ("rotation", rotation)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"augment: {name} is {value!r}; it takes a number >= 0")
    drawn = torch.rand(4, len(images), generator=generator, dtype=torch.float64).mul_(2).sub_(1)
    flipped = (drawn[0] < 0) & flip
    return warp(images, flipped, drawn[1] * rotation, drawn[2:] * shift)


def warp(images: Tensor, flipped: Tensor, degrees: Tensor, shifts: Tensor) -> Tensor:
    """Flip, then rotate clockwise (as an image is looked at, its rows going down), then shift, each image by its own numbers.

    Args:
        images: (N, C, H, W).
        flipped: (N,) bool, from left to right.
        degrees: (N,), clockwise.
        shifts: (2, N), to the right and down, as shares of width and height.

    Example:
        >>> import torch
        >>> from sparsenn.data.augment import warp
        >>> image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> warp(image, torch.tensor([False]), torch.zeros(1), torch.tensor([[0.5], [0.0]])).round(decimals=5).tolist()
        [[[[0.0, 1.0], [0.0, 3.0]]]]
    """
    height, width = images.shape[-2:]
    flipped = flipped.to(images.device, non_blocking=True)
    if not images.numel() or not (degrees.any() or shifts.any()):
        return torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)  # exact: nothing lies between pixels
    wide = accumulator(images)
    angle, sign = degrees.double().deg2rad().cpu(), torch.where(flipped.cpu(), -1.0, 1.0).double()
    cos, sin = angle.cos(), angle.sin()
    right, down = (2 * part for part in shifts.double().cpu())  # the sampler's coordinates run from -1 to 1
    aspect = height / max(width, 1)
    # The way back from a pixel of the output: unshift, rotate counterclockwise, flip.
    x = torch.stack([sign * cos, sign * sin * aspect, -sign * (right * cos + down * sin * aspect)], dim=1)
    y = torch.stack([-sin / aspect, cos, right * sin / aspect - down * cos], dim=1)
    matrix = torch.stack([x, y], dim=1).to(images.device, wide.dtype, non_blocking=True)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(wide, grid, align_corners=False).to(images.dtype)
