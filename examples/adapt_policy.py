"""Adapt on a device what ``metarl export adaptation=true`` wrote, with numpy and onnxruntime alone; gymnasium is the world.

    metarl export zoo:maml_dqn-cartpole_family adaptation=true format=onnx out=served
    python examples/adapt_policy.py served

The world is a CartPole under three times the gravity whose actuator pushes the other way.
"""

import json
import sys
from pathlib import Path

import gymnasium
import numpy as np
import onnxruntime


class Adapter:
    def __init__(self, folder):
        self.contract = json.loads(Path(folder, "contract.json").read_text())
        self.act, self.step = (onnxruntime.InferenceSession(Path(folder, f"{name}.onnx")) for name in ("policy", "adaptation"))
        self.weights, self.steps = dict(np.load(Path(folder, "weights.npz"))), 0

    def __call__(self, obs):
        action, *numbers = self.act.run(None, {"obs": obs[None], **self.weights})
        return action[0], numbers  # the greedy action, and the action values

    def adapt(self, support):
        self.steps += 1
        after = self.step.run(None, {"step": np.array(self.steps), **support, **self.weights})
        self.weights = dict(zip(self.weights, after, strict=True))

    def collect(self, env, rng):
        form = {each["name"]: each for each in self.contract["adaptation"]["inputs"]}
        fields = ["obs", "action", "reward", "next_obs", "terminated", "ended", "weight"]
        support = {name: np.zeros(form[name]["shape"], form[name]["type"]) for name in fields}
        how = self.contract["adaptation"]["support"]
        for episode in range(how["episodes"]):
            obs, _ = env.reset(seed=episode)
            for step in range(how["steps"]):
                action = rng.integers(env.action_space.n) if rng.random() < how["epsilon"] else self(obs)[0]
                after, reward, terminated, truncated, _ = env.step(action)
                seen = obs, action, reward, after, terminated, terminated or truncated, 1
                for name, value in zip(fields, seen, strict=True):
                    support[name][step, episode] = value
                obs = after
                if terminated or truncated:
                    break
        return support


def play(env, adapter, episodes=10):
    total = 0.0
    for episode in range(episodes):
        obs, ended = env.reset(seed=100 + episode)[0], False
        while not ended:
            obs, reward, terminated, truncated, _ = env.step(adapter(obs)[0])
            total, ended = total + reward, terminated or truncated
    return total / episodes


if __name__ == "__main__":
    env, adapter = gymnasium.make("CartPole-v1"), Adapter(sys.argv[1])
    env.unwrapped.gravity, env.unwrapped.force_mag = 30.0, -10.0
    print(f"mean return before adaptation: {play(env, adapter):.1f}")
    adapter.adapt(adapter.collect(env, np.random.default_rng(0)))
    print(f"mean return after one step:    {play(env, adapter):.1f}")
