"""MountainCar, Acrobot and Pendulum: step for step against Gymnasium's, and what their tasks ask of a policy."""

import gymnasium
import numpy as np
import pytest
import torch
from conftest import compose_train, load, slow_if

from metarl_cli.config.registry import ConfigError
from metarl_cli.seeding import numpy_rng, torch_rng
from metarl_cli.spaces import Discrete

NUM = 20  # tasks of each family


def family(name, *overrides):
    module, config = load("env", compose_train(f"env={name}", *overrides).env)
    return module.Family(config)


# -- policies that know the task: what solves it with the actuator as it is, and fails with a reversed one


def pump(obs, task):
    """MountainCar: push the way the car moves."""
    return (obs[..., 1] >= 0).long() * 2


def against_the_first_joint(obs, task):
    """Acrobot: turn the second joint against the first one's motion."""
    return (obs[..., 4] < 0).long() * 2


def energy(obs, task):
    """Pendulum: the full torque along the motion until the energy is that of standing upright, then a spring and a brake."""
    cos, sin, omega = obs.unbind(-1)
    lift, power = 1.5 * task["g"] / task["l"], 3 / (task["m"] * task["l"].square())  # [1/s²], [1/(kg m²)]
    limit = 2 * task["gain"].abs()
    missing = 0.5 * omega.square() + lift * (cos - 1)
    swing = torch.where((omega >= 0) == (missing < 0), limit, -limit)
    hold = -((lift + 9) * sin + 6 * omega) / power
    near = (cos > 0.8) & ((missing.abs() < 6) | (hold.abs() < limit))
    return (torch.where(near, hold, swing).clamp(-limit, limit) / task["gain"].abs())[..., None]


# what each family's task parameters are called in Gymnasium's environment, the actuator's name, and a policy
MOUNTAIN_CAR = ("MountainCar-v0", {"force": "force", "gravity": "gravity", "goal_position": "goal_position"}, "force", pump)
LINKS = ("link_length_1", "link_mass_1", "link_mass_2", "link_com_pos_1", "link_com_pos_2", "link_moi")
ACROBOT = ("Acrobot-v1", {name: name.upper() for name in LINKS}, "torque", against_the_first_joint)
PENDULUM = ("Pendulum-v1", {"g": "g", "m": "m", "l": "l"}, "gain", energy)
FAMILIES = {
    "mountain_car_v0": MOUNTAIN_CAR,
    "mountain_car_family": MOUNTAIN_CAR,
    "acrobot_v1": ACROBOT,
    "acrobot_family": ACROBOT,
    "pendulum_v1": PENDULUM,
    "pendulum_family": PENDULUM,
}


def theirs(name, tasks, row):
    """Gymnasium's environment with the physics of one task."""
    key, attributes, _, _ = FAMILIES[name]
    env = gymnasium.make(key)
    for ours, attribute in attributes.items():
        assert hasattr(env.unwrapped, attribute)
        setattr(env.unwrapped, attribute, float(tasks[ours][row]))
    if "torque" in tasks:
        env.unwrapped.AVAIL_TORQUE = [sign * float(tasks["torque"][row]) for sign in (-1, 0, 1)]
    if "gain" in tasks:
        env.unwrapped.max_torque = 2 * abs(float(tasks["gain"][row]))
    return env


def their_action(name, tasks, row, action):
    """Gymnasium's Pendulum has no gain: it is given the torque."""
    return float(tasks["gain"][row]) * action.numpy() if "gain" in tasks else int(action)


def their_obs(name, state):
    """What Gymnasium's environment shows, before it is rounded to float32."""
    if name.startswith("mountain_car"):
        return np.array(state)
    if name.startswith("acrobot"):
        return np.array([np.cos(state[0]), np.sin(state[0]), np.cos(state[1]), np.sin(state[1]), state[2], state[3]])
    return np.array([np.cos(state[0]), np.sin(state[0]), state[1]])


@pytest.mark.parametrize("name", slow_if(FAMILIES, lambda name: not name.endswith("_family")))
def test_equals_gymnasium(name, float64):
    """On random tasks: states, rewards, terminations and the time limit of 1,000 steps.

    Every step starts from the same state, as the motions are chaotic. What is left is rounding: two libraries' sines and
    cosines differ in the last bit; NumPy's power of a scalar is not always the rounded square, which Pendulum's reward
    shows; Acrobot's equations are summed in another order, as what does not depend on the state is computed once. The
    largest differences found are 9e-19 (MountainCar's velocities), 4e-15 (Acrobot, 1 unit in the last place of 16 to 28
    rad/s) and 9e-16 (Pendulum, 1 unit of 4 to 8 rad/s); rewards differ in Pendulum alone, by 2 units. The bounds allow for
    other processors: one rounding of MountainCar's position, 4 units of the others' velocities.
    """
    atol = {"mountain_car": 3e-16, "acrobot": 1.5e-14, "pendulum": 4e-15}[name.rsplit("_", 1)[0]]
    ours = family(name)
    _, _, actuator, policy = FAMILIES[name]
    tasks = ours.sample_tasks(NUM, "train", numpy_rng(0, "tasks"))
    env, others = ours.make(tasks, 1, torch_rng(0, "env")), [theirs(name, tasks, row) for row in range(NUM)]
    rng, begin, largest = np.random.default_rng(0), [True] * NUM, 0.0
    seen = {"terminated": 0, "truncated": 0}
    for _ in range(1000):
        for row, other in enumerate(others):
            if begin[row]:
                other.reset(seed=row)
            other.unwrapped.state = env.state[row, 0].numpy().copy()
        action = policy(env.obs, {k: v[:, None] for k, v in tasks.items()})
        mirrored = (tasks[actuator] < 0) != (torch.arange(NUM) % 2 == 0)  # half are driven to fail
        if isinstance(ours.spec.actions, Discrete):
            action = torch.where(mirrored[:, None], 2 - action, action)
            action = torch.where(torch.as_tensor(rng.random((NUM, 1)) < 0.1), 1, action)
        else:  # beyond the bounds too
            action = torch.where(mirrored[:, None, None], -1.5 * action, action + torch.as_tensor(rng.normal(size=(NUM, 1, 1))))
        step = env.step(action)
        for row, other in enumerate(others):
            obs, reward, terminated, truncated, _ = other.step(their_action(name, tasks, row, action[row, 0]))
            assert float(step.reward[row]) == pytest.approx(reward, rel=5e-16 if "gain" in tasks else 0, abs=0)
            assert (bool(step.terminated[row]), bool(step.truncated[row])) == (terminated, truncated)
            expected = their_obs(name, other.unwrapped.state)
            largest = max(largest, float(np.abs(step.next_obs[row, 0].numpy() - expected).max()))
            np.testing.assert_array_equal(expected.astype(np.float32), obs)
            begin[row] = terminated or truncated
            seen["terminated"] += terminated
            seen["truncated"] += truncated
    print(f"{name}: the largest difference is {largest:.2g}; {seen}")
    assert largest <= atol
    assert seen["truncated"] > 0
    assert seen["terminated"] > 0 or name.startswith("pendulum"), "both ways to end were compared; Pendulum has one"


ACTUATORS = [("mountain_car_family", "force"), ("acrobot_family", "torque"), ("pendulum_family", "gain")]


@pytest.mark.parametrize(("name", "actuator"), ACTUATORS)
def test_a_reversed_actuator_swaps_the_actions(name, actuator, float64):
    """An action on one is the opposite action on the other, to the last bit; the same action is not."""
    ours = family(name)
    task = {k: v.repeat(2) for k, v in ours.named_task({}).items()}
    task[actuator] = task[actuator] * torch.tensor([1.0, -1.0])
    env = ours.make(task, 500, torch_rng(0, "env"))
    rng = torch_rng(0, "act")
    task = {k: v[:, None] for k, v in task.items()}
    if isinstance(ours.spec.actions, Discrete):
        action = torch.randint(3, (1, 500), generator=rng)
        opposite, idle = 2 - action, action == 1
    else:
        action = 4 * torch.rand(1, 500, 1, generator=rng) - 2
        opposite, idle = -action, action[..., 0] == 0
    state, both = env.state[:1].expand(2, -1, -1), torch.cat([action, opposite])
    task = ours.constants(task)
    forward, backward = ours.dynamics(state, both, task, rng)[0]
    assert torch.equal(forward, backward)
    forward, backward = ours.dynamics(state, action.expand_as(both), task, rng)[0]
    assert torch.equal((forward == backward).all(-1), idle[0])


@pytest.mark.parametrize(("name", "actuator"), ACTUATORS)
def test_reversible_tasks_come_in_both_signs(name, actuator):
    ours = family(name)
    value = ours.sample_tasks(2000, "train", numpy_rng(0, "tasks"))[actuator]
    low, high = ours.distributions[actuator].extremes
    assert ours.distributions[actuator].signed
    assert 0.45 < float((value < 0).float().mean()) < 0.55
    assert low <= float(value.abs().min()) < low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) < float(value.abs().max()) <= high


def returns(ours, tasks, policy):
    """The return of the first episode, [M, N]."""
    env = ours.make(tasks, 4, torch_rng(0, "env"))
    total, alive = torch.zeros_like(env.obs[..., 0]), torch.ones(env.obs.shape[:2], dtype=torch.bool)
    for _ in range(ours.spec.horizon):
        step = env.step(policy(env.obs))
        total = total + step.reward * alive
        alive = alive & ~step.ended
    return total


@pytest.mark.parametrize("split", ["train", "ood"])
@pytest.mark.parametrize(
    ("name", "actuator", "good", "bad"),
    [
        ("mountain_car_family", "force", -190, -200),
        ("acrobot_family", "torque", -300, -490),
        ("pendulum_family", "gain", -800, -1500),
    ],
)
def test_tasks_can_be_solved_by_who_knows_the_actuator_alone(name, actuator, good, bad, split):
    """The policy that knows its sign does well on nearly every task; told the other sign, it does badly on all."""
    ours, policy = family(name), FAMILIES[name][3]
    tasks = ours.sample_tasks(200, split, numpy_rng(0, "tasks"))
    sign = torch.sign(tasks[actuator])[:, None]
    told = {k: v[:, None] for k, v in tasks.items()}

    def act(obs, sign):
        action = policy(obs, told)
        return 1 + (action - 1) * sign.long() if isinstance(ours.spec.actions, Discrete) else action * sign[..., None]

    right = returns(ours, tasks, lambda obs: act(obs, sign)).mean(1)
    wrong = returns(ours, tasks, lambda obs: act(obs, -sign)).mean(1)
    assert float((right > good).float().mean()) > (0.97 if split == "train" else 0.8)
    assert float((wrong <= bad).float().mean()) > 0.97


def test_the_goal_ends_the_drive():
    """Each task's episode ends at its own goal, which nothing observed tells."""
    ours = family("mountain_car_family")
    near, far = ours.named_task({"goal_position": 0.2}), ours.named_task({"goal_position": 0.5})
    env = ours.make({k: torch.cat([near[k], far[k]]) for k in near}, 1, torch_rng(0, "env"))
    env.state = torch.tensor([0.15, 0.06]).expand(2, 1, 2)
    step = env.step(torch.full((2, 1), 2))
    assert step.terminated.tolist() == [[True], [False]]
    assert torch.equal(step.next_obs[0], step.next_obs[1])


def test_the_wall_stops_the_car(float64):
    ours = family("mountain_car_v0")
    env = ours.make(ours.named_task({}), 1, torch_rng(0, "env"))
    env.state = torch.tensor([[[-1.18, -0.06]]])
    step = env.step(torch.zeros(1, 1, dtype=torch.long))
    assert step.next_obs.tolist() == [[[-1.2, 0.0]]]


def test_goals_beyond_the_track_are_refused():
    with pytest.raises(ConfigError, match="goal_position must not be beyond the end of the track"):
        family("mountain_car_family", "env.ood_ranges.goal_position=[0.0,0.7]")
    with pytest.raises(ValueError, match=r"goal_position must not be beyond the end of the track, 0\.6, got 0\.7"):
        family("mountain_car_family").named_task({"goal_position": 0.7})
