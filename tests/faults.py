"""Damaged files and hostile folders, counted: ``python tests/faults.py`` prints tables, and fails for what is handled badly.

The script stands beside the tests, whose lists of hostile texts it shares, and is none of them: it takes minutes, and a short
count of it is a slow test (``tests/test_hostile.py``). What is tried is one tiny run. A damage is handled well if what opens
the file refuses it in one line (``UserError``), or ends up with exactly what was written; a metric that is lost must be said. A
hostile input is handled well if it is refused in one line or has no effect. Handled badly are any other exception, other values
without a word, code that ran, a file outside that was changed, and more than ``SECONDS`` of computing or ``MEMORY`` bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from conftest import compose_train, tiny
from hostile import BOMB, HYDRA, MERGED

import metarl_cli as metarl
from metarl_cli.cli.compose import Composer
from metarl_cli.config.models import Job
from metarl_cli.errors import UserError
from metarl_cli.progress import listening
from metarl_cli.runs import checkpoint
from metarl_cli.runs.build import build
from metarl_cli.runs.files import CHECKSUM, _checksum
from metarl_cli.runs.folder import RunFolder
from metarl_cli.runs.loop import Listener, Training, train
from metarl_cli.runs.run import Run

SECONDS, MEMORY = 30, 2**30
JOB = Job({"algo": "maml_dqn", "env": "cartpole_family"}, [])
Change = Callable[[bytes], bytes]


# -- what is opened, and what it comes to


def fingerprint(value: Any) -> str:
    """A hash of everything in nested values, tensors to the bit."""
    if isinstance(value, torch.Tensor):
        value = [str(value.dtype), list(value.shape), hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()]
    elif isinstance(value, dict):
        value = {str(name): fingerprint(item) for name, item in value.items()}
    elif isinstance(value, list | tuple):
        value = [fingerprint(item) for item in value]
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def opened(folder: Path) -> str:
    """What ``metarl test`` and ``metarl adapt`` start from."""
    run = Run(folder)
    run.folder.check_tasks(run.config, run.family)
    values = run.config.model_dump(exclude={"run", "outputs"})
    return fingerprint([values, run.algorithm.weights(), run.env_steps, run.score, run.results])


def continued(folder: Path) -> str:
    """What ``metarl train run=`` goes on from: the state after the next iteration, and the metrics that are kept."""
    saved = RunFolder(folder)
    config = saved.continued(compose_train(f"run={folder}"), [f"run={folder}"])
    components = build(config)
    saved.lock()
    try:
        saved.check_tasks(config, components.family)
        training = Training(config, saved, components, Listener())
        training.tracker.close(finished=False)
        training.train_step()
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return fingerprint([training.algorithm.state_dict(), training.iteration, training.best, len(rows)])
    finally:
        saved.unlock()


def policy(folder: Path) -> str:
    loaded = metarl.load(folder / "adapted" / "policy.pt")
    return fingerprint([loaded.policy.state_dict(), loaded.task])


READERS = {  # file -> what opens it
    "last.pt": continued,
    "best.pt": opened,
    "config.yaml": opened,
    "run.json": opened,
    "tasks.json": opened,
    "results/test.json": opened,
    "adapted/policy.pt": policy,
    "metrics.jsonl": continued,
    "events": continued,
}


def make(folder: Path) -> None:
    """A run that was stopped in the middle, with a result and an adapted policy."""
    config = compose_train("algo=maml_dqn", "env=cartpole_family", *tiny("maml_dqn"), f"run={folder}")

    class Stop(Listener):
        def progress(self, progress: Any) -> None:
            if progress.iteration == 3:
                os.kill(os.getpid(), signal.SIGINT)

    with contextlib.suppress(KeyboardInterrupt):
        train(config, JOB, Stop())
    run = Run(folder)
    run.test(episodes=1)
    next((folder / "results").glob("*.json")).rename(folder / "results" / "test.json")
    run.adapt(gravity=12, steps=1).save(folder / "policy")
    (folder / "adapted").mkdir()
    (folder / "policy").rename(folder / "adapted" / "policy.pt")


# -- judging


def judge(action: Callable[[], str | None], expected: str | None, traces: list[Path], victim: Path) -> str:
    """How an input was handled: ``refused``, ``same``, ``said`` to be lost, or what was bad about it."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError

    said: list[str] = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)  # seconds of computing: the machine may be busy with other things
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 10 * SECONDS)
    try:
        with listening(lambda text: None, said.append):
            same = action() == expected
        found = "same" if same else "said" if said else "other values without a word"
    except UserError:
        found = "refused"  # each problem is printed as one line, whatever stands in it
    except TimeoutError:
        found = "hangs"
    except Exception as error:
        found = f"{type(error).__name__}: {error}"[:100]
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    if any(trace.exists() for trace in traces):
        return "code ran"
    if victim.read_text() != "precious" or len(list((victim.parent / "outside").iterdir())):
        return "a file outside was changed"
    if (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 > MEMORY:
        return "memory"
    return found


# -- damage


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The file with a damage of one of eight kinds; a single bit, the hardest to notice, twice as often."""
    place, size, kind = rng.randrange(len(content)), rng.choice([1, 16, 512]), rng.randrange(8)
    end, bit = place + size, bytes([content[place] ^ 1 << rng.randrange(8)])
    return [
        content[:place] + bit + content[place + 1 :],
        content[:place] + bit + content[place + 1 :],
        content[:place] + rng.randbytes(size) + content[end:],
        content[:place],
        content[:place] + bytes(size) + content[end:],
        content[:place] + content[end:],
        content[:end] + content[place:],
        content[:place] + b'{"step": 1, "a": [' + content[end:],
    ][kind]


def count_damaged(source: Path, number: int, traces: list[Path], victim: Path) -> Counter[tuple[str, str]]:
    rng, counts = random.Random(0), Counter[tuple[str, str]]()
    work = victim.parent / "work"
    expected = {}
    for reader in dict.fromkeys(READERS.values()):
        shutil.copytree(source, work)
        expected[reader] = reader(work)
        shutil.rmtree(work)
    names = list(READERS)
    while counts.total() < number:
        name = names[counts.total() % len(names)]
        shutil.copytree(source, work)
        path = next(work.glob("events*")) if name == "events" else work / name
        content = path.read_bytes()
        changed = damaged(content, rng)
        if changed != content:
            path.write_bytes(changed)
            reader = READERS[name]
            counts[name, judge(lambda reader=reader: reader(work), expected[reader], traces, victim)] += 1
        shutil.rmtree(work)
    return counts


# -- malice


class Harmful:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


class Large:
    def __reduce__(self):
        return bytearray, (5 * 10**9,)


def sealed(state: Any, protocol: int = 2) -> bytes:
    """A checkpoint whose checksum is right, whatever stands in it."""
    buffer = io.BytesIO()
    torch.save(state, buffer, pickle_protocol=protocol)
    return checkpoint.seal(buffer)


def packed(pickled: bytes, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3")
    return checkpoint.seal(buffer)


def nested(depth: int) -> bytes:
    """A pickle of a list within a list within a list, which pickle itself could not write."""
    return b"\x80\x02}q\x00(X\x06\x00\x00\x00formatK\x04X\x01\x00\x00\x00a" + b"]" * (depth + 1) + b"a" * depth + b"u."


def checkpoints(state: dict[str, Any], trace: Path) -> dict[str, Any]:
    """What could stand in ``best.pt``: a state, or the bytes of the file."""

    def weights(change: Callable[[torch.Tensor], Any]) -> dict[str, Any]:
        def changed(value: Any) -> Any:
            return {name: changed(item) for name, item in value.items()} if isinstance(value, dict) else change(value)

        return {**state, "algorithm": {"weights": changed(state["algorithm"]["weights"])}}

    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as archive:
        for name in ("archive/data.pkl", "archive/DATA.PKL"):
            archive.writestr(name, pickle.dumps(state["env_steps"], 2))
    folder = bytearray(sealed(state))
    for place in [i for i in range(len(folder)) if folder[i : i + 4] == b"PK\x01\x02"]:
        folder[place + 38] ^= 0x10
    folder[-64:] = hashlib.sha256(folder[:-64]).hexdigest().encode()
    return {
        "code, protocol 2": {**state, "x": Harmful(trace)},
        "code, protocol 4": sealed({**state, "x": Harmful(trace)}, 4),
        "code as a bare pickle": pickle.dumps(Harmful(trace)),
        "code as a key": {**state, "x": {(1, Harmful(trace)): 1}},
        "5 GB from few bytes": {**state, "x": Large()},
        "a packed gigabyte": packed(pickle.dumps({"format": 4, "x": "0" * 10**9}, 2)),
        "lists 100,000 deep": packed(nested(100_000), zipfile.ZIP_STORED),
        "a name twice": checkpoint.seal(twice),
        "parts called folders": bytes(folder),
        "a tensor of 10^12": {**state, "x": torch.ones(1).expand(10**12)},
        "a set": {**state, "x": {1}},
        "bytes": {**state, "x": b"a"},
        "a parameter": {**state, "x": torch.nn.Parameter(torch.ones(1))},
        "_target_": {**state, "_target_": "os.system"},
        "an interpolation": {**state, "x": ["${oc.env:HOME}"]},
        "an absolute path": {**state, "x": "/etc/passwd"},
        "a path that climbs": {**state, "x": {"a": ("b/../../c",)}},
        "weights of NaN": weights(lambda x: x * torch.nan),
        "weights of infinity": weights(lambda x: x + torch.inf),
        "weights of float64": weights(lambda x: x.double()),
        "weights of int64": weights(lambda x: x.long()),
        "weights of complex numbers": weights(lambda x: x.to(torch.complex64)),
        "weights of another shape": weights(lambda x: x[..., None]),
        "weights as texts": weights(str),
        "weights as lists": weights(lambda x: x.tolist()),
        "no weights": {**state, "algorithm": {}},
        "a list": [state],
        "negative steps": {**state, "env_steps": -(10**18)},
        "infinite steps": {**state, "env_steps": torch.inf},
        "steps as a text": {**state, "env_steps": "1"},
        "another algorithm": {**state, "algorithm": {"weights": {"champion": torch.ones(1, 4)}}},
        "another format": {**state, "format": 3},
        "an empty file": b"",
        "a web page": b"<html>" * 100,
    }


def configurations(values: dict[str, Any], text: str) -> dict[str, str | bytes]:
    """What could stand in ``config.yaml``, its hash in the manifest being right."""

    def changed(key: str, value: Any) -> str:
        copied = json.loads(json.dumps(values))
        *groups, last = key.split(".")
        holder = copied
        for group in groups:
            holder = holder[group]
        holder[last] = value
        return str(yaml.safe_dump(copied))

    gymnasium = {"module": "gymnasium", "parameters": {}, "ranges": {}, "ood_ranges": {}, "horizon": 20, "choices": {}}
    gymnasium |= {"constructor": {}, "ood_choices": {}, "derived": {}, "wrappers": [], "processes": 1}
    return {
        "an object of Python's": text + "\nx: !!python/object/apply:os.system ['touch TRACE']\n",
        "aliases of 9^12 values": text + "\n" + BOMB,
        "merges of 9^11 values": text + "\n" + MERGED,
        "an alias of itself": text + "\nx: &x [*x]\n",
        "5,000 brackets": text + "\nx: " + "[" * 5000,
        "5,000 digits": changed("seed", 0).replace("seed: 0", f"seed: {'9' * 5000}", 1),
        "an impossible date": text + "\nx: 2020-13-45\n",
        "no UTF-8": text.encode() + b"\nx: \xff\n",
        "a list at the top": "- a\n",
        "nothing": "",
        "_target_": changed("algo._target_", "os.system"),
        "_target_ deep within": changed("learner.network", {"_target_": "os.system", "hidden": [8]}),
        "an environment variable": changed("learner.loss", "${oc.env:HOME}"),
        "a module by path": changed("algo.module", "../../evil"),
        "a module by dots": changed("env.module", "os.path"),
        "a module as a list": changed("env.module", ["os"]),
        "a number that is not finite": changed("learner.gamma", float("nan")),
        "another type": changed("train.iterations", "4"),
        "a key too many": changed("algo.evil", 1),
        **{
            f"Gymnasium's {name!r}": changed("env", {**gymnasium, "id": name})
            for name in ("evil:X-v0", "this:that", "CartPole-v1\n", "GymV26Environment-v0", "../X-v0", "/X-v0")
        },
        **{
            f"the wrapper {name!r}": changed("env", {**gymnasium, "id": "CartPole-v1", "wrappers": [{"name": name}]})
            for name in ("os.system", "RecordVideo", "evil:Wrapper", "../Wrapper")
        },
        "an absolute path": changed("env", {**gymnasium, "id": "CartPole-v1", "constructor": {"render_mode": "/etc/passwd"}}),
        "a path that climbs": changed("env", {**gymnasium, "id": "CartPole-v1", "constructor": {"render_mode": "a/../../b"}}),
    }


MANIFESTS: dict[str, dict[str, Any]] = {  # entries of run.json, its checksum being right
    "no tasks": {"tasks": None},
    "tasks as a list": {"tasks": ["test"]},
    "an unknown split": {"tasks": {"validation": "a", "test": "b", "train": "c"}},
    "finished without a score": {"status": "finished"},
    "a score as a text": {"status": "finished", "score": "9"},
    "an unknown status": {"status": "evil"},
    "no hashes": {"sha256": {}},
    "choices as a list": {"choices": ["a"]},
    "a format as a text": {"format": "4"},
    "another format": {"format": 10**30},
    "iterations as a text": {"iterations": "4"},
    "another device": {"device": ["cpu"]},
}


def special(folder: Path, victim: Path) -> dict[str, Callable[[], object]]:
    """What could lie in the place of a file."""
    outside = victim.parent / "outside"

    def put(place: str, target: Path | str | None = None) -> Callable[[], object]:
        def change() -> None:
            path = folder / place
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
            if target is None:
                os.mkfifo(path)
            else:
                path.symlink_to(target)

        return change

    files = (".lock", ".reserve", "metrics.jsonl", "tasks.json", "results/test.json", f".last.pt.{os.getpid()}.tmp", "events.x")
    return {
        **{f"{name} -> a file outside": put(name, victim) for name in files},
        **{f"{name} -> a folder outside": put(name, outside) for name in ("results", "adapted")},
        **{f"{name} -> /dev/zero": put(name, "/dev/zero") for name in ("best.pt", "config.yaml", "run.json")},
        **{f"{name} as a pipe": put(name) for name in ("last.pt", "best.pt", "config.yaml", "metrics.jsonl")},
        "a link to the folder itself": put("more", folder),
    }


def count_malicious(source: Path, traces: list[Path], victim: Path) -> Counter[tuple[str, str]]:
    counts = Counter[tuple[str, str]]()
    work = victim.parent / "work"
    bad: list[str] = []

    def expect(kind: str, name: str, change: Callable[[], object], readers: tuple[Callable[[Path], str], ...]) -> None:
        found = "same"
        for reader in readers:
            shutil.copytree(source, work)
            change()
            answer = judge(lambda reader=reader: reader(work), expected[reader], traces, victim)
            found = answer if found == "same" or answer not in ("same", "refused") else found
            shutil.rmtree(work)
        counts[kind, found] += 1
        if found not in ("refused", "same", "said"):
            bad.append(f"{kind}: {name}: {found}")

    shutil.copytree(source, work)
    expected = {opened: opened(work)}
    values, text = yaml.safe_load((work / "config.yaml").read_text()), (work / "config.yaml").read_text()
    state = {name: value for name, value in checkpoint.load(work / "best.pt").items() if name != "format"}
    shutil.rmtree(work)
    shutil.copytree(source, work)
    expected[continued] = continued(work)
    shutil.rmtree(work)

    def written(name: str, content: bytes) -> Callable[[], object]:
        return lambda: (work / name).write_bytes(content)

    def manifest(**changes: Any) -> None:
        found = {**json.loads((work / "run.json").read_text()), **changes}
        (work / "run.json").write_text(json.dumps({**found, CHECKSUM: _checksum(found)}))

    def configured(content: bytes) -> None:
        (work / "config.yaml").write_bytes(content)
        hashes = json.loads((work / "run.json").read_text())["sha256"]
        manifest(sha256={**hashes, "config.yaml": hashlib.sha256(content).hexdigest()})

    for name, content in checkpoints(state, traces[0]).items():
        if isinstance(content, dict | list):
            whole = {"format": checkpoint.FORMAT, **content} if isinstance(content, dict) else content
            content = sealed(whole)
        expect("a checkpoint", name, written("best.pt", content), (opened,))
    last = {name: value for name, value in checkpoint.load(source / "last.pt").items() if name != "format"}
    wrong: dict[str, Any] = {
        "iteration": [-3, 1e30, 10**30, torch.inf, "1", None, True],
        "best": ["a"],
        "seconds": [None],
        "algorithm": [{}],
        "logged": [(-1, "a"), None],
    }
    for key, choices in wrong.items():
        for value in choices:
            content = sealed({"format": checkpoint.FORMAT, **last, key: value})
            expect("a checkpoint", f"last.pt: {key}={value}", written("last.pt", content), (continued,))
    for name, content in configurations(values, text).items():
        encoded = content if isinstance(content, bytes) else content.replace("TRACE", str(traces[0])).encode()
        expect("a configuration", name, lambda encoded=encoded: configured(encoded), (opened,))
    for name, changes in MANIFESTS.items():
        expect("a manifest", name, lambda changes=changes: manifest(**changes), (opened, continued))
    texts = {
        "brackets": b"[" * 10**5,
        "digits": b'{"a": ' + b"9" * 5000 + b"}",
        "no UTF-8": b"\xff",
        "none": b"",
        "NUL": bytes(9),
    }
    for name, content in texts.items():
        expect("a manifest", name, written("run.json", content), (opened, continued))
    for name, change in special(work, victim).items():
        expect("a link or a pipe", name, change, (opened, continued))
    for name, content in texts.items():
        expect("metrics", name, lambda content=content: appended(work / "metrics.jsonl", content), (continued,))
        expect("metrics", f"{name} alone", written("metrics.jsonl", content), (continued,))
    folder = victim.parent / "conf" / "experiment"
    folder.mkdir(parents=True)
    for name, content in {**HYDRA, "bomb": BOMB, "loop": "a: &a [*a]", "deep": "a: " + "[" * 5000}.items():
        experiment = content.replace("SRC", str(victim)).replace("DST", str(traces[0]))
        (folder / "evil.yaml").write_text(f"# @package _global_\n{experiment}\n")

        def composed() -> str:
            composer = Composer("train", str(folder.parent))
            composer.settle(["experiment=evil"])
            raise UserError(*composer.problems.values()) if composer.problems else AssertionError("composed")

        found = judge(composed, None, traces, victim)
        counts["a folder of configurations", found] += 1
        if found != "refused":
            bad.append(f"a folder of configurations: {name}: {found}")
    for line in bad:
        print("handled badly:", line)
    return counts


def appended(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content + b"\n")


def show(title: str, counts: Counter[tuple[str, str]]) -> int:
    """Print the counts as a table; returns how many were handled badly."""
    columns = ("refused", "same", "said")
    print(f"\n{title}: {counts.total()}\n{'':<28} {'refused':>8} {'same':>6} {'said':>6} {'badly':>6}")
    badly = 0
    for row in dict.fromkeys(name for name, _ in counts):
        well = [counts[row, column] for column in columns]
        bad = {found: number for (name, found), number in counts.items() if name == row and found not in columns}
        badly += sum(bad.values())
        print(f"{row:<28} {well[0]:>8} {well[1]:>6} {well[2]:>6} {sum(bad.values()):>6}  {bad or ''}")
    return badly


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--damaged", type=int, default=1000, help="damaged files to try")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        (top / "outside").mkdir()
        victim, traces = top / "victim", [top / "trace"]
        victim.write_text("precious")
        make(top / "source")
        badly = show("damaged files", count_damaged(top / "source", args.damaged, traces, victim))
        badly += show("hostile inputs", count_malicious(top / "source", traces, victim))
    print(f"\nhandled badly: {badly}")
    return 1 if badly else 0


if __name__ == "__main__":
    sys.exit(main())
