"""Several processes share a run: the same as one up to rounding, and a process that ends early ends them all."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
import torch
from conftest import algorithms, compose_train, compose_values, fitting, flat, has, slow_if, tiny, variants_slow
from conftest import module as module_of
from launching import FORKS, PATIENCE, start, wait_until

from metarl_cli import processes as ranks_module
from metarl_cli.cli import main as cli
from metarl_cli.cli import train as train_command
from metarl_cli.config.models import Hardware, Job
from metarl_cli.errors import PeerLost, ProcessLost, UserError
from metarl_cli.processes import Processes
from metarl_cli.progress import note
from metarl_cli.runs import checkpoint, loop
from metarl_cli.runs.build import build, choose_device
from metarl_cli.runs.folder import RunFolder

SECONDS = 20  # until a run has ended of which a process is lost: the machine may be busy
ENDLESS = ["train.iterations=100000", "train.eval_every=100000", "train.checkpoint_every=0.01"]


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


class Ranks:
    """``metarl train`` in several processes, which meet as those of ``torchrun`` do."""

    def __init__(self, folder, num, *overrides, hang=False):
        port = free_port()
        meet = {"WORLD_SIZE": str(num), "LOCAL_WORLD_SIZE": str(num), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        folder.mkdir(parents=True)
        self.outs, self.errs = ([folder / f"{name}{rank}" for rank in range(num)] for name in ("out", "err"))
        self.all = []
        for rank, (out, err) in enumerate(zip(self.outs, self.errs, strict=True)):
            with mock.patch.dict(os.environ, {**meet, "RANK": str(rank), "LOCAL_RANK": str(rank)}):
                self.all.append(start("train", *overrides, cwd=folder, out=str(out), err=str(err), hang=hang and rank > 0))

    def join(self, seconds=PATIENCE):
        """Wait for all to end; returns their exit codes."""
        deadline = time.monotonic() + seconds
        for process in self.all:
            process.join(max(deadline - time.monotonic(), 0.1))
        codes = [process.exitcode for process in self.all]
        for process in self.all:
            process.kill()
        assert None not in codes, "a process outlives the run"
        return codes

    def said(self):
        """What all of them wrote to the standard output, and to the standard error."""
        return ["".join(path.read_text() for path in paths if path.exists()) for paths in (self.outs, self.errs)]


def metrics(run):
    """The metrics of a run, but for times."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def assert_close(states, measured, error):
    """Two algorithms have the same states and metrics up to a relative ``error``."""
    for a, b in zip(*map(flat, states), strict=True):
        scale = float(a.abs().max()) if a.numel() and a.is_floating_point() else 0.0
        torch.testing.assert_close(b, a, rtol=0, atol=error * scale)
    for a, b in zip(*measured, strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)


def assert_same(one, two, error):
    """Two runs end in the same state and have the same metrics, up to a relative ``error``."""
    states = [checkpoint.load(run / "last.pt")["algorithm"] for run in (one, two)]
    assert_close(states, [metrics(one), metrics(two)], error)


def odd(algo):
    """A small run whose shares differ in size."""
    values = compose_values("train", [f"algo={algo}"])
    sizes = ["outer.tasks=3", "search.population=6", "validation.candidates=3", "replay.batch=5", "tasks=5"]
    return [
        f"algo={algo}",
        f"env={fitting(algo)}",
        *tiny(algo),
        *(f"algo.{size}" for size in sizes if has(values["algo"], size.split("=")[0])),
    ]


def exact(algo):
    """Whether shares have nothing in common, so that the results are the same to the bit."""
    return module_of(algo).__name__.endswith("evolve")


class Threads:
    """Processes that are threads of this one, for the arithmetic alone."""

    def __init__(self, size):
        self.size, self.meet, self.slots = size, threading.Barrier(size), [None] * size

    def rank(self, rank):
        """What the algorithm of one thread is built with."""

        def exchange(processes, values):
            self.slots[processes.rank] = [value.detach().clone() for value in values]
            self.meet.wait(PATIENCE)
            total = [torch.stack(shares).sum(0) for shares in zip(*self.slots, strict=True)]
            self.meet.wait(PATIENCE)
            return total

        return type("Rank", (Processes,), {"sum": exchange})(self.size, rank)


@pytest.mark.parametrize("algo", variants_slow([name for name in algorithms() if name != "adrl"]))
def test_the_shares_of_several_processes_make_the_whole(algo, float64):
    """After three iterations; every process holds the whole, so that each could go on alone."""
    compare_shares(algo)


def test_processes_shorten_their_steps_together(float64):
    compare_shares("maml_pg", "algo.outer.stop_kl=1e-4", "algo.outer.lr=0.1")


def compare_shares(algo, *more):
    config, threads, steps = compose_train(*odd(algo), *more), Threads(2), 3
    alone = build(config).algorithm
    expected = [alone.train_step() for _ in range(steps)]
    ranks = [build(config, processes=threads.rank(rank)).algorithm for rank in range(threads.size)]
    with ThreadPoolExecutor(threads.size) as pool:
        found = list(pool.map(lambda algorithm: [algorithm.train_step() for _ in range(steps)], ranks))
    for algorithm, measured in zip(ranks, found, strict=True):
        assert_close([alone.state_dict(), algorithm.state_dict()], [expected, measured], 0 if exact(algo) else 1e-9)


SHARED = ["maml_dqn", "dqn", "pearl", "pearl_dqn", "rl2", "rl2_dqn", "evo_dqn"]


@pytest.mark.parametrize("algo", slow_if(SHARED, lambda algo: algo != "maml_dqn"))
def test_two_processes_equal_one(algo, tmp_path):
    small = odd(algo)
    assert cli.main(["train", f"run={tmp_path / 'one'}", *small]) == 0
    ranks = Ranks(tmp_path / "ranks", 2, f"run={tmp_path / 'two'}", *small)
    assert ranks.join() == [0, 0], ranks.said()
    assert "run folder" in ranks.outs[0].read_text()
    assert not ranks.outs[1].read_text(), "one process speaks"
    assert_same(tmp_path / "one", tmp_path / "two", 0 if exact(algo) else 1e-5)


def _sums(rank, size, port, folder, seen):
    """Sum the ranks, over several runs in one process; a process of its own does this."""
    meet = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in meet.items()}, MASTER_ADDR="localhost", TMPDIR=str(folder))
    torch.set_num_threads(1)
    group = ranks_module.join(PATIENCE)
    for _ in range(5):
        with ranks_module.Watch(group, PATIENCE) as processes:
            total, counts = processes.sum([torch.tensor([float(rank)]), torch.ones(3)])
            seen.put((total.item(), counts.tolist(), processes.watch.memory is not None))


@pytest.mark.parametrize("shared", [True, False])
def test_processes_of_one_machine_share_memory(shared, tmp_path):
    """Unless the name of the temporary folder is too long for a socket; in both cases it is empty afterwards."""
    folder = tmp_path / ("short" if shared else "no-socket-has-such-a-name-" * 5)
    folder.mkdir()
    port, seen = free_port(), FORKS.SimpleQueue()
    all_ranks = [FORKS.Process(target=_sums, args=(rank, 3, port, folder, seen)) for rank in range(3)]
    for process in all_ranks:
        process.start()
    for process in all_ranks:
        process.join(PATIENCE)
    assert [process.exitcode for process in all_ranks] == [0] * 3
    assert [seen.get() for _ in range(15)] == [(3.0, [3.0] * 3, shared)] * 15
    assert not list(folder.iterdir())


@pytest.mark.slow
def test_torchrun_starts_them(tmp_path):
    small = ["algo=maml_dqn", *tiny("maml_dqn")]
    assert cli.main(["train", f"run={tmp_path / 'one'}", *small]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]  # on a port that is free
    command = [*torchrun, "-m", "metarl_cli", "train", f"run={tmp_path / 'two'}", *small]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "one", tmp_path / "two", 1e-5)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_is_killed_ends_the_run(rank, tmp_path):
    """In seconds, with one line; and the run goes on from its checkpoint, in one process if need be."""
    run, small = tmp_path / "run", ["algo=maml_dqn", *(o for o in tiny("maml_dqn") if not o.startswith("train."))]
    ranks = Ranks(tmp_path / "ranks", 2, f"run={run}", *small, *ENDLESS)
    wait_until((run / "last.pt").exists, f"no checkpoint: {ranks.said()}")
    ranks.all[rank].kill()
    codes = ranks.join(SECONDS)
    assert sorted(codes) == [-signal.SIGKILL, 1]
    line = rf"metarl: error: process {rank} of the 2 .* ended; the last checkpoint is .*last.pt; go on with: metarl .*\n"
    assert re.fullmatch(line, ranks.said()[1])
    assert RunFolder(run).manifest()["status"] == "failed"
    done = int(checkpoint.load(run / "last.pt")["iteration"])
    going_on = Ranks(tmp_path / "more", 2, f"run={run}", "train.checkpoint_every=0.01")
    wait_until(lambda: checkpoint.load(run / "last.pt")["iteration"] > done, f"it does not go on: {going_on.said()}")
    for process in going_on.all:
        os.kill(process.pid, signal.SIGTERM)  # as torchrun does when it is stopped
    assert going_on.join() == [-signal.SIGTERM, 0]
    out, err = going_on.said()
    assert f"going on from iteration {done}" in out
    assert "saved; go on with" in out
    assert err == "saving after this iteration; again to stop at once\n"
    assert RunFolder(run).manifest()["status"] == "interrupted"


@pytest.mark.slow
@pytest.mark.parametrize("hang", ["silent", "behind"])
def test_a_process_that_does_not_answer_ends_the_run(hang, tmp_path):
    """Be it stopped as a whole, or one that lives and computes for ever."""
    run, small = tmp_path / "run", ["algo=maml_dqn", *(o for o in tiny("maml_dqn") if not o.startswith("train."))]
    ranks = Ranks(tmp_path / "ranks", 2, f"run={run}", *small, *ENDLESS, "hardware.patience=4", hang=hang == "behind")
    wait_until((run / "last.pt").exists, f"no checkpoint: {ranks.said()}")
    if hang == "silent":
        os.kill(ranks.all[1].pid, signal.SIGSTOP)
    first, other = ranks.all
    first.join(PATIENCE)
    other.kill()
    assert first.exitcode == 1
    how = "has not answered for 4 s" if hang == "silent" else "has kept the others waiting for 4 s"
    line = rf"metarl: error: process 1 of the 2 that share the run {how}; the last checkpoint is .*last.pt; go on with: .*\n"
    assert re.fullmatch(line, ranks.errs[0].read_text())
    assert RunFolder(run).manifest()["status"] == "failed"


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_second_signal_ends_a_process_that_waits_for_another(number, tmp_path):
    run, small = tmp_path / "run", ["algo=maml_dqn", *(o for o in tiny("maml_dqn") if not o.startswith("train."))]
    ranks = Ranks(tmp_path / "ranks", 2, f"run={run}", *small, *ENDLESS)
    wait_until((run / "last.pt").exists, f"no checkpoint: {ranks.said()}")
    os.kill(ranks.all[1].pid, signal.SIGSTOP)
    first, other = ranks.all
    for pause in (1.0, 0.0):
        os.kill(first.pid, number)
        time.sleep(pause)
    first.join(SECONDS)
    other.kill()
    assert first.exitcode in (128 + number, -number), "a shell knows both by the same number"
    assert not ranks.errs[0].read_text() or "Traceback" not in ranks.errs[0].read_text()


def test_a_process_that_never_comes_is_waited_for_as_long_as_configured(tmp_path):
    meet = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "RANK": "0", "LOCAL_RANK": "0"}
    err = tmp_path / "err"
    with mock.patch.dict(os.environ, {**meet, "MASTER_PORT": str(free_port())}):
        first = start("train", *tiny("maml_dqn"), "hardware.patience=1", cwd=tmp_path, err=str(err))
    first.join(PATIENCE)
    assert first.exitcode == 1
    assert "metarl: error: process 0 has waited 1 s for the other 1 (hardware.patience): " in err.read_text()


def test_a_process_killed_while_the_first_tests_ends_the_run(tmp_path):
    small = [f"run={tmp_path / 'run'}", *tiny("maml_dqn"), "test.episodes=100000"]
    ranks = Ranks(tmp_path / "ranks", 2, *small)
    wait_until((tmp_path / "run" / "last.pt").exists, f"no checkpoint: {ranks.said()}")
    ranks.all[1].kill()
    assert ranks.join(SECONDS) == [1, -signal.SIGKILL]
    assert "process 1 of the 2 that share the run has ended" in ranks.said()[1]


def test_a_finished_run_is_left_by_all_processes(tmp_path):
    small = [f"run={tmp_path / 'run'}", *tiny("maml_dqn")]
    assert cli.main(["train", *small]) == 0
    ranks = Ranks(tmp_path / "ranks", 2, *small)
    assert ranks.join() == [0, 0], ranks.said()
    out, err = ranks.said()
    assert "is finished already" in out
    assert not err


def test_a_process_waits_where_nothing_is_left_to_train(monkeypatch):
    """The first one is not done yet, and would take its end for a loss."""
    watch = mock.Mock()
    monkeypatch.setattr(Processes, "broadcast", lambda self: b"")
    loop.follow(Processes(2, 1, watch=watch))
    watch.over.wait.assert_called_once_with()


def test_a_failed_job_ends_the_sweep_of_all_processes(tmp_path):
    """The second job asks for more memory than there is; the third is not begun."""
    small = [o for o in tiny("maml_dqn") if not o.startswith("algo.query.capacity")]
    ranks = Ranks(tmp_path / "ranks", 2, "-m", *small, f"algo.query.capacity=60,{10**15},61", "outputs=runs")
    assert ranks.join() == [2, 1], ranks.said()
    assert "algo.query.capacity: the run would hold" in "".join(ranks.said())
    assert len(list((tmp_path / "ranks" / "runs").glob("*/run.json"))) == 1


def test_a_loss_is_taken_for_no_damaged_checkpoint(monkeypatch):
    """It is raised wherever the main thread is; the reader of checkpoints turns every error into one line."""
    watch = ranks_module.Watch(Processes(2, 0), PATIENCE)
    watch.lost = "process 1 of the 2 that share the run has ended"
    content = checkpoint.encode({"iteration": 1})
    monkeypatch.setattr(checkpoint.torch, "load", lambda *_, **__: signal.raise_signal(signal.SIGUSR1))
    before = signal.signal(signal.SIGUSR1, watch._raise)
    try:
        with pytest.raises(PeerLost, match="process 1 of the 2"):
            checkpoint.decode(content, "best.pt")
    finally:
        signal.signal(signal.SIGUSR1, before)
    watch.over.set()
    with pytest.raises(PeerLost):  # where a finalizer took the first one, the next exchange says it again
        watch.explain()


LOST = ProcessLost("process 0 of the 2 that share the run has ended")


@pytest.mark.parametrize(
    ("rank", "error", "code", "said"),
    [
        (0, UserError("bad"), 2, "metarl: error: bad\n"),
        (1, UserError("bad"), 2, "metarl: error: process 1: bad\n"),
        (1, LOST, 1, f"metarl: error: {LOST}\n"),
        (1, PeerLost(str(LOST)), 1, f"metarl: error: {LOST}\n"),
        (1, MemoryError("of 9 GB"), 2, "metarl: error: process 1: out of memory: of 9 GB\n"),
        (0, RuntimeError("a bug"), 1, r"Traceback.*RuntimeError: a bug\n"),
        (1, RuntimeError("a bug"), 1, r"Traceback.*RuntimeError: a bug\n"),
    ],
)
def test_an_error_of_one_process_of_several_is_printed_and_ends_it(rank, error, code, said, monkeypatch, capsys):
    """Hydra, which begins the next job of a sweep after an exception, does not see it."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(train_command, "join", lambda patience: Processes(2, rank))
    monkeypatch.setattr(train_command, "Watch", lambda processes, patience: contextlib.nullcontext(processes))
    for name in ("train", "follow"):
        monkeypatch.setattr(train_command, name, mock.Mock(side_effect=error))
    with pytest.raises(SystemExit) as ended:
        train_command.run(compose_train(), Job({}, []))
    assert ended.value.code == code
    assert re.fullmatch(said, capsys.readouterr().err, re.DOTALL)


def test_one_process_alone_raises_its_errors(monkeypatch):
    monkeypatch.setattr(train_command, "train", mock.Mock(side_effect=RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        train_command.run(compose_train(), Job({}, []))


def test_notes_are_of_the_first_process(monkeypatch, capsys, caplog):
    monkeypatch.setattr(train_command, "join", lambda patience: Processes(2, 1))
    monkeypatch.setattr(train_command, "Watch", lambda processes, patience: contextlib.nullcontext(processes))
    monkeypatch.setattr(train_command, "follow", lambda processes: note("there is no C++ compiler"))
    train_command.run(compose_train(), Job({}, []))
    assert not caplog.text
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("raises", [True, False])
def test_a_process_ends_that_waits_for_a_gpu_and_the_gpu_for_a_lost_process(raises, monkeypatch, capsys):
    """Its main thread does not return to Python, where it would raise the loss."""
    watch, done = ranks_module.Watch(Processes(2, 0), PATIENCE), []
    watch.group = None

    def signalled(thread, number):
        done.append(number)
        watch.raised = raises

    def end(code):
        done.append(code)
        watch.raised = True

    monkeypatch.setattr(ranks_module, "GRACE", 0.0)
    monkeypatch.setattr(ranks_module.distributed, "recv", mock.Mock(side_effect=RuntimeError))
    monkeypatch.setattr(ranks_module.signal, "pthread_kill", signalled)
    monkeypatch.setattr(ranks_module.os, "_exit", end)
    watch._listen(1)
    assert done == [signal.SIGUSR1, *([] if raises else [1])]
    line = "metarl: error: process 1 of the 2 that share the run has ended\n"
    assert capsys.readouterr().err == ("" if raises else line)
    assert watch.over.is_set()


def test_listeners_are_silent_before_the_handlers_go(monkeypatch):
    """A signal without its handler would kill this process."""
    watch = ranks_module.Watch(Processes(2, 1), PATIENCE)
    watch.threads, watch.before, silent = [], {signal.SIGUSR1: signal.SIG_DFL}, []
    monkeypatch.setattr(ranks_module.signal, "signal", lambda number, handler: silent.append(watch.over.is_set()))
    watch.__exit__(None, None, None)
    assert silent == [True]


def test_what_the_first_process_refuses_ends_the_others(tmp_path):
    ranks = Ranks(tmp_path / "ranks", 3, f"run={tmp_path / 'run'}", *tiny("maml_dqn"), "algo.outer.tasks=2")
    assert ranks.join() == [2, 1, 1]
    assert ranks.said()[1] == "metarl: error: algo.module=maml shares its work among at most 2 processes here, not 3\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("algo", "most"), [("dqn", "3 processes"), ("rl2", "3 processes"), ("adrl", "1 process")])
def test_more_processes_than_shares_are_refused(algo, most, tmp_path):
    config = compose_train(f"run={tmp_path / 'run'}", f"algo={algo}", *tiny(algo))
    with pytest.raises(UserError, match=f"at most {most} here, not 4"):
        loop.train(config, Job({}, []), loop.Listener(), Processes(size=4))
    assert not (tmp_path / "run").exists()


def test_a_process_that_follows_starts_where_the_first_does(tmp_path, monkeypatch):
    small = ["algo=evo_dqn", *tiny("evo_dqn")]
    assert cli.main(["train", f"run={tmp_path / 'run'}", *small]) == 0
    config, state = RunFolder(tmp_path / "run").config(), checkpoint.load(tmp_path / "run" / "last.pt")
    begin = {"config": config.model_dump(by_alias=True), "folder": "none", "job": 0}
    told, built = [json.dumps(begin).encode(), (tmp_path / "run" / "last.pt").read_bytes(), b"yes", b""], []
    monkeypatch.setattr(Processes, "broadcast", lambda self, content=b"": told.pop(0))
    monkeypatch.setattr(loop, "build", lambda *arguments: built.append(build(*arguments)) or built[0])
    loop.follow(Processes())
    (parts,) = built
    assert parts.algorithm.iteration == state["iteration"] + 1
    assert not told


def test_a_process_does_not_outlive_the_one_that_started_it(monkeypatch):
    owners, done = [7, 7, 1], []
    monkeypatch.setattr(ranks_module.os, "getppid", lambda: owners.pop(0))
    monkeypatch.setattr(ranks_module.os, "kill", lambda pid, number: done.append(number))
    monkeypatch.setattr(ranks_module.os, "_exit", lambda code: done.append(code))
    monkeypatch.setattr(ranks_module.time, "sleep", lambda seconds: done.append(seconds))
    ranks_module._end_with(7)
    assert done == [1, 1, signal.SIGTERM, ranks_module.GRACE, 1]


@pytest.mark.parametrize(("num", "size"), [(5, 1), (5, 2), (4, 4), (3, 4), (64, 3)])
def test_rows_are_shared_out(num, size):
    shares = [torch.arange(num)[Processes(size, rank).shard(num)] for rank in range(size)]
    assert torch.equal(torch.cat(shares), torch.arange(num))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("device", "number", "chosen"),
    [
        ("cpu", 1, "cpu"),
        ("auto", 0, "cuda:0"),
        ("auto", 1, "cuda:1"),
        ("cuda", 5, "cuda:2"),
        ("cuda:1", 5, "cuda:1"),
    ],
)
def test_jobs_take_turns_on_the_gpus(device, number, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert choose_device(Hardware(device=device, threads=1, patience=PATIENCE), number) == torch.device(chosen)


def test_the_processes_of_parallel_jobs_take_turns_on_the_gpus(monkeypatch):
    numbers = []
    for job, rank in ((0, 0), (0, 1), (1, 0), (1, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        numbers.append(ranks_module.gpu_number(job))
    assert numbers == [0, 1, 2, 3]
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name)
    assert ranks_module.gpu_number(3) == 3, "without torchrun, jobs do"


def test_one_gpu_for_several_processes_is_refused():
    config = compose_train("hardware.device=cuda:1")
    with pytest.raises(UserError, match=r"cuda:1 is one GPU, and 2 processes share the run; use hardware.device=cuda, "):
        build(config, processes=Processes(2))


@pytest.mark.parametrize(
    ("device", "gpus", "line"),
    [
        ("cuda", 0, "hardware.device=cuda, but torch finds no CUDA device; use hardware=auto or hardware=cpu"),
        ("cuda:1", 0, "hardware.device=cuda:1, but torch finds no CUDA device; use hardware=auto or hardware=cpu"),
        ("cuda:2", 2, "hardware.device=cuda:2, but the last of the 2 CUDA devices is cuda:1"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(device, gpus, line, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(UserError, match=re.escape(line)):
        choose_device(Hardware(device=device, threads=1, patience=PATIENCE))
