"""Sums through shared memory: the known sums, for any size and type, and an error where a process is lost."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from metarl_cli import shared_sums
from metarl_cli.shared_sums import SharedMemory

PATIENCE = 60.0


class Agreement:
    """Threads that say, each time, whether all of them are able to go on."""

    def __init__(self, size):
        self.meet, self.answers = threading.Barrier(size), []

    def __call__(self, able):
        self.answers.append(able)
        self.meet.wait(PATIENCE)
        answer = all(self.answers)
        self.meet.wait(PATIENCE)
        return answer


def together(size, work):
    """What ``work`` returns for each rank, in threads."""
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, range(size)))


@pytest.fixture
def share(request, tmp_path):
    """A function that returns the memories of so many processes."""

    def share(size):
        agree = Agreement(size)
        memories = together(size, lambda rank: SharedMemory(size, rank, tmp_path, agree, PATIENCE))
        for memory in memories:
            request.addfinalizer(memory.close)
        return memories

    return share


@pytest.mark.parametrize("size", [2, 3])
def test_sums_are_the_known_ones(size, share):
    """Of tensors that grow and shrink, over more sums than there are places, the same bits in every process."""
    memories = share(size)
    shapes = [
        (0, torch.float32),
        (1, torch.float32),
        (1000, torch.float32),
        (7, torch.float64),
        (65, torch.int64),
        (1001, torch.float64),
    ] * 3
    values = [[torch.randn(num).mul(100).to(dtype) for num, dtype in shapes] for _ in range(size)]
    expected = [sum(ranks[1:], start=ranks[0].clone()) for ranks in zip(*values, strict=True)]

    def work(rank):
        assert all(memories[rank].sum(value) for value in values[rank])
        return values[rank]

    for results in zip(*together(size, work), strict=True):
        assert all(torch.equal(result, results[0]) for result in results)
    for result, known in zip(values[0], expected, strict=True):
        torch.testing.assert_close(result, known, rtol=1e-6, atol=1e-4 if result.dtype == torch.float32 else 1e-9)


def test_what_is_too_large_is_not_summed(share, monkeypatch):
    monkeypatch.setattr(shared_sums, "MOST", 4096)
    memories, values = share(2), torch.ones(2, 2000)
    assert together(2, lambda rank: memories[rank].sum(values[rank])) == [False, False]
    assert together(2, lambda rank: memories[rank].sum(values[rank, :200])) == [True, True]
    assert values.sum(0).tolist() == [4.0] * 200 + [2.0] * 1800


@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_process_is_an_error(rank, share):
    memories = share(2)
    memories[rank].close()
    with pytest.raises(ConnectionError):
        memories[1 - rank].sum(torch.ones(3))


@pytest.mark.parametrize("step", ["_listen", "_connect", "no folder"])
def test_a_failure_of_one_process_is_that_of_all(step, tmp_path, monkeypatch):
    """The first one has no free descriptors, or nobody has a folder."""
    if step != "no folder":
        taken = getattr(SharedMemory, step)

        def fails(self, *arguments):
            if self.rank == 0:
                raise OSError(24, "Too many open files")
            taken(self, *arguments)

        monkeypatch.setattr(SharedMemory, step, fails)
    agree, folder = Agreement(3), None if step == "no folder" else tmp_path

    def work(rank):
        with pytest.raises(OSError, match=r"Too many open files|cannot share memory|no folder"):
            SharedMemory(3, rank, folder, agree, 0.2)
        return True

    assert together(3, work) == [True] * 3
