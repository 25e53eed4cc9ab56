"""The auxiliary task of RL²: what is predicted, and what is left out."""

import pytest
import torch

from metarl_cli.trials import Inputs, InputsConfig, Prediction
from metarl_cli.types import Spec

INPUTS = Inputs(InputsConfig(product=False, previous_obs=False, clock=False), Spec(obs_shape=(2,), num_actions=3, horizon=9))


def stretch(obs, action, reward, ended):
    """Inputs ``[T, 1, I]``: what is seen at each step, and what came of the step before."""
    one_hot = torch.eye(3)[action]
    rows = [torch.tensor(obs), one_hot, torch.tensor(reward)[:, None], torch.tensor(ended)[:, None]]
    return torch.cat(rows, -1)[:, None]


def saying(prediction: Prediction, found: list[float]):
    """Weights that always predict ``found``."""
    params = {name: torch.zeros_like(value) for name, value in prediction.init(torch.Generator()).items()}
    return params | {"prediction.bias": torch.tensor(found)}


def test_the_error_by_hand():
    prediction = Prediction(INPUTS, size=4, hidden=5)
    inputs = stretch([[9.0, 9.0], [1.0, 2.0], [3.0, 4.0]], [0, 1, 2], [9.0, 5.0, -1.0], [0.0, 0.0, 0.0])
    loss = prediction.loss(saying(prediction, [1.0, 1.0, 2.0]), torch.zeros(3, 1, 4), inputs, torch.ones(3, 1))
    first, second = (0 + 1) + 3**2, (4 + 9) + 3**2  # of [1, 2] and 5; of [3, 4] and -1; nothing says what the first step sees
    assert float(loss) == (first + second) / 2


def test_the_first_observation_of_an_episode_follows_from_nothing_but_the_last_reward_is_learned():
    prediction = Prediction(INPUTS, size=4, hidden=5)
    inputs = stretch([[0.0, 0.0], [7.0, 7.0]], [0, 1], [0.0, 5.0], [0.0, 1.0])
    loss = prediction.loss(saying(prediction, [0.0, 0.0, 2.0]), torch.zeros(2, 1, 4), inputs, torch.ones(2, 1))
    assert float(loss) == 9


def test_padding_is_left_out():
    prediction = Prediction(INPUTS, size=4, hidden=5)
    inputs = stretch([[0.0, 0.0], [1.0, 0.0], [50.0, 60.0]], [0, 1, 1], [0.0, 0.0, 70.0], [0.0, 0.0, 0.0])
    weight = torch.tensor([[1.0], [1.0], [0.0]])
    loss = prediction.loss(saying(prediction, [0.0, 0.0, 0.0]), torch.zeros(3, 1, 4), inputs, weight)
    assert float(loss) == 1


def test_it_learns_what_the_memory_and_the_action_tell():
    """The next observation is what the memory holds, the reward which action it was: the error goes to nothing."""
    rng = torch.Generator().manual_seed(0)
    prediction = Prediction(INPUTS, size=2, hidden=32)
    params = {name: value.requires_grad_() for name, value in prediction.init(rng).items()}
    optimizer = torch.optim.Adam(list(params.values()), lr=0.01)
    errors = []
    for _ in range(300):
        features = torch.rand(12, 8, 2, generator=rng)
        action = torch.randint(3, (12, 8), generator=rng)
        obs = torch.cat([torch.zeros(1, 8, 2), features[:-1]])
        inputs = torch.cat([obs, torch.eye(3)[action], (action == 1).float()[..., None], torch.zeros(12, 8, 1)], -1)
        loss = prediction.loss(params, features, inputs, torch.ones(12, 8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
    assert errors[0] > 0.3
    assert sum(errors[-20:]) / 20 == pytest.approx(0, abs=0.02)
