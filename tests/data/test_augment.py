"""Augmentation against exact moves and scipy's resampling."""

import numpy as np
import pytest
import torch

from sparsenn.data import augment
from sparsenn.data.augment import warp


def moved(image: torch.Tensor, flip: bool = False, degrees: float = 0.0, right: float = 0.0, down: float = 0.0) -> torch.Tensor:
    return warp(
        image[None],
        torch.tensor([flip]),
        torch.tensor([degrees], dtype=torch.float64),
        torch.tensor([[right], [down]], dtype=torch.float64),
    )[0]


def test_whole_pixels_quarter_turns_and_flips_are_exact_moves():
    image = torch.rand(3, 8, 8, dtype=torch.float64)
    shifted = torch.zeros_like(image)
    shifted[:, 3:, :-2] = image[:, :-3, 2:]
    torch.testing.assert_close(moved(image, right=-2 / 8, down=3 / 8), shifted, rtol=0, atol=1e-12)
    torch.testing.assert_close(moved(image, degrees=90), image.rot90(-1, (1, 2)), rtol=0, atol=1e-12)
    assert torch.equal(moved(image, flip=True), image.flip(-1))
    both = moved(image, flip=True, degrees=90, right=1 / 8)
    step_by_step = torch.zeros_like(image)
    step_by_step[:, :, 1:] = image.flip(-1).rot90(-1, (1, 2))[:, :, :-1]
    torch.testing.assert_close(both, step_by_step, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(12, 12), (7, 15)])
@pytest.mark.parametrize("flip", [False, True])
def test_other_angles_and_shifts_are_scipys_bilinear_resampling(height, width, flip):
    ndimage = pytest.importorskip("scipy.ndimage")
    image = torch.rand(2, height, width, dtype=torch.float64)
    degrees, right, down = 14.0, 0.11, -0.07
    angle = np.deg2rad(degrees)
    # scipy takes the way back from an output pixel (row, column) to the input
    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    offset = centre - rotate @ (centre + np.array([down * height, right * width]))
    source = image.flip(-1) if flip else image
    expected = [ndimage.affine_transform(np.pad(c, 2), rotate, offset + 2 - rotate @ [2, 2], order=1) for c in source.numpy()]
    found = moved(image, flip, degrees, right, down)
    torch.testing.assert_close(found, torch.tensor(np.stack(expected))[:, 2:-2, 2:-2], rtol=0, atol=1e-12)


def test_a_generator_decides_everything_and_images_have_numbers_of_their_own():
    batch = torch.rand(1, 3, 16, 16).repeat(6, 1, 1, 1)
    before = batch.clone()
    first, again = (augment(batch, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(batch, before)
    assert all(not torch.equal(first[0], other) for other in first[1:])
    torch.manual_seed(3)
    assert torch.equal(augment(batch), first)
    torch.testing.assert_close(augment(batch.double(), generator=torch.Generator().manual_seed(3)).float(), first)


def test_the_draws_fill_their_ranges():
    """A marked pixel near the centre moves by the shift alone, a flip swaps its side."""
    count, side = 4000, 32
    batch = torch.zeros(count, 1, side, side)
    batch[:, :, 15:17, 15:17] = 0.25
    seen = augment(batch, rotation=0.0, generator=torch.Generator().manual_seed(0))
    axis = torch.arange(side) - (side - 1) / 2
    for total in (seen.sum(2), seen.sum(3)):
        centre = (total[:, 0] * axis).sum(1) / side
        assert centre.abs().max() <= 0.125 + 1e-5
        assert centre.abs().max() > 0.124
        assert centre.mean().abs() < 0.125 / 3**0.5 / count**0.5 * 4
        assert float(centre.var()) == pytest.approx(0.125**2 / 3, rel=0.08)
    batch[:, :, :, :16] = 1.0
    flips = augment(batch, rotation=0.0, shift=0.0, generator=torch.Generator().manual_seed(0))[:, 0, 0, 0] == 0
    assert abs(int(flips.sum()) - count / 2) < 4 * (count / 4) ** 0.5
    assert torch.equal(augment(batch, flip=False, rotation=0.0, shift=0.0), batch)

    batch = torch.zeros(count, 1, side, side)
    batch[:, :, 15:17, 28:30] = 1.0  # to the right of the centre by 13
    seen = augment(batch, flip=False, shift=0.0, generator=torch.Generator().manual_seed(1))[:, 0]
    angle = torch.atan2((seen.sum(2) * axis).sum(1), (seen.sum(1) * axis).sum(1)).rad2deg()
    assert 14.5 < angle.abs().max() < 15.5
    assert float(angle.var()) == pytest.approx(15**2 / 3, rel=0.08)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_stays_and_half_types_are_resampled_in_float32(dtype):
    batch = torch.rand(4, 2, 9, 9).to(dtype)
    found = augment(batch, generator=torch.Generator().manual_seed(0))
    assert found.dtype == dtype
    wide = augment(batch.float(), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.float(), wide.to(dtype).float())


def test_an_empty_batch_and_what_is_refused():
    assert augment(torch.zeros(0, 3, 4, 4)).shape == (0, 3, 4, 4)
    for images in (torch.zeros(3, 4, 4), torch.zeros(2, 3, 4, 4, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"augment: images are .*; it takes floating point \(N, C, H, W\)"):
            augment(images)
    with pytest.raises(ValueError, match=r"shift is -0\.1; it takes a number >= 0"):
        augment(torch.zeros(2, 3, 4, 4), shift=-0.1)
    with pytest.raises(ValueError, match="rotation is nan"):
        augment(torch.zeros(2, 3, 4, 4), rotation=float("nan"))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_sees_what_the_cpu_sees():
    batch = torch.rand(5, 3, 32, 32)
    cpu, gpu = (augment(batch.to(d), generator=torch.Generator().manual_seed(2)) for d in ("cpu", "cuda"))
    torch.testing.assert_close(gpu.cpu(), cpu, rtol=1e-5, atol=1e-5)
