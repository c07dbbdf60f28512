"""What settings may be; the messages are in the tests of the settings that use them."""

import math

import pytest

from sparsenn.training import checks

HUGE = 10**400  # which no float can hold
VALUES = {
    "half": 0.5,
    "zero": 0,
    "minus": -1,
    "two": 2,
    "huge": HUGE,
    "inf": math.inf,
    "nan": math.nan,
    "yes": True,
    "text": "1",
}


@pytest.mark.parametrize(
    ("check", "fitting"),
    [
        (checks.NOT_NEGATIVE, {"half", "zero", "two"}),
        (checks.ABOVE_0, {"half", "two"}),
        (checks.BELOW_1, {"half", "zero"}),
        (checks.whole(0), {"zero", "two", "huge"}),
        (checks.whole(1, 2), {"two"}),
        (checks.COUNT, {"two"}),
        (checks.SEED, {"zero", "two"}),
        (checks.TRUE_OR_FALSE, {"yes"}),
        (checks.one_of(("1", "2")), {"text"}),
        (checks.FOLDER, {"text"}),
    ],
    ids=lambda value: value.takes if isinstance(value, checks.Check) else "",
)
def test_a_value_fits_or_not_and_nothing_is_raised(check, fitting):
    assert {name for name, value in VALUES.items() if check.fits(value)} == fitting
    assert not check.fits(None)
    assert not check.fits([2])
    assert checks.optional(check).fits(None)
    several = checks.list_of(check, "several")
    assert {name for name, value in VALUES.items() if several.fits([value])} == fitting
    assert not several.fits([])
    assert not several.fits(2)


@pytest.mark.parametrize(
    ("name", "is_one"), [("cpu", True), ("cuda", True), ("cuda:1", True), ("cuda:", False), ("mps", False)]
)
def test_a_device_is_one_by_its_name(name, is_one):
    assert checks.DEVICE.fits(name) is is_one
