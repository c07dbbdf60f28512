import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsenn.training.batches import batch_count, batches, epoch_order


@given(count=st.integers(1, 200), size=st.integers(1, 64), epoch=st.integers(0, 5))
def test_an_epoch_shows_every_image_once_with_its_label(count, size, epoch):
    images = torch.arange(count, dtype=torch.float64).reshape(count, 1)
    found = list(batches(images, torch.arange(count), epoch_order(count, seed=1, epoch=epoch), size))
    assert len(found) == batch_count(count, size)
    assert all(len(x) == size for x, _ in found[:-1])
    assert torch.cat([x[:, 0].long() for x, _ in found]).sort().values.tolist() == list(range(count))
    assert all(torch.equal(x[:, 0].long(), y) for x, y in found)


@given(count=st.integers(1, 100), size=st.integers(1, 20), data=st.data())
def test_starting_at_a_batch_is_the_tail_of_starting_at_the_first(count, size, data):
    first = data.draw(st.integers(0, batch_count(count, size)))
    numbers, order = torch.arange(count), epoch_order(count, seed=0, epoch=0)
    whole, tail = (list(batches(numbers, numbers, order, size, first=k)) for k in (0, first))
    assert [x.tolist() for x, _ in whole[first:]] == [x.tolist() for x, _ in tail]


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else():
    orders = {(seed, epoch): epoch_order(50, seed, epoch).tolist() for seed in range(4) for epoch in range(4)}
    torch.manual_seed(99)
    assert all(epoch_order(50, *key).tolist() == order for key, order in orders.items())
    assert len({tuple(order) for order in orders.values()}) == 16


def test_the_order_is_uniform():
    firsts = torch.stack([epoch_order(10, seed=0, epoch=e) for e in range(4000)])
    counts = torch.nn.functional.one_hot(firsts, 10).sum(0).double()
    chi2 = float(((counts - 400) ** 2 / 400).sum())
    assert chi2 < 81 + 5 * (2 * 81) ** 0.5
