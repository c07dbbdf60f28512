import pytest

from sparsenn.training.phases import phases


@pytest.mark.parametrize(
    ("accuracies", "weights", "expected"),
    [
        ((0.83, 0.85, 0.848, 0.84, 0.845, 0.86), (100, 100, 99, 95, 9, 8), (2, 4, 4)),
        ((0.83, 0.85, 0.848, 0.84, 0.845, 0.849), (100, 100, 99, 9, 8, 8), (2, None, 4)),  # never as good again
        ((0.83, 0.85, 0.849, 0.851, 0.85, 0.86), (100,) * 6, (None, None, None)),  # no more than noise
        ((0.83, 0.82, 0.81), (9, 9, 9), (1, None, 1)),
        ((0.83, 0.85, 0.84, 0.86), (96,) * 4, (None, None, None)),  # a dip of a net that stays dense
        ((), (), (None, None, None)),
    ],
)
def test_the_phases_go_by_the_dip_of_the_training_accuracy(accuracies, weights, expected):
    pairs = enumerate(zip(accuracies, weights, strict=True), 1)
    found = phases([{"epoch": e, "train_accuracy": a, "weights": w} for e, (a, w) in pairs], 100)
    assert (found.reorganization, found.sparsification, found.onset) == expected
