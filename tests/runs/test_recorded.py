"""Demonstrations of one's own: files of episodes, and datasets of Minari, which are a stranger's."""

import json

import numpy as np
import pytest
import torch
from conftest import compose_train, load

from metarl_cli.errors import UserError
from metarl_cli.experience.demonstrations import demonstrate
from metarl_cli.experience.recorded import Recorded, demonstrations
from metarl_cli.runs.demonstrations import read_demonstrations, write_demonstrations
from metarl_cli.seeding import torch_rng
from metarl_cli.spaces import Continuous, Discrete, Spec

ROWS = {"observations": [[0, 0], [0.1, 0]], "actions": [[0.1, 0]]}


def family(env="navigation_2d_continuous"):
    module, config = load("env", compose_train(f"env={env}").env)
    return module.Family(config)


def read(name, ours, **parameters):
    return read_demonstrations(name, ours, parameters, lambda values: ours.named_task(dict(values)))


def test_a_file_of_observations_is_read_as_it_was_written(tmp_path):
    ours = family()
    task = ours.named_task({"goal_x": 0.3})
    given = demonstrate(ours, task, 4, torch_rng(0, "demonstrations")).experience
    write_demonstrations(tmp_path / "own.json", ours, demonstrate(ours, task, 4, torch_rng(0, "demonstrations")))
    found = read(tmp_path / "own.json", ours)
    assert float(found.task["goal_x"]) == pytest.approx(0.3)
    longest, live = found.experience.reward.shape[1], found.experience.weight > 0
    assert not given.weight[:, longest:].any()
    for name in ("obs", "action", "next_obs", "terminated", "ended", "weight"):
        mine, theirs = getattr(found.experience, name), getattr(given, name)[:, :longest]
        assert torch.equal(mine[live], theirs[live]), name
    assert not found.experience.reward.any()


WRONG = [
    ({"episodes": [{**ROWS, "observations": [[0, 0]]}]}, "1 observations and 1 actions: it needs 1 to 100 actions"),
    ({"episodes": [{**ROWS, "actions": [[0.1]]}]}, r"actions \[1\], and those of this family are \[2\]"),
    ({"episodes": [{**ROWS, "observations": [[0], [1]]}]}, r"observations \[1\], and those of this family are \[2\]"),
    ({"episodes": [{**ROWS, "observations": [[0, 0], [1]]}]}, "not equally long"),
    ({"episodes": [{**ROWS, "observations": [[0, 0], [float("inf"), 0]]}]}, "not finite|Infinity"),
    ({"episodes": [{**ROWS, "observations": [[0, 0], [1e300, 0]]}]}, "not finite, or larger than 1e"),
    ({"episodes": [{**ROWS, "actions": [[1e300, 0]]}]}, "not finite, or larger than 1e"),
    ({"episodes": [{"states": [0], "actions": [0]}]}, "states are of families with few"),
    ({"episodes": [{**ROWS, "states": [0]}]}, "give states, of a family with few, or observations"),
]


@pytest.mark.parametrize(("content", "said"), WRONG)
def test_episodes_of_another_family_are_one_line(content, said, tmp_path):
    (mine := tmp_path / "mine.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        read(mine, family())


def test_actions_too_large_for_the_machine_are_one_line(tmp_path):
    spec = Spec((1,), Discrete(3), 5)
    with pytest.raises(ValueError, match="not finite, or larger than 1e"):
        demonstrations(spec, {"task": torch.zeros(1)}, [Recorded(np.zeros((2, 1)), np.array([10**30]), False)])
    (mine := tmp_path / "mine.json").write_text(
        json.dumps({"episodes": [{"observations": [[0] * 4] * 2, "actions": [10**400]}]})
    )
    with pytest.raises(UserError, match="too large"):
        read(mine, family("cartpole_family"))


def test_episodes_of_different_lengths_are_padded():
    spec = Spec((1,), Discrete(3), 5)
    two = [Recorded(np.arange(3.0)[:, None], np.array([0, 2]), True), Recorded(np.arange(2.0)[:, None], np.array([1]), False)]
    seen = demonstrations(spec, {"task": torch.zeros(1)}, two).experience
    assert seen.weight[0].T.tolist() == [[1, 1], [1, 0]]
    assert seen.terminated[0].T.tolist() == [[False, True], [False, False]]
    assert seen.ended[0].T.tolist() == [[False, True], [True, False]]
    assert seen.obs[0, :, 0, 0].tolist() == [0, 1]
    assert seen.next_obs[0, :, 0, 0].tolist() == [1, 2]
    with pytest.raises(ValueError, match="action 3 is none of 0 to 2"):
        demonstrations(spec, {"task": torch.zeros(1)}, [two[1]._replace(actions=np.array([3]))])
    assert isinstance(spec._replace(actions=Continuous((0.0,), (1.0,))), Spec)


@pytest.mark.parametrize(("kind", "dtype"), [(np.uint8, torch.uint8), (np.int64, torch.uint8), (bool, torch.bool)])
def test_images_stay_bytes_or_booleans(kind, dtype):
    """A network divides bytes by 255, so that an image of a file must not become one of large numbers."""
    spec = Spec((1, 2, 2), Discrete(3), 5, pixels=True)
    images = np.array([0, 1, 0, 1] * 2, kind).reshape(2, 1, 2, 2)
    seen = demonstrations(spec, {"task": torch.zeros(1)}, [Recorded(images, np.array([1]), False)]).experience
    assert seen.obs.dtype == seen.next_obs.dtype == dtype
    assert torch.equal(seen.obs[0, 0, 0], torch.as_tensor(images[0]).to(dtype))


@pytest.mark.parametrize("wrong", [-1.0, 256.0, 0.5])
def test_an_image_of_other_numbers_is_one_line(wrong):
    spec = Spec((1, 1, 1), Discrete(3), 5, pixels=True)
    images = np.full((2, 1, 1, 1), wrong)
    with pytest.raises(ValueError, match=f"episode 1 has {wrong} in an image, whose entries are bytes, 0 to 255"):
        demonstrations(spec, {"task": torch.zeros(1)}, [Recorded(images, np.array([1]), False)])


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A dataset in the layout of Minari 0.5, under its name, and the module that opens it."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "robot" / "walks-v0" / "data" / "main_data.hdf5"
    path.parent.mkdir(parents=True)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    with h5py.File(path, "w") as file:
        for i in range(11):  # episode_10 comes after episode_9, not after episode_1
            group = file.create_group(f"episode_{i}")
            group["observations"] = np.full((3, 2), i / 100, np.float32)
            group.create_dataset("actions", data=np.full((2, 2), 0.1), compression="gzip")
            group["rewards"], group["terminations"], group["truncations"] = (
                np.ones(2),
                np.array([False, True]),
                np.zeros(2, bool),
            )
            group.create_group("infos")
    return h5py, path


@pytest.mark.parametrize("name", ["minari:robot/walks-v0", "folder", "file"])
def test_a_dataset_of_minari_is_read(dataset, name):
    _, path = dataset
    place = {"folder": path.parent.parent, "file": path}.get(name, name)
    found = read(place, family(), goal_y=-0.2).experience
    assert found.obs[0, :, :, 0].tolist()[1] == pytest.approx([i / 100 for i in range(11)])
    assert found.terminated[0, :, 0].tolist() == [False, True]
    assert not found.reward.any()


def test_a_dataset_of_states_is_read_by_a_table(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "grid.hdf5", "w") as file:
        group = file.create_group("episode_0")
        group["observations"], group["actions"], group["terminations"] = [0, 1, 2], [2, 2], [False, False]
    ours = family("gridworld")
    with pytest.raises(UserError, match="and those of this family are"):
        read(tmp_path / "grid.hdf5", family())
    right = next(a for a in range(5) if int(ours.neighbour[0, a]) == 1)
    with h5py.File(tmp_path / "grid.hdf5", "a") as file:
        file["episode_0/actions"][:] = right
    found = read(tmp_path / "grid.hdf5", ours)
    assert ours.states(found.experience.obs)[0, :, 0].tolist() == [0, 1]


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float16, ">f8", ">i4"])
def test_numbers_of_any_type_are_those_of_the_family(dataset, kind):
    h5py, path = dataset
    with h5py.File(path, "w") as file:
        group = file.create_group("episode_0")
        group["observations"], group["actions"], group["terminations"] = (
            np.array([[0, 1], [1, 0], [1, 1]], kind),
            np.zeros((2, 2), kind),
            np.array([0, 1], kind),
        )
    seen = read(path, family()).experience
    assert (seen.obs.dtype, seen.next_obs.dtype, seen.action.dtype) == (torch.float32,) * 3
    assert seen.obs[0, :, 0].tolist() == [[0, 1], [1, 0]]
    assert seen.terminated[0, :, 0].tolist() == [False, True]
    grid = family("gridworld")
    stay = next(a for a in (0, 1) if int(grid.neighbour[0, a]) == 0)
    with h5py.File(path, "a") as file:
        for name, values in {"observations": [0, 0, 0], "actions": [stay] * 2, "terminations": [0, 0]}.items():
            del file["episode_0"][name]
            file["episode_0"][name] = np.array(values, kind)
    assert grid.states(read(path, grid).experience.obs).flatten().tolist() == [0, 0]


def hostile(h5py, path, what):
    with h5py.File(path, "a") as file:
        group = file["episode_3"]
        if what == "link":
            del group["observations"]
            group["observations"] = h5py.ExternalLink("/etc/passwd", "/x")
        elif what == "soft":
            del group["actions"]
            group["actions"] = h5py.SoftLink("/episode_0/actions")
        elif what == "texts":
            del group["actions"]
            group["actions"] = [b"__import__('os')"] * 2
        elif what == "external":
            del group["actions"]
            group.create_dataset("actions", (2, 2), "f8", external=[("/etc/passwd", 0, 32)])
        elif what == "virtual":
            layout = h5py.VirtualLayout((2, 2), "f8")
            layout[:] = h5py.VirtualSource("/etc/passwd", "x", (2, 2))
            del group["actions"]
            group.create_virtual_dataset("actions", layout)
        elif what == "large":
            del group["actions"]
            group.create_dataset("actions", (2**40, 2), "f8", chunks=(2**10, 2), compression="gzip")
        elif what == "large chunk":
            del group["actions"]
            group.create_dataset("actions", (2, 2), "f8", maxshape=(None, 2), chunks=(2**27, 2), compression="gzip")
        elif what == "inflated":  # a chunk of 32 bytes, which HDF5 would inflate to whatever is stored of it
            del group["actions"]
            found = group.create_dataset("actions", (2, 2), "f8", chunks=(2, 2), compression="gzip")
            found.id.write_direct_chunk((0, 0), bytes(2**21))
        elif what == "twice":
            del group["actions"]
            stored = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            stored.set_chunk((2, 2))
            stored.set_deflate(9)
            stored.set_deflate(9)
            h5py.h5d.create(group.id, b"actions", h5py.h5t.IEEE_F64LE, h5py.h5s.create_simple((2, 2)), stored)
        elif what == "long":
            del group["actions"]
            group["actions"] = np.zeros((2, 2), np.longdouble)
        elif what == "other length":
            del group["terminations"]
            group["terminations"] = np.zeros(3, bool)
        elif what == "number":
            del group["actions"]
            group["actions"] = 1.0
        else:
            del file["episode_3"]["terminations"]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("link", "observations is missing or no part of the file"),
        ("soft", "actions is missing or no part of the file"),
        ("texts", "no plain table of numbers"),
        ("external", "no plain table of numbers"),
        ("virtual", "no plain table of numbers"),
        ("large", "more than 1 GB"),
        ("large chunk", "more than 1 GB"),
        ("inflated", "more than 1 GB"),
        ("twice", "no plain table of numbers"),
        ("long", "no plain table of numbers"),
        ("other length", r"actions \[2, 2\] and terminations \[3\]"),
        ("number", "no plain table of numbers"),
        ("missing", "terminations is missing"),
    ],
)
def test_a_hostile_dataset_is_one_line(dataset, what, said):
    h5py, path = dataset
    hostile(h5py, path, what)
    with pytest.raises(UserError, match=said):
        read(path, family())


def test_what_is_no_dataset_is_one_line(dataset, tmp_path):
    (tmp_path / "text.hdf5").write_text("nothing")
    (tmp_path / "link.hdf5").symlink_to(dataset[1])
    for name, said in {"text.hdf5": "cannot read", "link.hdf5": "it is a link", "none.hdf5": "cannot read"}.items():
        with pytest.raises(UserError, match=said):
            read(tmp_path / name, family())
