"""Passes of one size, and their number of images: what of it a CPU can show. For a GPU see test_encoder_gpu."""

import threading

import pytest
import torch

from gap3d.features import passes
from gap3d.features.passes import MARGIN, Passes, largest


@pytest.fixture
def seen():
    """Passes of four rows over a function that squares them, and the shapes that it was given."""
    shapes = []

    def compute(rows):
        shapes.append(tuple(rows.shape))
        return rows.float() ** 2

    made = Passes(compute, torch.device("cpu"))
    assert made.size == passes.CPU_PASS
    made.size = 4
    return made, shapes


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 23])
def test_every_row_has_its_own_result_and_every_pass_one_shape(seen, count):
    made, shapes = seen
    rows = torch.arange(count * 2).reshape(count, 2)
    assert torch.equal(made(rows, (2,)), rows.float() ** 2)
    assert shapes == [(4, 2)] * -(-count // 4)


def test_threads_that_call_at_once_get_their_own_results(seen):
    made, _ = seen
    found, batches = {}, [torch.full((11, 3), number) for number in range(8)]
    threads = [
        threading.Thread(target=lambda number=number: found.update({number: made(batches[number], (3,))}))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[number], batches[number].float() ** 2) for number in range(8))


def test_a_pass_that_fails_leaves_the_next_call_whole(seen):
    made, _ = seen
    with pytest.raises(RuntimeError):
        made(torch.zeros(6, 2), (3,))  # results of another shape
    assert torch.equal(made(torch.ones(6, 2), (2,)), torch.ones(6, 2))


class Memory:
    """A GPU's, as the search sees it: rows of some bytes beside what others hold."""

    def __init__(self, total, row):
        self.total, self.row, self.tried, self.held = total, row, [], 0

    def attempt(self, size):
        self.tried.append(size)
        self.held = 0
        if size * self.row > self.total:
            raise torch.OutOfMemoryError(f"no room for {size}")
        self.held = size * self.row

    def largest(self, size):
        return largest(size, self.attempt, lambda: self.total - self.held)


@pytest.mark.parametrize(
    ("total", "found", "tried"),
    [
        (20 * MARGIN, 16, [16]),  # there is room
        (17 * MARGIN, 16, [16]),  # with just the margin
        (17 * MARGIN - 1, 8, [16, 8]),  # it would fit, and leave too little
        (9 * MARGIN, 8, [16, 8]),
        (4 * MARGIN, 2, [16, 8, 4, 2]),
        (MARGIN, 1, [16, 8, 4, 2, 1]),  # one image needs no margin
    ],
)
def test_a_pass_has_the_greatest_power_of_two_that_leaves_the_margin(total, found, tried):
    memory = Memory(total, MARGIN)
    assert memory.largest(16) == found
    assert memory.tried == tried


def test_no_room_for_one_image_is_an_error():
    with pytest.raises(torch.OutOfMemoryError, match="no room for 1"):
        Memory(MARGIN - 1, MARGIN).largest(16)


def test_other_errors_of_an_attempt_are_not_taken_for_a_lack_of_memory():
    def broken(_size):
        raise RuntimeError("an illegal instruction")

    with pytest.raises(RuntimeError, match="illegal"):
        largest(16, broken, lambda: MARGIN)


def test_a_cpu_looks_for_no_size(seen):
    made, shapes = seen
    made.fit(torch.zeros(2), (2,))
    assert made.size == 4
    assert not shapes
