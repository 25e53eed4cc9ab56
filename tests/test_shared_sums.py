"""Sums through shared memory: the known sums, for any size and type, and an error where a process is lost."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from metarl_cli.errors import ProcessLost
from metarl_cli.shared_sums import SharedMemory

PATIENCE = 60.0

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="processes share memory on Linux")


class Agreement:
    """Threads that say whether they are able to go on."""

    def __init__(self, size):
        self.meet, self.answers = threading.Barrier(size), []

    def __call__(self, able):
        self.answers.append(able)
        self.meet.wait(PATIENCE)
        return all(self.answers)


def together(size, work):
    """What ``work`` returns for each rank, in threads."""
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, range(size)))


def share(size, folder):
    agree = Agreement(size)
    return together(size, lambda rank: SharedMemory(size, rank, folder, agree, PATIENCE))


@pytest.mark.parametrize("size", [2, 3])
def test_sums_are_the_known_ones(size, tmp_path):
    """Of tensors that grow and shrink, over more sums than there are places, the same bits in every process."""
    memories = share(size, tmp_path)
    shapes = [(1, torch.float32), (1000, torch.float32), (7, torch.float64), (65, torch.int64), (1001, torch.float64)] * 3
    values = [[torch.randn(num).mul(100).to(dtype) for num, dtype in shapes] for _ in range(size)]
    expected = [sum(ranks[1:], start=ranks[0].clone()) for ranks in zip(*values, strict=True)]

    def work(rank):
        for value in values[rank]:
            memories[rank].sum(value)
        return values[rank]

    for results in zip(*together(size, work), strict=True):
        assert all(torch.equal(result, results[0]) for result in results)
    for result, known in zip(values[0], expected, strict=True):
        torch.testing.assert_close(result, known, rtol=1e-6, atol=1e-4 if result.dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_process_is_an_error(rank, tmp_path):
    memories = share(2, tmp_path)
    for connection in memories[rank].others:
        connection.close()
    with pytest.raises(ConnectionError):
        memories[1 - rank].sum(torch.ones(3))


def test_processes_that_cannot_meet_agree_on_it(tmp_path):
    """The second one's place is taken."""
    (tmp_path / "1").write_text("")
    agree = Agreement(2)

    def work(rank):
        with pytest.raises(OSError, match=r"in use|cannot be found"):
            SharedMemory(2, rank, tmp_path, agree, PATIENCE)
        return True

    assert together(2, work) == [True, True]


def test_a_process_that_does_not_come_is_waited_for_as_long_as_configured(tmp_path):
    with pytest.raises(ProcessLost, match=r"process 0 has waited 0.1 s for the others \(hardware.patience\)"):
        SharedMemory(2, 0, tmp_path, lambda able: able, 0.1)
