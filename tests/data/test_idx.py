import gzip

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from idx_files import idx_bytes, write_idx

from sparsenn.data import DataError, read_idx

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


@given(array=arrays.arrays(np.uint8, arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)), packed=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_written_is_read(tmp_path, array, packed):
    path = tmp_path / ("x.gz" if packed else "x")
    digest = write_idx(path, array)
    found = read_idx(path, dimensions=array.ndim, md5=digest)
    assert found.dtype == np.uint8
    assert found.shape == array.shape
    assert np.array_equal(found, array)


@pytest.mark.parametrize("cut", [1, 8, 40])
def test_a_truncated_gzip_file_fails_the_gzip_check(tmp_path, cut):
    path = tmp_path / "images.gz"
    write_idx(path, IMAGES)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match=r"images\.gz: gzip check failed"):
        read_idx(path, dimensions=3)


def test_a_flipped_bit_in_a_gzip_file_fails_the_gzip_check(tmp_path):
    path = tmp_path / "images.gz"
    write_idx(path, IMAGES)
    stored = bytearray(path.read_bytes())
    stored[-5] ^= 1
    path.write_bytes(bytes(stored))
    with pytest.raises(DataError, match=r"images\.gz: gzip check failed"):
        read_idx(path, dimensions=3)


def test_a_web_page_saved_as_gzip_fails_the_gzip_check(tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match="gzip check failed"):
        read_idx(path, dimensions=3)


@pytest.mark.parametrize(
    "content",
    [idx_bytes(np.zeros(3)), b"\x00\x00\x0d\x03" + bytes(20), b"", b"PK\x03\x04"],
    ids=["labels", "floats", "empty", "zip"],
)
def test_a_file_of_another_kind_fails_the_magic_number_check(tmp_path, content):
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"images: magic number check failed: .*start with 0x00000803"):
        read_idx(path, dimensions=3)


def test_a_file_that_ends_in_its_header_fails_the_header_check(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(idx_bytes(IMAGES)[:10])
    with pytest.raises(DataError, match="images: header check failed: 16 bytes are needed"):
        read_idx(path, dimensions=3)


@pytest.mark.parametrize("change", [-1, 1], ids=["short", "long"])
def test_a_wrong_number_of_bytes_fails_the_size_check(tmp_path, change):
    path = tmp_path / "images.gz"
    content = idx_bytes(IMAGES)
    path.write_bytes(gzip.compress(content[:change] if change < 0 else content + b"x"))
    with pytest.raises(DataError, match=rf"size check failed: the header \(2, 3, 4\) announces 24 bytes, {24 + change} follow"):
        read_idx(path, dimensions=3)


def test_other_content_of_the_right_form_fails_the_checksum(tmp_path):
    path = tmp_path / "images.gz"
    official = write_idx(path, IMAGES)
    found = write_idx(path, IMAGES + 1)
    with pytest.raises(DataError, match=f"checksum check failed: md5 is {found}, the official file has {official}"):
        read_idx(path, dimensions=3, md5=official)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: cannot be read: No such file"):
        read_idx(tmp_path / "nowhere", dimensions=3)
