"""Action spaces: encodings and bounds by hand, random actions drawn uniformly among the legal ones."""

import pytest
import torch

from metarl_cli.seeding import torch_rng
from metarl_cli.spaces import Bins, Continuous, Discrete

BOX = Continuous((-1.0, 0.0), (3.0, 1.0))


def test_discrete_actions_are_encoded_one_hot():
    assert Discrete(3).size == 3
    assert Discrete(3).encode(torch.tensor([[2, 0]])).tolist() == [[[0, 0, 1], [1, 0, 0]]]


def test_continuous_actions_are_encoded_with_bounds_at_one():
    assert BOX.size == 2
    assert BOX.encode(torch.tensor([[-1.0, 1.0], [1.0, 0.25]])).tolist() == [[-1, 1], [0, -0.5]]
    beyond = BOX.decode(torch.tensor([[-1.0, 1.0], [0.0, -0.5], [-7.0, 9.0]]))
    assert BOX.clip(beyond).tolist() == [[-1, 1], [1, 0.25], [-1, 1]]
    assert BOX.encode(beyond).tolist() == [[-1, 1], [0, -0.5], [-7, 9]], "what a Gaussian samples keeps its likelihood"
    action = BOX.random(torch.zeros(3, 4, 5), torch_rng(0, "act"))
    torch.testing.assert_close(BOX.decode(BOX.encode(action)), action)


def test_all_actions_are_legal_without_a_mask():
    obs = torch.zeros(2, 3, 4)
    assert Discrete(4).legal(obs) is None
    assert BOX.legal(obs) is None


def test_the_mask_is_the_end_of_the_observation():
    space, obs = Discrete(3, masked=True), torch.tensor([[[9.0, 1, 0, 1], [9.0, 0, 1, 0]]])
    assert space.legal(obs).tolist() == [[[True, False, True], [False, True, False]]]
    action = space.random(obs.expand(500, 2, 4), torch_rng(0, "act"))
    assert set(action[:, 0].tolist()) == {0, 2}
    assert set(action[:, 1].tolist()) == {1}


@pytest.mark.parametrize("space", [Discrete(5), BOX], ids=["discrete", "continuous"])
def test_random_actions_are_uniform(space):
    action = space.random(torch.zeros(100, 100, 1), torch_rng(0, "act"))
    share = space.encode(action).flatten(0, 1).mean(0)
    expected = 1 / 5 if isinstance(space, Discrete) else 0.0
    torch.testing.assert_close(share, torch.full_like(share, expected), atol=0.03, rtol=0)


def test_bins_are_equidistant_from_bound_to_bound():
    bins = Bins(BOX, 5)
    index = torch.tensor([[0, 4], [1, 2]])
    assert bins.decode(index).tolist() == [[-1, 1], [0, 0.5]]
    assert torch.equal(bins.index(bins.decode(index)), index)
    assert bins.index(torch.tensor([0.4, 0.4])).tolist() == [1, 2]
    assert BOX.choices(5) == bins
    assert Discrete(3).choices(5) == Discrete(3)


def test_the_value_of_a_choice():
    assert Discrete(3).value_shape == (3,)
    assert float(Discrete(3).value(torch.tensor([1.0, 2.0, 3.0]), torch.tensor(1))) == 2.0
    bins = Bins(BOX, 2)
    assert bins.value_shape == (2, 2)
    values = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert float(bins.value(values, torch.tensor([1, 0]))) == 2.5, "the mean over dimensions"
