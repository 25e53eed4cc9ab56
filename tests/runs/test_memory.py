"""Memory is judged before it is taken, and what runs out of it says so in one line."""

import contextlib
import errno
import json
import math
import os
import platform
import subprocess
import sys

import pytest
import torch
from conftest import TINY, TINY_MAML, algorithms, compose_train, compose_values, fitting, proof_if, tiny
from launching import PATIENCE

from metarl_cli.adaptation import gradient
from metarl_cli.algos import conditioned_pg, maml_pg, pemirl
from metarl_cli.algos.maml import MAML
from metarl_cli.cli.main import main
from metarl_cli.config import footprint
from metarl_cli.config.footprint import check_memory, free, in_words, out_of_memory, peak, total_of
from metarl_cli.config.models import Job, TrainConfig
from metarl_cli.config.registry import ConfigError, validate
from metarl_cli.errors import UserError
from metarl_cli.interfaces import Footprint, Holding
from metarl_cli.runs.build import build, check_training_memory
from metarl_cli.runs.loop import Listener, train
from metarl_cli.runs.run import Run

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ENOUGH = 4 * 10**9  # [bytes] that are free in these tests

# overrides that no machine of 4 GB can follow, and the key that the line names
TOO_MUCH = [
    ("algo.query.capacity", "algo.query.capacity=300000000"),
    ("algo.tasks", "algo.tasks=1e10"),
    ("algo.inner.support.rollouts", "algo.inner.support.rollouts=1e8"),
    ("algo.inner.support.steps", "algo.inner.support.steps=1e8"),
    ("algo.inner.steps", "algo.inner.steps=100000"),
    ("algo.inner.steps", "algo=maml_pg algo.inner.steps=100000"),
    (
        "algo.inner.steps",
        "algo=maml_dqn algo.inner.steps=200 algo.tasks=20 algo.outer.batch=1 learner.network.hidden=[2048,2048]",
    ),
    ("algo.outer.batch", "algo.outer.batch=1e7"),
    ("algo.outer.chunk", "algo.outer.tasks=100000 algo.tasks=100000 algo.query.capacity=64"),
    ("algo.query.envs", "algo.query.envs=1e8 algo.query.capacity=1e10"),
    ("learner.network", "learner.network.hidden=[1000000000]"),
    ("eval.tasks", "eval.tasks=1e12"),
    ("test.tasks", "test.tasks=1e9"),
    ("algo.capacity", "algo=dqn algo.capacity=1e12"),
    ("algo.batch", "algo=dqn algo.batch=1e7"),
    ("algo.tasks", "algo=dqn algo.tasks=1e8"),
    ("algo.search.population", "algo=evo_dqn algo.search.population=1e6"),
    ("algo.search.covariance", "algo=evo_dqn algo/search=cma_es algo.search.covariance=full learner.network.hidden=[400,400]"),
    ("algo.chunk", "algo=es_dqn algo.fitness.tasks=100000 algo.tasks=100000"),
    ("algo.validation.tasks", "algo=evo_dqn algo.validation.tasks=1e6"),
    ("algo.lifetime.capacity", "algo=adrl algo.lifetime.capacity=1e9 eval.tasks=1 test.tasks=1"),
    ("algo.memory.size", "algo=rl2 algo.memory.size=1e6"),
    ("algo.tasks", "algo=rl2 algo.tasks=1e6"),
    ("env.horizon", "algo=rl2 env.horizon=1e7"),
    ("algo.replay.capacity", "algo=rl2_dqn algo.replay.capacity=1e7"),
    ("algo.replay.capacity", "algo=rl2_dqn algo.replay.capacity=1e12"),
    ("algo.replay.batch", "algo=rl2_dqn algo.replay.batch=1e7"),
    ("env.size", "env=gridworld env.size=2000"),
    ("algo.history", "algo=stacked_dqn algo.history=3000000"),
    ("algo.memory.layers", "algo=rl2 algo.memory.layers=100000"),
    ("algo.support.rollouts", "algo=dream_dqn algo.support.rollouts=1000000"),
    ("algo.support.steps", "algo=dream_dqn algo.support.steps=1000000"),
    ("algo.tasks", "algo=maml_pg env=cartpole_family algo.tasks=2e8"),
    ("algo.tasks", "algo=mandril env=sprite_grid algo.tasks=2e8"),
    ("eval.episodes", "eval.episodes=1e12"),
    (
        "algo.inner.support.rollouts",
        "algo=learned_loss_dqn algo/explorer=learned algo.inner.support.epsilon=0 algo.inner.support.rollouts=1000000",
    ),
    ("algo.support.rollouts", "algo=dqn algo.support.rollouts=1e8"),
    ("algo.inner.support.rollouts", "algo=anil_pg env=cartpole_family algo.inner.support.rollouts=1e8"),
    ("algo.lifetime.support.steps", "algo=es_dqn algo.lifetime.support.steps=1e8"),
    ("algo.lifetime.largest_batch", "algo=adrl algo.lifetime.largest_batch=1e8"),
    ("algo.explorer.rollouts", "algo=dream_dqn algo.explorer.rollouts=1e8"),
    ("algo.inner.support.steps", "algo=promp env=cartpole_family algo.inner.support.steps=1e8"),
    ("algo.context.steps", "algo=pemirl env=navigation_2d_continuous algo.context.steps=1e8"),
    ("algo.supports", "algo=pearl_dqn algo.supports=1e8"),
    ("algo.validation.tasks", "algo=adrl algo.validation.tasks=1e8"),
    ("algo.inner.steps", "algo=meta_bc env=sprite_grid algo.inner.steps=100000000"),
]


@pytest.fixture
def little(monkeypatch):
    monkeypatch.setattr(footprint, "free", lambda device: ENOUGH)


@pytest.mark.parametrize(("key", "overrides"), TOO_MUCH, ids=[overrides for _, overrides in TOO_MUCH])
def test_what_does_not_fit_is_one_line_with_the_key(key, overrides, little):
    if "cma_es" in overrides:
        pytest.importorskip("cma")
    values = compose_values("train", ["hardware=cpu", *overrides.split(" ")])
    line = rf"^(env: )?{key}: the (run|family) would hold about .* are free; lower {key}$"
    with pytest.raises((UserError, ConfigError), match=line):
        check_training_memory(config := validate(TrainConfig, values), build(config))


def whole_numbers(values, place="algo"):
    """The keys of all whole numbers in a configuration."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from whole_numbers(value, f"{place}.{key}")
        elif isinstance(value, int) and not isinstance(value, bool):
            yield f"{place}.{key}"


NUMBERS = [(algo, key) for algo in algorithms() for key in whole_numbers(compose_values("train", [f"algo={algo}"])["algo"])]


@pytest.mark.slow
@pytest.mark.proof
@pytest.mark.parametrize(("algo", "key"), NUMBERS)
def test_a_refusal_names_the_number_that_is_too_large(algo, key, little):
    values = compose_values("train", ["hardware=cpu", f"algo={algo}", f"env={fitting(algo)}", f"{key}=100000000"])
    refused = ""
    try:
        check_training_memory(config := validate(TrainConfig, values), build(config))
    except (UserError, ConfigError) as error:
        refused = str(error)
    assert "would hold" not in refused or refused.startswith((f"{key}: ", f"{key}="))


@pytest.mark.slow
@pytest.mark.proof
@pytest.mark.parametrize(("algo", "key"), NUMBERS)
def test_no_number_is_so_large_that_it_ends_in_a_traceback(algo, key, little):
    """10^15 of anything that takes memory are more bytes than addresses, so that asking for them fails on every machine."""
    values = compose_values("train", ["hardware=cpu", f"algo={algo}", f"env={fitting(algo)}", f"{key}=1000000000000000"])
    with contextlib.suppress(UserError, ConfigError):  # a number of iterations may be as large as one likes
        check_training_memory(config := validate(TrainConfig, values), build(config))


@pytest.mark.parametrize("algo", ["maml_dqn", "promp", "oracle_pg", "pemirl"])
def test_long_episodes_are_estimated_from_shorter_ones(algo, monkeypatch):
    key = {"oracle_pg": "algo.steps", "pemirl": "algo.context.steps"}.get(algo, "algo.inner.support.steps")
    config = compose_train("hardware=cpu", f"algo={algo}", f"env={fitting(algo)}", f"{key}=600")
    algorithm = build(config).algorithm

    def cost():
        return [each.bytes for each in algorithm.cost_of_training().passing], algorithm.cost_of_adapting(3, 2)

    training, adapting = cost()
    for module in (gradient, maml_pg, conditioned_pg, pemirl):
        monkeypatch.setattr(module, "LENGTHS", (600, 600))
    exact, exactly = cost()
    assert training == pytest.approx(exact, rel=0.05)
    assert adapting == pytest.approx(exactly, rel=0.05)


def test_a_number_that_runs_out_of_memory_while_building_is_named(little):
    key = "algo.context.size"
    values = compose_values(
        "train", ["hardware=cpu", "algo=context_bc", f"env={fitting('context_bc')}", f"{key}=1000000000000000"]
    )
    line = rf"^{key}=1e\+15: the run would hold more than the memory, and this is its largest number; lower it, or "
    with pytest.raises(UserError, match=line):
        check_training_memory(config := validate(TrainConfig, values), build(config))


def test_whole_numbers_fit_a_tensor():
    with pytest.raises(ConfigError, match=r"^algo.tasks: must be within ±9.22e\+18$"):
        validate(TrainConfig, compose_values("train", ["algo.tasks=1e19"]))


def networks(values, place=""):
    """The keys of all lists of hidden layers in a configuration."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from networks(value, f"{place}.{key}")
        elif key == "hidden" and isinstance(value, list):
            yield f"{place}.{key}"[1:]


HIDDEN = [(algo, key) for algo in algorithms() for key in networks({"algo": compose_values("train", [f"algo={algo}"])["algo"]})]


@pytest.mark.slow
@pytest.mark.parametrize(("algo", "key"), HIDDEN)
def test_layers_that_do_not_fit_are_refused_before_they_are_built(algo, key, little):
    assert len(HIDDEN) > 15
    values = compose_values("train", ["hardware=cpu", f"algo={algo}", f"env={fitting(algo)}", f"{key}=[20000,20000]"])
    with pytest.raises(UserError, match=rf"^{key}: the run would hold about .* are free; lower {key}$"):
        build(validate(TrainConfig, values))


@pytest.mark.parametrize("algo", algorithms())
def test_the_shipped_settings_fit(algo, little):
    config = compose_train(f"algo={algo}", f"env={fitting(algo)}", "hardware=cpu")
    check_training_memory(config, build(config))


def test_nothing_is_left_of_a_run_that_does_not_fit(tmp_path, capsys):
    where = tmp_path / "run"
    assert main(["train", f"run={where}", "hardware=cpu", "algo.query.capacity=1e12"]) == 2
    assert capsys.readouterr().err.startswith("metarl: error: algo.query.capacity: the run would hold about")
    assert not where.exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory") / "run"
    config = compose_train("algo=maml_dqn", *TINY, *TINY_MAML, f"run={folder}")
    return train(config, Job({}, []), Listener())[0].path


def test_a_test_that_does_not_fit_is_refused(trained, little):
    run = Run(trained)
    with pytest.raises(UserError, match=r"^tasks: the test would hold about .* are free; lower tasks$"):
        run.test(tasks=10**9)


ERRORS = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of 79 GiB"),
]


@pytest.mark.parametrize(
    "error",
    [ERRORS[0], *(pytest.param(error, marks=pytest.mark.slow) for error in ERRORS[1:])],
    ids=["python", "torch", "cuda"],
)
def test_running_out_of_memory_is_one_line_with_the_checkpoint(error, tmp_path, monkeypatch, capsys):
    where, step = tmp_path / "run", MAML.train_step

    def fails(self):
        if self.iteration == 3:
            raise error
        return step(self)

    monkeypatch.setattr(MAML, "train_step", fails)
    words = ["algo=maml_dqn", *TINY, *TINY_MAML, f"run={where}", "train.checkpoint_every=0.001"]
    assert main(["train", *words]) == 2
    line = capsys.readouterr().err
    assert line.startswith("metarl: error: out of memory: ")
    assert line.count("\n") == 1
    assert f"the last checkpoint is {where / 'last.pt'}; go on with: metarl train run={where}" in line
    assert json.loads((where / "run.json").read_text())["status"] == "failed"
    monkeypatch.undo()
    assert main(["train", f"run={where}", "hardware=cpu"]) == 0


def test_other_errors_are_not_taken_for_it():
    assert all(map(out_of_memory, ERRORS))
    assert out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory")), "a process that could not be started"
    assert not any(map(out_of_memory, [RuntimeError("shapes differ"), ValueError("out of memory"), OSError("full")]))


# -- what is free


def machine(root, available=8 * 10**6, cgroup="", **files):
    """A root folder with what Linux says; sizes in kB and bytes as there."""
    files = {"proc/meminfo": f"MemTotal: 9 kB\nMemAvailable:  {available} kB\n", "proc/self/cgroup": cgroup, **files}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def group(path, most, used, cache, v1=False):
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if v1 else ("memory.max", "memory.current")
    stat = "total_inactive_file" if v1 else "inactive_file"
    return {f"{path}/{names[0]}": f"{most}\n", f"{path}/{names[1]}": f"{used}\n", f"{path}/memory.stat": f"{stat} {cache}\n"}


def test_the_machine_and_its_control_groups_are_asked(tmp_path):
    assert free(CPU, machine(tmp_path / "plain")) == 8 * 10**6 * 1024
    inner = group("sys/fs/cgroup/slurm/job", 3 * 10**9, 10**9, 5 * 10**8)
    assert free(CPU, machine(tmp_path / "two", cgroup="0::/slurm/job\n", **inner)) == 25 * 10**8
    outer = group("sys/fs/cgroup/slurm", 2 * 10**9, 10**9, 0)
    assert free(CPU, machine(tmp_path / "above", cgroup="0::/slurm/job\n", **inner, **outer)) == 10**9
    unlimited = group("sys/fs/cgroup/slurm/job", "max", 10**9, 0)
    assert free(CPU, machine(tmp_path / "max", cgroup="0::/slurm/job\n", **unlimited)) == 8 * 10**6 * 1024
    old = group("sys/fs/cgroup/memory/docker/x", 10**9, 4 * 10**8, 10**8, v1=True)
    assert free(CPU, machine(tmp_path / "one", cgroup="5:cpu:/docker/x\n9:memory:/docker/x\n", **old)) == 7 * 10**8
    full = group("sys/fs/cgroup/slurm/job", 10**9, 2 * 10**9, 0)
    assert free(CPU, machine(tmp_path / "full", cgroup="0::/slurm/job\n", **full)) == 0
    assert free(CPU, tmp_path / "another system") is None


def test_this_machine_says_something():
    if sys.platform == "linux":
        assert free(CPU) > 10**6


def test_the_limit_of_addresses_counts(tmp_path):
    program = "import resource, torch; from metarl_cli.config.footprint import free; before = free(torch.device('cpu')); "
    program += "resource.setrlimit(resource.RLIMIT_AS, (12 * 10**9, resource.RLIM_INFINITY)); print(free(torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert 0 < int(done.stdout) < 12 * 10**9


def test_the_largest_part_is_named(monkeypatch):
    monkeypatch.setattr(footprint, "free", lambda device: 10**9)
    fits = Footprint([Holding("a", 4e8)], [Holding("b", 5e8), Holding("c", 6e8)])
    check_memory(fits, CPU)
    assert total_of(fits) == 1e9
    with pytest.raises(UserError) as caught:
        check_memory(Footprint([Holding("a", 4e8)], [Holding("b", 5e8), Holding("c", 7e8)]), CPU)
    (problem,) = caught.value.problems
    assert problem.key == "c"
    assert problem.text == ("c: the run would hold about 1.1 GB of memory, 700 MB of them by c, and 1 GB are free; lower c")
    with pytest.raises(UserError, match="more bytes than any machine has"):
        check_memory(Footprint([Holding("a", math.inf)]), CPU)
    monkeypatch.setattr(footprint, "free", lambda device: None)
    check_memory(Footprint([Holding("a", math.inf)]), CPU)


def test_processes_of_a_run_share_what_is_free(monkeypatch):
    monkeypatch.setattr(footprint, "free", lambda device: 10**9)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cost = Footprint([Holding("a", 4e8)])
    for processes, devices in (("2", [CPU, GPU]), ("3", [GPU])):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        for device in devices:
            check_memory(cost, device)
    with pytest.raises(UserError, match=r"and 333 MB are free; lower a$"):
        check_memory(cost, CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "5")
    with pytest.raises(UserError, match=r"and 333 MB are free on cuda; lower a$"):
        check_memory(cost, GPU)


def test_what_freed_tensors_have_left_is_free(monkeypatch):
    said = {"mem_get_info": (10**9, 4 * 10**9), "memory_reserved": 2 * 10**9, "memory_allocated": 5 * 10**8}
    for name, value in said.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free(GPU) == 25 * 10**8


def test_what_an_earlier_job_left_is_given_back(monkeypatch):
    left = [1e9]  # bytes that the process keeps
    monkeypatch.setattr(footprint, "free", lambda device: 2 * 10**9 - int(sum(left)))
    monkeypatch.setattr(footprint, "release", left.clear)
    check_memory(Footprint([Holding("a", 5e8)]), CPU)
    assert left, "there is no need"
    check_memory(Footprint([Holding("a", 15e8)]), CPU)
    with pytest.raises(UserError, match="2 GB are free"):
        check_memory(Footprint([Holding("a", 25e8)]), CPU)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries keep nothing")
def test_memory_is_released():
    program = "import resource, torch; from metarl_cli.cli.process import keep_memory\n"
    program += "from metarl_cli.config import footprint\n"
    program += "size = lambda: int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()\n"
    program += "keep_memory(); x = [torch.ones(10**6) for _ in range(50)]; del x; kept = size(); footprint.release()\n"
    program += "print(kept - size())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert int(done.stdout) > 1.5e8


def test_words():
    assert [in_words(x) for x in (10**5, 2.5e6, 3e9, 45e12, 1e18)] == [
        "0.1 MB",
        "2.5 MB",
        "3 GB",
        "45 TB",
        "more bytes than any machine has",
    ]


# -- what a computation takes


def test_peaks_by_hand():
    x = torch.zeros(1000, device="meta", requires_grad=True)

    def compute():
        y = x * 2  # 4 kB
        z = y.exp()  # 4 kB, kept for its gradient; y goes with it
        del y
        return torch.autograd.grad(z.sum(), x)  # the gradient of exp and of the product: 8 kB, and of the sum

    assert peak(lambda: x * 2) == 4000
    assert peak(lambda: [x * 2, x * 2]) == 8000
    assert 8000 <= peak(compute) <= 16100
    assert peak(lambda: float(x.sum())) == 0, "it needs the content"
    assert peak(lambda: torch.zeros(10**12, 10**12, device="meta")) == math.inf


@pytest.mark.parametrize("algo", algorithms())
def test_judging_changes_nothing(algo):
    """Neither a weight nor a random number, and it takes no memory worth a word."""
    config = compose_train(f"algo={algo}", f"env={fitting(algo)}", *tiny(algo))
    one, other = build(config).algorithm, build(config).algorithm
    one.cost_of_training()
    assert one.cost_of_adapting(3, 2) >= 0
    for _ in range(2):
        assert one.train_step() == other.train_step()


KEPT = ("query.envs", "dqn algo.tasks=100", "pearl", "rl2 env", "evaluation algo=maml_dqn")  # the others are proofs
SIZES = [
    "training algo=maml_dqn algo.query.envs=32 algo.query.steps=64 algo.query.capacity=6000 algo.outer.updates=1",
    "training algo=maml_dqn algo.outer.tasks=100 algo.outer.batch=2048 algo.outer.updates=1 algo.query.capacity=256",
    "training algo=maml_dqn algo.tasks=100 algo.outer.tasks=100 algo.outer.chunk=25 algo.outer.batch=4096 algo.outer.updates=1",
    "training algo=maml_dqn algo.inner.steps=3 algo.outer.tasks=64 algo.outer.batch=512 algo.outer.updates=1",
    "training algo=maml_dqn algo.inner.order=1 algo.outer.tasks=100 algo.outer.batch=2048 algo.outer.updates=1",
    "training algo=learned_loss_dqn algo.outer.tasks=100 algo.outer.episodes=8 algo.outer.updates=1",
    "training algo=dqn algo.capacity=150000 algo.envs=1024 algo.steps=64 algo.updates=2",
    "training algo=dqn algo.tasks=100 algo.batch=4096 algo.updates=2 algo.warmup=0",
    "training algo=pearl env=pendulum_family algo.update_tasks=128 algo.batch=256 algo.updates=2",
    "training algo=rl2 env=pendulum_family algo.tasks=128 algo.ppo.epochs=1",
    "training algo=rl2_dqn algo.tasks=64 env.horizon=100 algo.dqn.updates=2 algo.replay.batch=512",
    "training algo=evo_dqn",
    "training algo=es_dqn algo.chunk=16",
    "training algo=adrl algo.fitness.tasks=64 algo.lifetime.iterations=1 algo.validation.candidates=0 algo.search.patience=5 "
    "train.iterations=10",
    "evaluation algo=maml_dqn test.tasks=500 test.episodes=10 test.steps=1 env.horizon=50",
    "evaluation algo=rl2 test.tasks=5000 test.episodes=10 env.horizon=20",
]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read as on Linux")
@pytest.mark.parametrize("case", proof_if(SIZES, lambda case: not any(key in case for key in KEPT)))
def test_estimates_are_right_within_a_factor_of_about_two(case):
    program = os.path.join(os.path.dirname(__file__), "peaks.py")
    paths = os.pathsep.join([os.path.dirname(os.path.dirname(__file__)), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, program, *case.split(" ")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=True, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    assert 1 / 2.2 < found["estimate"] / found["measured"] < 2.2, found
