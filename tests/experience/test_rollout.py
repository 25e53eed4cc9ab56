"""Policies in environments: what a rollout hands on, what is played, and what an algorithm saves."""

import copy

import pytest
import torch
from conftest import compose_train
from probes import Buttons, Corridor

from metarl_cli.experience.rollout import RandomPolicy, collect, play, rollout
from metarl_cli.interfaces import Algorithm, Policy
from metarl_cli.seeding import Streams, torch_rng


class Rightwards(Policy):
    """Action 1 whatever it sees; its state counts how often it acted, and which rewards it saw."""

    def start(self, num_envs, rng, greedy=True):
        return {"acted": 0, "seen": []}

    def act(self, state, obs):
        return torch.ones(obs.shape[:2], dtype=torch.long), {**state, "acted": state["acted"] + 1}

    def observe(self, state, obs, action, step):
        return {**state, "seen": [*state["seen"], float(step.reward)]}


def corridor(num_envs=1):
    """The start of five cells; the right end pays 1."""
    family = Corridor()
    return family, family.make(family.named_task({}), num_envs, torch_rng(0, "env"))


def test_a_rollout_hands_on_what_was_acted_on_and_the_state_before_and_after():
    _, env = corridor()
    policy = Rightwards()
    moments = [moment for _, moment in zip(range(5), rollout(env, policy, policy.start(1, torch_rng(0))), strict=False)]
    assert [float(moment.obs) for moment in moments] == [0, 0.25, 0.5, 0.75, 0], "the fifth after the end"
    assert [float(moment.step.next_obs) for moment in moments] == [0.25, 0.5, 0.75, 1, 0.25]
    assert [int(moment.action) for moment in moments] == [1] * 5
    for t, moment in enumerate(moments):
        rewards = [0.0, 0.0, 0.0, 1.0, 0.0][: t + 1]
        assert moment.chosen == {"acted": t + 1, "seen": rewards[:-1]}
        assert moment.state == {"acted": t + 1, "seen": rewards}


def test_one_episode_gives_no_weight_to_what_follows():
    _, env = corridor(num_envs=3)

    class Sure(Rightwards):
        def observe(self, state, obs, action, step):
            return state

    found = collect(env, Sure(), Sure().start(3, torch_rng(0)), 6, one_episode=True)
    assert found.reward.shape == (1, 6, 3)
    assert found.weight[0].tolist() == [[1.0] * 3] * 4 + [[0.0] * 3] * 2
    assert found.ended[0, :, 0].tolist() == found.terminated[0, :, 0].tolist() == [False] * 3 + [True] + [False] * 2
    assert float(found.next_obs[0, 3, 0]) == 1, "the true successor, not the next start"
    whole = collect(env, Sure(), Sure().start(3, torch_rng(0)), 6)
    assert (whole.weight == 1).all()


def test_random_policies_draw_from_their_generator():
    family, policy = Buttons(), RandomPolicy(Buttons().spec.actions)
    env = family.make(family.named_task({}), 1000, torch_rng(0, "env"))
    one, same, other = (policy.act(policy.start(1000, torch_rng(seed, "act")), env.obs)[0] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert float(one.float().mean()) == pytest.approx(0.5, abs=0.05)


def test_episodes_are_played_with_one_state():
    family, env = corridor()
    policy = Rightwards()
    played = play(family, env, policy, policy.start(1, torch_rng(0)), episodes=3)
    assert played.returns == [1, 1, 1]
    assert played.state == {"acted": 12, "seen": [0.0, 0.0, 0.0, 1.0] * 3}
    assert (played.places, played.frames) == ([], []), "nothing is named and nothing is drawn"
    again = play(family, env, policy, played.state)
    assert again.returns == [1]
    assert again.state["acted"] == 16, "it goes on from the state it is given"


def test_what_is_played_is_named_and_drawn():
    group = compose_train("env=gridworld").env
    family = group.module.Family(group.config)
    env = family.make(family.named_task({"goal_x": 3, "goal_y": 0}), 1, torch_rng(0, "env"), render=True)

    class East(Policy):
        def act(self, state, obs):
            return torch.full(obs.shape[:2], 2), state

    played = play(family, env, East(), {}, episodes=2, frames=4)
    assert len(played.returns) == len(played.places) == 2
    for places in played.places:
        assert places[:4] == ["(0,0)", "(1,0)", "(2,0)", "(3,0)"]
        assert len(places) == family.spec.horizon + 1, "the start, and where every step led"
    assert len(played.frames) == 4
    assert played.frames[0].size == played.frames[3].size


def test_what_training_goes_on_from_is_what_an_algorithm_lists():
    class Counting(Algorithm):
        saved = ("rng", "optimizer")
        counters = ("iteration", "updates", "env_steps")

        def __init__(self, seed: int):
            self.rng, self.weight = Streams(seed, "a"), torch.full((2,), float(seed), requires_grad=True)
            self.optimizer = torch.optim.Adam([self.weight])
            self.iteration = self.updates = self.env_steps = 0

        def train_step(self):
            self.weight.grad = torch.rand(2, generator=self.rng["a"])
            self.optimizer.step()
            self.iteration, self.updates, self.env_steps = self.iteration + 1, self.updates + 2, self.env_steps + 3

        def weights(self):
            return {"weight": self.weight.detach().clone()}

        def load_weights(self, state):
            self.weight.data.copy_(state["weight"])

        def adapt(self, task, budget, rng, family=None):
            raise AssertionError("it is only trained")

        load_policy = adapt

    one, other = Counting(0), Counting(1)
    for _ in range(3):
        one.train_step()
    state = copy.deepcopy(one.state_dict())
    assert set(state) == {"weights", "rng", "optimizer", "iteration", "updates", "env_steps"}
    other.load_state_dict(state)
    assert (other.iteration, other.updates, other.env_steps) == (3, 6, 9)
    for _ in range(2):
        one.train_step()
        other.train_step()
        assert torch.equal(one.weight, other.weight)
    assert one.env_steps == other.env_steps == 15
