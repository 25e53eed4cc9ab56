"""Environments of any kind as families: where parameters go, which spaces become numbers, which packages are imported."""

import sys

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from conftest import compose_values
from gymnasium import spaces
from test_gymnasium import config, inner, play, start

from metarl_cli.cli import main as cli
from metarl_cli.cli.compose import compose_train as real_compose
from metarl_cli.config.models import TrainConfig
from metarl_cli.config.registry import validate
from metarl_cli.envs import gymnasium as simulated
from metarl_cli.envs import packages
from metarl_cli.envs.gymnasium.addresses import place
from metarl_cli.envs.live import LiveFamily
from metarl_cli.errors import UserError
from metarl_cli.runs.folder import read_config
from metarl_cli.seeding import numpy_rng, torch_rng
from metarl_cli.spaces import Discrete


class Room(gymnasium.Env):
    """An environment as other packages write them: a dict of settings, a goal of each episode, options, several choices."""

    observation_space = spaces.Dict(
        {
            "place": spaces.Box(-9, 9, (2,), np.float32),
            "image": spaces.Box(0, 255, (3, 8, 8), np.uint8),
            "room": spaces.Discrete(3),
            "doors": spaces.MultiBinary(2),
        }
    )
    action_space = spaces.MultiDiscrete([3, 2])
    changed = False

    def __init__(self, settings=None, layout=None, name="plain", rooms=3):
        self.observation_space = spaces.Dict({**self.observation_space.spaces, "room": spaces.Discrete(rooms)})
        self.config = {"wind": 0.0, "names": ["a", "b"], "deep": {"light": 1.0}, "closed": False, **(settings or {})}
        self.locked = np.zeros(2, bool)
        self.layout, self.name = layout or [[0, 1], [2, 3]], name
        self.goal, self.done = np.zeros(2), []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.goal = self.np_random.uniform(-1, 1, 2)
        self.given = options or {}
        return self._obs(), {}

    def step(self, action):
        self.done.append(action)
        return self._obs(), float(self.goal[0]), False, False, {}

    def _obs(self):
        place = self.goal.astype(np.float32) + np.float32(self.config["wind"])
        return {"place": place, "image": np.full((3, 8, 8), 7, np.uint8), "room": 2, "doors": np.array([0, 1], np.int8)}


@pytest.fixture(autouse=True)
def registered():
    gymnasium.register("Room-v0", Room)
    yield
    gymnasium.registry.pop("Room-v0")


def room(values=None, **more):
    return start({"id": "Room-v0", "horizon": 6, **(values or {})}, **more)


def parameter(*addresses, nominal=1.0, **more):
    return {"parameters": {"p": {"nominal": nominal, "set": list(addresses)}}, **more}


@pytest.mark.parametrize(
    ("address", "read"),
    [
        ("constructor.settings.wind", lambda env: env.config["wind"]),
        ("constructor.settings.far.away", lambda env: env.config["far"]["away"]),
        ("constructor.layout.1.0", lambda env: env.layout[1][0]),
        ("attribute.config.wind", lambda env: env.config["wind"]),
        ("attribute.config.deep.light", lambda env: env.config["deep"]["light"]),
        ("scale.config.deep.light", lambda env: env.config["deep"]["light"]),
        ("reset.goal.1", lambda env: env.goal[1]),
        ("options.start", lambda env: env.given["start"]),
        ("options.start.0x", lambda env: env.given["start"]["0x"]),
    ],
)
def test_a_parameter_reaches_its_place(address, read):
    """After a reset, in each task its own."""
    values = parameter(address, ranges={"p": [0.5, 4.0]}, constructor={"layout": [[0, 1], [2, 3]]})
    family, env = room(values, envs=1)
    task = family.sample_tasks(3, "train", numpy_rng(0, "tasks"))
    play(family, env, 8)  # beyond the end of an episode
    assert [read(each) for each in inner(env)] == pytest.approx(task["p"].tolist())


@pytest.mark.parametrize("address", ["attribute.config.closed", "attribute.locked.1"])
def test_an_attribute_may_be_true_or_false(address):
    family, env = room(parameter(address, nominal=False, choices={"p": [False, True]}), envs=1)
    task = family.sample_tasks(3, "train", numpy_rng(0, "tasks"))
    play(family, env, 8)
    places = [each.config["closed"] if "closed" in address else each.locked[1] for each in inner(env)]
    assert [bool(place) for place in places] == [bool(value) for value in task["p"]]
    assert all(isinstance(place, bool | np.bool_) for place in places)
    assert sorted(set(task["p"].tolist())) == [0, 1]


@pytest.mark.parametrize(("nominal", "fits"), [(False, True), (1.0, False)])
def test_true_is_a_value_of_a_truth_alone(nominal, fits):
    family, _ = room(parameter("constructor.settings.wind", nominal=nominal), envs=1)
    if fits:
        assert family.number("p", True) == 1
    else:
        with pytest.raises(ValueError, match="p must be a number, got True"):
            family.number("p", True)


def test_one_parameter_can_have_several_places():
    _, env = room(parameter("reset.goal.0", "attribute.config.wind", ranges={"p": [1.0, 2.0]}), envs=1)
    for each in inner(env):
        assert 1 <= each.goal[0] == each.config["wind"]


def test_what_an_episode_begins_with_goes_on_with_the_same_bits():
    values = parameter("reset.goal.0", ranges={"p": [1.0, 2.0]})
    family, env = room(values, envs=1)
    play(family, env, 4)
    state = env.state_dict()
    other = family.make(family.sample_tasks(3, "train", numpy_rng(0, "tasks")), 1, torch_rng(1, "env"))
    other.load_state_dict(state)
    for one, two in zip(play(family, env, 9, 1), play(family, other, 9, 1), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_task_can_be_a_seed():
    """Every episode of it begins alike, and those of other tasks differ."""
    family, env = room(parameter("seed", nominal=0, choices={"p": [0, 1, 2]}), envs=2)
    first = env.obs.clone()
    for step in play(family, env, 12):
        assert torch.equal(step.obs, first)
    assert torch.equal(first[:, 0], first[:, 1])
    assert len({tuple(row) for row in first[:, 0].tolist()}) == 3


def test_choices_can_be_texts():
    values = parameter("constructor.name", nominal="plain", choices={"p": ["plain", "odd"]}, ood_choices={"p": ["new"]})
    family, env = room(values, tasks=2, envs=1)
    assert sorted(each.name for each in inner(env)) == ["odd", "plain"]
    assert {row["p"] for row in family.rows(family.sample_tasks(9, "ood", numpy_rng(0, "tasks")))} == {"new"}
    assert family.rows(family.named_task({"p": family.number("p", "new")})) == [{"p": "new"}]
    with pytest.raises(ValueError, match="p must be one of plain, odd, new, got ood"):
        family.number("p", "ood")
    with pytest.raises(ValueError, match="gravity must be a number, got low"):
        family.number("gravity", "low")


def test_texts_are_listed_as_they_are(tmp_path, capsys):
    folder = tmp_path / "env"
    folder.mkdir()
    head = "# A room.\ndefaults: [base/gymnasium@_here_]\nid: Room-v0\nhorizon: 5\n"
    (folder / "mine.yaml").write_text(
        head + "parameters: {kind: {nominal: plain, set: constructor.name}}\nchoices: {kind: [plain, odd]}\n"
    )
    assert cli.main(["envs", "mine", "--config-dir", str(tmp_path)]) == 0
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("kind ")]
    assert row == ["kind", "plain", "{plain,", "odd}"]


def test_without_parameters_it_is_a_family_of_one_task():
    family, env = room(tasks=2)
    assert family.finite
    assert family.rows(family.named_task({})) == [{}]
    assert env.obs.shape[:2] == (2, 2)


def test_spaces_become_numbers():
    family, env = room(tasks=1, envs=1)
    assert family.spec.obs_shape == (2 + 3 * 8 * 8 + 3 + 2,)
    assert family.spec.actions == Discrete(6)
    for number in range(6):
        env.step(torch.tensor([[number]]))
    (each,) = inner(env)
    assert [tuple(action) for action in each.done[-6:]] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    one = simulated.Family(
        config({"id": "Room-v0", "horizon": 6, "wrappers": [{"name": "Entry", "arguments": {"key": "image"}}]})
    )
    assert one.spec.obs_shape == (3, 8, 8)
    assert one.spec.pixels


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (parameter("constructor.layout.7.0", constructor={"layout": [[1]]}), "layout.7.0: 7 is no entry of a list of 1"),
        (
            parameter("constructor.name.x", constructor={"name": "plain"}),
            "constructor.name.x: name is plain, in which there is",
        ),
        (parameter("attribute.config.wnd"), "the environment has no attribute config.wnd; did you mean wind"),
        (parameter("attribute.name"), "attribute name is 'plain', which 1.0 cannot replace"),
        (parameter("attribute.config.closed"), "attribute config.closed is False, which 1.0 cannot replace"),
        (parameter("reset.gaol.0"), "no attribute gaol.0; did you mean goal"),
        (parameter("constructor.render_mode.x"), "constructor.render_mode cannot be set by a configuration"),
        (parameter("constructor.name", nominal="c", choices={"p": ["a", "b"]}), "its nominal value is one of them"),
        (parameter("constructor.name", nominal=1.0, choices={"p": ["a", "b"]}), "must be a number, or one of choices that are"),
        (parameter("constructor.rooms", nominal=3, choices={"p": [3, 4]}), r"size \[199\], and of the size \[200\] .task p=4"),
        ({"wrappers": [{"name": "Entry", "arguments": {"key": "images"}}]}, "there is no entry images in Dict"),
    ],
)
def test_what_is_wrong_is_one_line(values, message):
    with pytest.raises((ValueError, UserError), match=message):
        room(values)


def test_arguments_are_placed_within_dicts_and_lists():
    arguments = {"a": {"b": 1}, "c": [{"d": 2}]}
    for path in ("a.e.f", "c.0.d", "g"):
        place(arguments, path, 5)
    assert arguments == {"a": {"b": 1, "e": {"f": 5}}, "c": [{"d": 5}], "g": 5}


def test_what_cannot_be_drawn_is_one_line():
    family, _ = room(tasks=1, envs=1)
    with pytest.raises(UserError, match=r"Room-v0 cannot be drawn: .*render_mode"):
        family.make(family.named_task({}), 1, torch_rng(0, "film"), render=True)


# -- packages


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that registers an environment, and leaves a trace when it is imported."""
    (tmp_path / "my_rooms.py").write_text(
        "import gymnasium\nfrom test_addresses import Room\ngymnasium.register('MyRoom-v0', Room)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(packages, "_named", set())
    yield "my_rooms"
    sys.modules.pop("my_rooms", None)
    gymnasium.registry.pop("MyRoom-v0", None)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A package with two files in a folder."""
    folder = tmp_path / "my_jobs" / "in" / "days"
    folder.mkdir(parents=True)
    (tmp_path / "my_jobs" / "__init__.py").write_text(
        "import gymnasium\nfrom test_addresses import Room\ngymnasium.register('MyJobs-v0', Room)\n"
    )
    for name in ("monday", "friday.txt"):
        (folder / name).write_text("1")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(packages, "_named", {"my_jobs"})
    yield folder
    sys.modules.pop("my_jobs", None)
    gymnasium.registry.pop("MyJobs-v0", None)


def jobs(choices, nominal="monday", **more):
    day = {"nominal": nominal, "set": "constructor.name", "folder": "in/days"}
    values = {"id": "MyJobs-v0", "package": "my_jobs", "horizon": 4}
    return {**values, "parameters": {"day": day}, "choices": {"day": choices}, **more}


def test_a_text_can_name_a_file_of_the_package(files):
    """Tasks have its name alone, so that no folder of this machine is in what a run writes."""
    family, env = start(jobs(["monday", "friday.txt"]), tasks=2, envs=1)
    assert {each.name for each in inner(env)} == {str(files / name) for name in ("monday", "friday.txt")}
    assert {row["day"] for row in env.rows} == {"monday", "friday.txt"}
    assert str(files) not in str(family.config.model_dump())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (jobs(["monday", "sunday"]), "the package my_jobs has no file in/days/sunday"),
        (jobs(["monday", "../secret"]), "day has a folder: its values must be names of files there"),
        (jobs(["monday", ".."]), "day has a folder: its values must be names of files there"),
        (jobs([1, 2], nominal=1), "day has a folder: its values must be names of files there"),
        (jobs(["monday", "friday.txt"], package=None), "day has a folder: .* package says whose it is"),
    ],
)
def test_a_file_that_the_package_has_not_is_refused(files, values, message):
    with pytest.raises(ValueError, match=message):
        start(values)


def family_values(name="my_rooms"):
    values = compose_values("train", ["env=lunar_lander_family", "algo=maml_dqn"])
    mine = {"id": "MyRoom-v0", "package": name, "parameters": {}, "ranges": {}, "ood_ranges": {}, "constructor": {}}
    return {**values, "env": {**values["env"], **mine}}


def test_a_configuration_alone_imports_nothing(package, tmp_path):
    with pytest.raises(UserError, match=r"my_rooms is not imported .* METARL_PACKAGES=my_rooms, or packages=\[my_rooms\]"):
        validate(TrainConfig, family_values())
    with pytest.raises(UserError, match="my_rooms is not imported"):
        read_config({**family_values(), "packages": [package]}, tmp_path, "config.yaml")
    assert package not in sys.modules


@pytest.mark.parametrize("how", ["command line", "variable"])
def test_what_the_user_names_is_imported(package, how, monkeypatch):
    if how == "variable":
        monkeypatch.setenv("METARL_PACKAGES", f"other, {package}")
    else:
        packages.allow({"packages": [package]})
    assert validate(TrainConfig, family_values()).env.config.package == package
    assert package in sys.modules


def test_the_page_of_a_family_takes_packages_too(package, tmp_path, capsys):
    (tmp_path / "env").mkdir()
    text = f"# My rooms\ndefaults: [base/gymnasium@_here_]\nid: MyRoom-v0\npackage: {package}\nhorizon: 5\n"
    (tmp_path / "env" / "mine.yaml").write_text(text)
    words = ["envs", "mine", "--config-dir", str(tmp_path)]
    assert cli.main(words) == 0
    assert "my_rooms is not imported" in capsys.readouterr().out
    assert cli.main([*words, f"packages=[{package}]"]) == 0
    assert "5 steps" in capsys.readouterr().out


def test_gymnasiums_own_way_to_name_a_package(package):
    packages.allow({"packages": [package]})
    assert start({"id": f"{package}:MyRoom-v0", "horizon": 4})[1].obs.shape[:2] == (3, 2)


@pytest.mark.parametrize(
    ("name", "allowed", "message"),
    [
        ("highway_env", False, "it needs the package highway_env: pip install 'highway-env'"),
        ("nowhere_at_all", True, "it needs the package nowhere_at_all: pip install 'nowhere_at_all'"),
        ("nowhere_at_all", False, "nowhere_at_all is not imported"),
    ],
)
def test_a_package_that_is_not_there_is_named(name, allowed, message, monkeypatch):
    monkeypatch.setattr(packages, "_named", {name} if allowed else set())
    monkeypatch.setattr(packages, "find_spec", lambda module: None)
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ValueError, match=message):
        packages.load(name)


def test_a_package_that_ends_the_program_at_its_import_is_one_line(package, tmp_path):
    (tmp_path / "my_rooms.py").write_text("import sys\nsys.exit('bye')\n")
    packages.allow({"packages": [package]})
    with pytest.raises(ValueError, match="the package my_rooms cannot be imported: SystemExit: bye"):
        packages.load(package)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("name", ["antigravity.Vehicle", "evil-mod.Vehicle"])
@pytest.mark.parametrize("home", list(packages.IMPORTING))
def test_a_class_that_an_argument_names_must_be_the_packages_own(home, known, name, monkeypatch):
    """Whether the environment is registered already or not: another family may have done that."""
    monkeypatch.setitem(sys.modules, "highway_env", sys)
    monkeypatch.setattr(packages, "not_installed", lambda module: None)
    gymnasium.register("Road-v0", "highway_env.roads:Road")
    try:
        for values in (
            {"constructor": {"config": {"kinds": ["highway_env.Own", name]}}},
            parameter("attribute.config.kind", nominal="a", choices={"p": ["a", name]}),
        ):
            package = {} if known else {"package": "highway_env"}
            with pytest.raises(ValueError, match=f"highway_env would import {name}, which is not of highway_env"):
                start({"id": "Road-v0", "horizon": 5, **package, **values})
    finally:
        gymnasium.registry.pop("Road-v0")


@pytest.mark.parametrize("words", [["experiment=nice"], ["-m", "experiment=swept"]])
def test_a_folder_of_configurations_names_no_package(package, words, tmp_path, capsys):
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "nice.yaml").write_text(f"# @package _global_\npackages: [{package}]\n")
    (folder / "swept.yaml").write_text(f"# @package _global_\nhydra: {{sweeper: {{params: {{packages: '[{package}]'}}}}}}\n")
    assert cli.main(["train", "--config-dir", str(tmp_path / "conf"), "train.iterations=0", *words]) == 2
    assert "packages: refused; name them on the command line" in capsys.readouterr().err
    assert package not in sys.modules


def test_the_command_line_names_packages(package, tmp_path, capsys):
    folder = tmp_path / "conf" / "env"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(
        f"# Mine.\ndefaults: [base/gymnasium@_here_]\nid: MyRoom-v0\npackage: {package}\nhorizon: 5\n"
    )
    words = ["env=mine", "--config-dir", str(tmp_path / "conf")]
    assert cli.main(["train", *words, "train.iterations=0"]) == 2
    assert "my_rooms is not imported" in capsys.readouterr().err
    assert cli.main(["train", *words, "train.iterations=0", f"packages=[{package}]"]) == 2
    assert "my_rooms" not in capsys.readouterr().err
    assert package in sys.modules


def test_packages_can_be_named_from_python(package, tmp_path):
    folder = tmp_path / "conf" / "env"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(
        f"# Mine.\ndefaults: [base/gymnasium@_here_]\nid: MyRoom-v0\npackage: {package}\nhorizon: 5\n"
    )
    config, _ = real_compose(["env=mine", "--config-dir", str(tmp_path / "conf"), f"packages=[{package}]"])
    assert config.packages == [package]
    assert package in sys.modules


@pytest.mark.parametrize(
    ("choices", "message"),
    [([20240001], "no larger whole number"), ([200000, 200001], "must differ more than 200000 and 200001")],
)
def test_choices_that_a_task_cannot_hold_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        room(parameter("seed", nominal=0, choices={"p": choices}))


def test_options_are_the_same_in_every_episode():
    class Popping(Room):
        def reset(self, *, seed=None, options=None):
            self.began = options.pop("start")
            return super().reset(seed=seed)

    gymnasium.register("Popping-v0", Popping)
    family, env = start({"id": "Popping-v0", "horizon": 3, **parameter("options.start", ranges={"p": [1.0, 2.0]})}, envs=1)
    first = [each.began for each in inner(env)]
    play(family, env, 7)
    assert [each.began for each in inner(env)] == first
    gymnasium.registry.pop("Popping-v0")


def test_a_run_adapts_on_what_its_family_flattens():
    family, _ = room(tasks=1, envs=1)
    live = LiveFamily(Room(), family.spec, torch.device("cpu"))
    assert live.make(live.task, 1, torch_rng(0, "env")).obs.shape == (1, 1, *family.spec.obs_shape)


def test_the_yaml_of_the_base_has_every_key():
    with open("conf/env/base/gymnasium.yaml") as file:
        base = yaml.safe_load(file)
    assert set(base) - {"module"} == set(simulated.Config.model_fields) - {"id", "horizon"}
