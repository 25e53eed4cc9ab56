"""Several processes that share one run, on one machine or many, started by ``torchrun``.

Every process holds the whole algorithm and draws the same random numbers; each computes its share of the tasks, trials or
individuals, and one sum over the processes brings the shares together. A process holds zeros for the shares of the others,
so that one run is the same, up to the rounding of sums, for any number of processes. Only rank 0 has a run folder; it
broadcasts the state that training starts from.

A process that ends before the others ends them all within moments, and so does one that does not answer for longer than
``hardware.patience``: see :class:`Watch`. Whatever else waits for another process keeps to :func:`patience`, too.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import datetime
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import _set_pg_timeout

from metarl_cli.errors import PeerLost, ProcessLost, visible
from metarl_cli.shared_sums import SharedMemory
from metarl_cli.signals import SIGNALS, send_again

LONGEST = datetime.timedelta(days=365)  # of an exchange: the others wait while rank 0 validates and tests; Watch ends it
GRACE = 30.0  # [s] from a signal to the end of a process, as torchrun has it
SHORT_GRACE = 2.0  # [s] the same where there is nothing to wait for
BEAT = 5.0  # [s] at most between the signs of life of a process
DONE = -1  # sent in place of a sign of life

_patience: ContextVar[float | None] = ContextVar("patience", default=None)


@contextlib.contextmanager
def waiting(seconds: float) -> Iterator[None]:
    """Have what waits for another process within the block give up after ``seconds``."""
    token = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(token)


def patience() -> float | None:
    """Return how long one may wait for another process [s]; None: for ever."""
    return _patience.get()


def end_with_owner(from_main_thread: bool) -> None:
    """Have this process of ``multiprocessing`` end when the process that started it has ended, whatever it is doing then.

    Linux kills it, even within foreign code that never returns to Python; there as elsewhere, a thread waits for the end of
    the owner, which is noticed as a pipe that closes.

    Args:
        from_main_thread: whether the owner's main thread started it; Linux takes the end of the thread for that of the owner.
    """
    owner = multiprocessing.parent_process()
    if owner is None:
        return

    def wait() -> None:
        owner.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    if sys.platform == "linux" and from_main_thread:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Processes(NamedTuple):
    """The process group of a run; by default one process."""

    size: int = 1
    rank: int = 0
    nccl: bool = False  # whether each process has a GPU of its own, so that sums stay on the GPUs
    watch: Watch | None = None  # within its block

    def shard(self, num: int) -> slice:
        """Return this process's share of ``num`` rows; shares differ by one row at most."""
        least, more = divmod(num, self.size)
        start = self.rank * least + min(self.rank, more)
        return slice(start, start + least + (self.rank < more))

    def sum(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Return the sums of tensors over all processes, by one exchange; the same bits on every process."""
        if self.size == 1:
            return list(values)
        flat = torch.cat([value.detach().flatten() for value in values])
        shared = flat if self.nccl or not flat.is_cuda else flat.cpu()
        self._exchange(distributed.all_reduce if self.watch is None or shared.is_cuda else self.watch.sum, shared)
        parts = torch.split(shared.to(flat.device), [value.numel() for value in values])
        return [part.view_as(value) for part, value in zip(parts, values, strict=True)]

    @torch.no_grad()
    def gather(self, tensors: Sequence[Tensor]) -> None:
        """Fill in the rows of ``tensors [M, ...]`` that other processes have computed, each its :meth:`shard`."""
        if self.size == 1:
            return
        own = [torch.zeros_like(tensor) for tensor in tensors]
        for tensor, kept in zip(tensors, own, strict=True):
            rows = self.shard(len(tensor))
            kept[rows] = tensor[rows]
        for tensor, whole in zip(tensors, self.sum(own), strict=True):
            tensor.copy_(whole)

    def broadcast(self, content: bytes = b"") -> bytes:
        """Broadcast bytes from rank 0 to every process."""
        if self.size == 1:
            return content
        length = torch.tensor([len(content)])
        self._exchange(distributed.broadcast, length, 0)
        numbers = torch.zeros(int(length), dtype=torch.uint8)
        if self.rank == 0:
            numbers = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else numbers
        if len(numbers):
            self._exchange(distributed.broadcast, numbers, 0)
        return numbers.numpy().tobytes()

    def broadcast_flag(self, value: bool = False) -> bool:
        """Broadcast a flag from rank 0 to every process."""
        return self.broadcast(b"yes" if value else b"") == b"yes"

    def wait(self) -> None:
        """Wait until rank 0 has finished the run."""
        if self.watch is not None:
            self.watch.over.wait()

    def _exchange(self, operation: Callable[..., object], *arguments: Any) -> None:
        """Run a collective operation, which fails when another process ends."""
        if self.watch is not None:
            self.watch.exchanges += 1
            self.watch.waits_since = time.monotonic()
        try:
            operation(*arguments)
        except (RuntimeError, ConnectionError):
            if self.watch is not None:
                self.watch.explain()
            raise
        finally:
            if self.watch is not None:
                self.watch.waits_since = None


ALONE = Processes()


def join(patience: float) -> Processes:
    """Join the process group, if ``torchrun`` started this process. Only commands call this: importing has no effects.

    Args:
        patience: how long to wait for the other processes to start [s].

    Raises:
        ProcessLost: if they do not.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    nccl = distributed.is_nccl_available() and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= torch.cuda.device_count()
    if not distributed.is_initialized():
        limit = datetime.timedelta(seconds=patience)
        try:
            distributed.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", timeout=limit)
        except distributed.DistError as error:
            who = f"process {os.environ.get('RANK')} has waited {patience:g} s for the other {size - 1} (hardware.patience)"
            raise ProcessLost(f"{who}: {str(error).splitlines()[0]}") from error
        _set_pg_timeout(LONGEST)
        atexit.register(distributed.destroy_process_group)  # its threads would sometimes abort the interpreter's end
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    return Processes(distributed.get_world_size(), distributed.get_rank(), nccl)


def gpu_number(job: int) -> int:
    """Return the number of this process among those of all jobs of a sweep on this machine, to choose a GPU by."""
    return job * int(os.environ.get("LOCAL_WORLD_SIZE", "1")) + int(os.environ.get("LOCAL_RANK", "0"))


def _end_with(owner: int) -> None:
    """End this process when the one that started it has ended: by SIGTERM, on which a run saves, then for good."""
    while os.getppid() == owner:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


class Watch:
    """Raises :class:`PeerLost` in the main thread, within the block, when another process ends before it should.

    Rank 0 listens to every other process, and each of these to rank 0, on connections that the system closes with a process.
    Each sends a sign of life now and then, with the number of exchanges it has begun: a process is lost, too, if it is silent
    for longer than ``patience``, or if rank 0 waits so long for it in an exchange. The others wait for rank 0 as long as it
    lives, as it may validate. At the end of its block, rank 0 dismisses the others. It alone obeys signals; the others end
    with it.

    Args:
        processes: those that share the run.
        patience: how long a process may leave the others waiting [s].
    """

    def __init__(self, processes: Processes, patience: float):
        self.size, self.rank, self.patience = processes.size, processes.rank, patience
        self.processes = processes._replace(watch=self)
        self.exchanges = 0  # begun
        self.waits_since: float | None = None  # the moment at which the exchange began that is not over
        self.over = threading.Event()  # dismissed, or a process is lost
        self.leaving = threading.Event()  # the other processes are to be told so
        self.lost: str | None = None  # which process, and how
        self.raised = False
        self.memory: SharedMemory | None = None
        self.may_share = hasattr(os, "memfd_create") and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == self.size
        self.last_words: Callable[[PeerLost], BaseException] = lambda error: error  # before the process ends by itself

    def __enter__(self) -> Processes:
        if self.size > 1:
            self.group = distributed.new_group(backend="gloo", timeout=datetime.timedelta(seconds=self.patience))
            if self.rank > 0:
                handlers = dict.fromkeys(SIGNALS, self._ignore)
            else:  # Ctrl-C leaves the block by itself
                obeyed = [n for n in SIGNALS if n != signal.SIGINT and signal.getsignal(n) is not signal.SIG_IGN]
                handlers = dict.fromkeys(obeyed, self._obey)
            handlers[signal.SIGUSR1] = self._raise
            self.before: dict[int, Any] = {number: signal.signal(number, handler) for number, handler in handlers.items()}
            peers = range(1, self.size) if self.rank == 0 else (0,)
            self.threads = [
                threading.Thread(target=target, args=(peer,), daemon=True)
                for peer in peers
                for target in (self._listen, self._tell)
            ]
            for thread in self.threads:
                thread.start()
        return self.processes

    def __exit__(self, *exc: object) -> None:
        if self.size == 1:
            return
        if self.rank == 0:
            self._dismiss()
        if self.over.is_set():
            self._join(GRACE if self.lost is None else SHORT_GRACE)
        self.over.set()  # before the handlers go: a listener that is left signals no more
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.memory is not None:
            self.memory.close()
            self.memory = None

    def sum(self, values: Tensor) -> None:
        """Replace ``values [n]`` by their sums over all processes, through shared memory where these are on one machine."""
        if self.may_share:
            self.memory, self.may_share = self._share_memory(), False
        if self.memory is None or not self.memory.sum(values):
            distributed.all_reduce(values)

    def _share_memory(self) -> SharedMemory | None:
        """Have the processes share memory; None, for all of them, where the system does not let them."""

        def agree(able: bool) -> bool:
            answers = torch.tensor([able], dtype=torch.uint8)
            distributed.all_reduce(answers, distributed.ReduceOp.MIN)
            return bool(answers)

        own = ""
        if self.rank == 0:
            with contextlib.suppress(OSError):
                own = tempfile.mkdtemp(prefix="metarl-")
        try:
            folder = os.fsdecode(self.processes.broadcast(os.fsencode(own)))
            return SharedMemory(self.size, self.rank, Path(folder) if folder else None, agree, self.patience)
        except ConnectionError:
            raise
        except OSError:
            return None
        finally:
            if own:
                shutil.rmtree(own, ignore_errors=True)

    def explain(self) -> None:
        """Raise the reason why an exchange failed, if another process has ended.

        Raises:
            PeerLost: if it was lost.
            SystemExit: if rank 0 has dismissed this process; it tells the user why.
        """
        if self.over.wait(GRACE) and self.lost is None:
            raise SystemExit(1)
        if self.lost is not None:
            self.raised = True
            raise PeerLost(self.lost)

    def _tell(self, peer: int) -> None:
        """Send signs of life to a process, and the end of this one's work; ends where the process does not listen."""
        with contextlib.suppress(RuntimeError):
            while True:
                leaving = self.leaving.wait(min(BEAT, self.patience / 4))
                distributed.send(torch.tensor([DONE if leaving else self.exchanges]), peer, group=self.group)
                if leaving:
                    return

    def _listen(self, peer: int) -> None:
        """Listen to a process until it says that it is done; it is lost if it ends without a word, or stops answering."""
        message, heard = torch.zeros(1, dtype=torch.long), time.monotonic()
        try:
            while True:
                distributed.recv(message, peer, group=self.group)
                heard = time.monotonic()
                if int(message) == DONE:
                    break
                since = self.waits_since
                if self.rank == 0 and since and int(message) < self.exchanges and heard - since > self.patience:
                    self._lose(peer, f"has kept the others waiting for {self.patience:g} s", SHORT_GRACE)
                    return
        except RuntimeError:
            silent = time.monotonic() - heard >= self.patience
            if silent:
                self._lose(peer, f"has not answered for {self.patience:g} s", SHORT_GRACE)
            else:
                self._lose(peer, "has ended")
            return
        self.over.set()
        self.leaving.set()

    def _lose(self, peer: int, how: str, grace: float | None = None) -> None:
        """Have the main thread raise the loss of a process within ``grace`` [s]; it cannot where it waits for that one."""
        if not self.over.is_set():
            self.lost = f"process {peer} of the {self.size} that share the run {how}"
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            self.over.set()
            self._insist(GRACE if grace is None else grace)

    def _insist(self, grace: float) -> None:
        """End this process if its main thread does not raise: it waits for the lost process, or for a GPU that does."""
        deadline = time.monotonic() + grace
        while not self.raised:
            if time.monotonic() > deadline:
                error = self.last_words(PeerLost(self.lost))
                print(f"metarl: error: {visible(str(error))}", file=sys.stderr, flush=True)
                os._exit(1)
            time.sleep(0.1)

    def _dismiss(self) -> None:
        """Tell the other processes that this one, of rank 0, is done with the run."""
        self.over.set()
        self.leaving.set()

    def _join(self, seconds: float) -> None:
        """Wait until the other processes are told, and have answered."""
        deadline = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(deadline - time.monotonic(), 0))

    def _raise(self, number: int = 0, frame: FrameType | None = None) -> None:
        if self.lost is not None and not self.raised:
            self.raised = True
            raise PeerLost(self.lost)

    def _ignore(self, number: int, frame: FrameType | None) -> None:
        pass

    def _obey(self, number: int, frame: FrameType | None) -> None:
        """Let a signal take its course, unless ``torchrun`` sent it because another process has ended."""
        if not self.over.wait(1):
            self._dismiss()
            self._join(SHORT_GRACE)
            signal.signal(number, self.before[signal.Signals(number)])
            send_again(number)
