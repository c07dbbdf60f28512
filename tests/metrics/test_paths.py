import pytest
import torch
from cases import DTYPES

from sparsenn.metrics import path_magnitudes


def test_every_path_once_in_ascending_order():
    first, second = torch.randn(4, 3, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    products = sorted(float(first[j, i] * second[k, j]) for i in range(3) for j in range(4) for k in range(2))
    assert path_magnitudes(first, second).tolist() == pytest.approx(products, rel=1e-15)


def test_the_order_of_hidden_nodes_does_not_matter_and_a_dead_one_adds_zeros():
    first, second = torch.randn(5, 3), torch.randn(2, 5)
    order = torch.randperm(5)
    curve = path_magnitudes(first, second)
    torch.testing.assert_close(path_magnitudes(first[order], second[:, order]), curve)
    first[2] = 0
    assert int((path_magnitudes(first, second) == 0).sum()) == 6


@pytest.mark.parametrize("points", [2, 5, 101])
def test_interpolation_is_numpy_s(points):
    np = pytest.importorskip("numpy")
    first, second = torch.randn(6, 3, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    whole = path_magnitudes(first, second).numpy()
    expected = np.interp(np.linspace(0, 1, points), np.linspace(0, 1, len(whole)), whole)
    torch.testing.assert_close(path_magnitudes(first, second, points), torch.from_numpy(expected), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_strides_and_nothing(dtype):
    first, second = torch.randn(3, 4).T.to(dtype), torch.randn(4, 2).T.to(dtype)
    curve = path_magnitudes(first, second)
    assert curve.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(curve, path_magnitudes(first.contiguous().to(curve.dtype), second.contiguous().to(curve.dtype)))
    assert path_magnitudes(first[:0], second[:, :0]).shape == (0,)
    assert path_magnitudes(first[:0], second[:, :0], 7).tolist() == [0.0] * 7
    assert not path_magnitudes(first.requires_grad_(), second).requires_grad


def test_errors():
    with pytest.raises(ValueError, match=r"first has shape \(3, 2\) and second \(4, 2\)"):
        path_magnitudes(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="points is 1"):
        path_magnitudes(torch.zeros(3, 2), torch.zeros(4, 3), 1)
