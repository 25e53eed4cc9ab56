"""Processes of simulators that hang: they are waited for no longer than configured, and die with their owner."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import tiny
from launching import PATIENCE, wait_until

from metarl_cli.envs.gymnasium import Config, workers
from metarl_cli.errors import ProcessLost
from metarl_cli.processes import patience, waiting

CARTPOLE = {
    "id": "CartPole-v1",
    "horizon": 20,
    "constructor": {},
    "parameters": {"gravity": {"nominal": 9.8, "set": "attribute.gravity"}},
    "ranges": {"gravity": [5.0, 15.0]},
    "ood_ranges": {},
    "choices": {},
    "ood_choices": {},
    "derived": {},
    "wrappers": [],
    "processes": 2,
}


def sleep(*_):
    time.sleep(10**6)


def spin(*_):
    while True:
        pass


def foreign(*_):
    """Code that never returns to Python and keeps every other thread from it."""
    ctypes.PyDLL(None).sleep(10**6)


HANGS = {"sleeps": sleep, "spins": spin, "foreign": foreign}


def worker(monkeypatch, hang, method="render"):
    """A worker that hangs in a method."""
    monkeypatch.setattr(workers.Simulators, method, hang)
    return workers.RemoteWorker(Config.model_validate(CARTPOLE), [{"gravity": 9.8}], False)


def gone(pid):
    """Whether a process has ended; one that nobody has waited for yet has."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("hang", HANGS)
def test_a_simulator_that_does_not_answer_is_named_and_ended(hang, monkeypatch):
    hanging = worker(monkeypatch, HANGS[hang])
    hanging.send("render")
    with waiting(0.3), pytest.raises(ProcessLost) as lost:
        hanging.receive()
    assert str(lost.value) == "env.id=CartPole-v1: its process has not answered for 0.3 s (hardware.patience)"
    assert lost.value.exit_code == 1
    hanging.close()
    assert hanging.process.exitcode == -signal.SIGKILL


def test_a_simulator_that_hangs_when_it_is_closed_is_ended(monkeypatch):
    monkeypatch.setattr(workers, "ENDING", 0.2)
    hanging = worker(monkeypatch, sleep, "close")
    hanging.send("begin", [0], [0], [0], workers.np.zeros((0, 1)))
    assert hanging.receive().shape == (1, 4)
    hanging.close()
    assert not hanging.process.is_alive()


def test_patience_is_that_of_the_block():
    assert patience() is None
    with waiting(2.0):
        assert patience() == 2.0
    assert patience() is None


def _own(send, hang, main):
    """Start workers, one of them hanging, tell their numbers, and wait."""
    workers.Simulators.render = HANGS[hang]
    started = []

    def begin():
        started.extend(workers.RemoteWorker(Config.model_validate(CARTPOLE), [{"gravity": 9.8}], False) for _ in range(3))

    if main:
        begin()
    else:
        thread = threading.Thread(target=begin)
        thread.start()
        thread.join()
    started[0].send("render")
    started[1].send("begin", [0], [0], [0], workers.np.zeros((0, 1)))
    started[1].receive()  # it outlives the thread that started it
    send.send([each.process.pid for each in started])
    time.sleep(10**6)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize(("hang", "main"), [(hang, True) for hang in HANGS] + [("sleeps", False), ("spins", False)])
def test_workers_die_with_an_owner_that_is_killed(hang, main):
    receive, send = multiprocessing.Pipe(duplex=False)
    owner = multiprocessing.get_context("fork").Process(target=_own, args=(send, hang, main))
    owner.start()
    try:
        pids = receive.recv()
        time.sleep(0.1)  # the first one hangs now
        assert not any(map(gone, pids))
        os.kill(owner.pid, signal.SIGKILL)
        owner.join()
        wait_until(lambda: all(map(gone, pids)), "the end of the workers")
    finally:
        owner.kill()


PROGRAM = """
import os, sys, time
from metarl_cli.cli.main import main
from metarl_cli.envs.gymnasium import workers
step, steps = workers.Simulators.step, [0]
def hanging(self, actions):
    steps[0] += 1
    if steps[0] > LATER:
        os.write(1, b"\\nhangs %d\\n" % os.getpid())
        HANG
    return step(self, actions)
workers.Simulators.step = hanging
sys.argv = ["metarl", *ARGUMENTS]
sys.exit(main())
"""
LOCKED = "import ctypes; c, m = ctypes.CDLL(None), ctypes.create_string_buffer(64); [c.pthread_mutex_lock(m) for _ in 'ab']"
STOPS = {signal.SIGINT: (130,), signal.SIGTERM: (143, -signal.SIGTERM), signal.SIGHUP: (129, -signal.SIGHUP)}


@pytest.fixture
def hanging_run(tmp_path):
    """``metarl train`` with environments that hang; ends what it has left."""
    begun = []

    def begin(hang, processes, *overrides):
        groups = ["algo=maml_dqn", *tiny("maml_dqn"), "env=own", "train.checkpoint_every=1e-6", f"env.processes={processes}"]
        (tmp_path / "conf" / "env").mkdir(parents=True)
        (tmp_path / "conf" / "env" / "own.yaml").write_text(OWN)
        arguments = ["train", "--config-dir", str(tmp_path / "conf"), *groups, f"run={tmp_path / 'run'}", *overrides]
        program = PROGRAM.replace("LATER", "40").replace("HANG", hang).replace("ARGUMENTS", repr(arguments))
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen([sys.executable, "-c", program], env=environment, **pipes)
        begun.append(process)
        pids = []
        for line in process.stdout:
            if line.startswith("hangs"):
                pids.append(int(line.split()[1]))
                break
        assert pids, process.stderr.read()
        return process, pids

    yield begin
    for process in begun:
        process.kill()
        with contextlib.suppress(ValueError):
            process.communicate()


OWN = """# hangs
module: gymnasium
id: CartPole-v1
horizon: 10
constructor: {}
parameters: {gravity: {nominal: 9.8, set: attribute.gravity}}
ranges: {gravity: [5.0, 15.0]}
ood_ranges: {}
choices: {}
ood_choices: {}
derived: {}
wrappers: []
processes: 1
"""


@pytest.mark.parametrize(
    ("number", "hang", "processes"),
    [
        (signal.SIGINT, "time.sleep(10**6)", 2),
        pytest.param(signal.SIGTERM, "time.sleep(10**6)", 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, "time.sleep(10**6)", 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "exec('while True: pass')", 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, "exec('while True: pass')", 2, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, LOCKED, 1, marks=pytest.mark.slow),
    ],
)
def test_a_second_signal_stops_what_hangs(number, hang, processes, hanging_run):
    process, pids = hanging_run(hang, processes)
    process.send_signal(number)
    if hang != LOCKED:  # signals wait for its end
        assert process.stderr.readline() == "saving after this iteration; again to stop at once\n"
    time.sleep(0.6)
    assert process.poll() is None
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode in STOPS[number], err
    assert "Traceback" not in err
    wait_until(lambda: all(map(gone, pids)), "the end of the workers")


@pytest.mark.slow
def test_a_run_whose_simulator_hangs_fails_by_itself(hanging_run):
    process, pids = hanging_run("time.sleep(10**6)", 2, "hardware.patience=0.5")
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert err.startswith("metarl: error: env.id=CartPole-v1: its process has not answered for 0.5 s (hardware.patience); ")
    assert "go on with: metarl train run=" in err
    assert len(err.splitlines()) == 1
    wait_until(lambda: all(map(gone, pids)), "the end of the workers")
