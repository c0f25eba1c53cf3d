"""The order of the examples: whole epochs, a position to go on from, workers and processes."""

import json
import os
import signal
import time
from contextlib import closing

import numpy as np
import pytest

from slam_jax.base.errors import InputError
from slam_jax.data import digits
from slam_jax.data.batches import READ_AHEAD, Batches
from slam_jax.data.rejects import Rejected, Rejects


class Numbers:
    """A source whose examples are their own indices; multiples of `damaged` are passed over, and
    `broken` cannot even be asked for."""

    name = "numbers"

    def __init__(self, count, damaged=None, broken=None):
        self.count, self.damaged, self.broken = count, damaged, broken
        self.identity = str(count)

    def __len__(self):
        return self.count

    def read(self, indices, seeds):
        if self.broken in indices:
            raise InputError(f"numbers: {self.broken} has vanished")
        rejects = Rejects()
        for index in indices if self.damaged else ():
            if index % self.damaged == 0:
                rejects.add(Rejected("damaged number", f"number {index}"))
        return {"index": np.asarray(indices), "seed": np.asarray(seeds)}, rejects


def take(batches, count, start=0, key="index"):
    with closing(batches.iterate(start)) as iterator:
        return [next(iterator)[key].tolist() for _ in range(count)]


def test_every_epoch_has_every_example_once_in_another_order():
    """10 examples in batches of 4: 5 batches are 2 epochs, and the third one straddles them."""
    seen = sum(take(Batches(Numbers(10), 4, seed=0), 15), [])
    epochs = [seen[i : i + 10] for i in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert epochs[0] != list(range(10))


def test_the_seed_decides_the_order():
    first, same, other = (take(Batches(Numbers(50), 8, seed), 20) for seed in (3, 3, 4))
    assert first == same
    assert first != other


def test_an_examples_seed_differs_between_epochs_and_not_between_batch_sizes():
    seeds = np.ravel(take(Batches(Numbers(6), 2, seed=5), 12, key="seed"))
    indices = np.ravel(take(Batches(Numbers(6), 2, seed=5), 12))
    assert len(set(seeds)) == 24 and len(set(seeds[indices == 3])) == 4
    wide = take(Batches(Numbers(6), 24, seed=5), 1, key="seed")
    np.testing.assert_array_equal(wide[0], seeds)


@pytest.mark.parametrize("position", [0, 1, 5, 6, 13])
def test_a_saved_position_gives_the_identical_continuation(position):
    batches = Batches(Numbers(11), 2, seed=1)
    expected = take(batches, position + 20)[position:]
    saved = json.loads(json.dumps(batches.position(position)))
    again = Batches(Numbers(11), 2, seed=1)
    assert take(again, 20, start=again.restore(saved)) == expected
    assert take(batches, 20, start=batches.restore(saved)) == expected  # and back in time


def test_a_position_in_other_data_is_refused():
    saved = Batches(Numbers(11), 2, seed=1).position(3)
    for position in (saved, {"next_index": 3}):
        with pytest.raises(InputError, match="numbers: not the examples"):
            Batches(Numbers(12), 2, seed=1).restore(position)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_each_batch_in_the_order_of_their_numbers(processes):
    whole = take(Batches(Numbers(30), 8, seed=2), 9)
    parts = [
        take(Batches(Numbers(30), 8, seed=2, share=(p, processes)), 9) for p in range(processes)
    ]
    assert [sum(rows, []) for rows in zip(*parts, strict=True)] == whole


@pytest.mark.slow
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.nightly), 2])
def test_workers_change_nothing(workers):
    """Neither the order, nor where it goes on, nor what is counted, nor what an error says."""
    alone = Batches(Numbers(11, damaged=5), 2, seed=1)
    helped = Batches(Numbers(11, damaged=5), 2, seed=1, workers=workers)
    expected = take(alone, 12, start=3)
    assert take(helped, 12, start=3) == expected
    assert set(helped.rejects.counts) == {"damaged number"}
    with pytest.raises(InputError, match="numbers: 7 has vanished"):
        take(Batches(Numbers(11, broken=7), 2, seed=1, workers=workers), 12)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_said_in_one_line():
    class Deadly(Numbers):
        def read(self, indices, seeds):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(InputError, match="numbers: a process that reads it was killed"):
        take(Batches(Deadly(10), 2, seed=0, workers=1), 1)


def test_batches_are_put_in_place_ahead_of_their_use_but_not_many():
    put = []
    batches = Batches(Numbers(100), 2, seed=0)
    with closing(batches.iterate(0, lambda batch: put.append(len(put)) or batch)) as iterator:
        next(iterator)
        end = time.monotonic() + 20
        while len(put) < 1 + READ_AHEAD and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.1)
        # The one that was taken, those that wait, and one that waits for its place among them.
        assert 1 + READ_AHEAD <= len(put) <= 2 + READ_AHEAD


def test_what_is_passed_over_is_counted_with_the_first_one_named():
    batches = Batches(Numbers(10, damaged=5), 10, seed=0)  # 0 and 5 in each batch
    indices = take(batches, 3)
    first = next(i for i in indices[0] if i % 5 == 0)
    assert batches.rejects.counts == {"damaged number": 6}  # not of what is read ahead
    assert batches.rejects.first == {"damaged number": f"number {first}"}
    again = Batches(Numbers(10, damaged=5), 10, seed=0)
    again.restore(json.loads(json.dumps(batches.position(3))))
    take(again, 1, start=3)
    assert again.rejects.counts == {"damaged number": 8}


@pytest.mark.parametrize(("most", "stops"), [(0.16, True), (0.17, False)])
def test_more_than_the_borne_share_of_damage_stops(most, stops):
    """Of 1,000 examples 200 are damaged and 1,000 good ones were read: a sixth."""
    batches = Batches(Numbers(1000, damaged=5), 1000, seed=0, max_rejects=most)
    if stops:
        with pytest.raises(InputError, match="numbers: 200 of 1200 examples cannot be used"):
            take(batches, 1)
    else:
        assert len(take(batches, 3)) == 3


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1)])
def test_damage_is_judged_by_what_was_read_on_however_many_processes(before, after):
    """A tenth is damaged: neither counted against less that was read, nor against more."""
    source, share = Numbers(4000, damaged=10), dict(max_rejects=0.12)
    first = Batches(source, 400, 0, share=(0, before))
    take(first, 8)
    position = json.loads(json.dumps(first.position(8)))
    assert position["read"] == 8 * 400 // before
    for process in range(after):
        batches = Batches(source, 400, 0, share=(process, after), **share)
        batches.restore(position)
        assert len(take(batches, 3, start=8)) == 3
    batches = Batches(source, 400, 0, share=(0, after), max_rejects=0.08)
    batches.restore(position)
    with pytest.raises(InputError, match="cannot be used"):
        take(batches, 1, start=8)


def test_a_few_examples_are_not_judged_by_their_share():
    rejects = Rejects()
    rejects.add(Rejected("damaged", "a"), count=9)
    rejects.check(read=1, most=0.1, where="somewhere", few=100)  # 9 of 10, as yet
    with pytest.raises(InputError, match=r"somewhere: 9 of 10 .*: 9 damaged \(first: a\)"):
        rejects.check(read=1, most=0.1, where="somewhere")  # of all that there are
    rejects.add(Rejected("damaged", "b"), count=2)
    with pytest.raises(InputError, match=r"somewhere: 11 of 12 .*: 11 damaged \(first: a\)"):
        rejects.check(read=1, most=0.1, where="somewhere", few=100)


def test_what_a_filter_took_out_is_no_damage():
    rejects = Rejects()
    rejects.add(Rejected("too small", "a", asked_for=True), count=900)
    rejects.check(read=100, most=0.1, where="somewhere")
    assert (rejects.total, rejects.damaged) == (900, 0)


def test_batches_of_digits_are_ready_for_training():
    with closing(Batches(digits.Source(), 16, seed=0).iterate(0)) as iterator:
        batch = next(iterator)
    assert batch["latents"].shape == (16, *digits.LATENT_SHAPE)
    assert batch["latents"].dtype == np.float32
    assert batch["tokens"].shape == (16, 2)
