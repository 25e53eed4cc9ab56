"""The DQN learner against numbers worked out by hand."""

import pytest
import torch
from conftest import compose_train, load
from torch.func import vmap

from metarl_cli.adaptation.gradient import NetworkPolicy, loss_each, prepare_each
from metarl_cli.experience.exploration import EpsilonGreedy
from metarl_cli.interfaces import Batch, Transitions
from metarl_cli.learners.dqn import DQN
from metarl_cli.networks.distributions import Greedy
from metarl_cli.networks.q_network import NetworkConfig, QNetwork
from metarl_cli.networks.stacked import fresh
from metarl_cli.spaces import Discrete, Spec

SPEC = Spec(obs_shape=(2,), actions=Discrete(2), horizon=10)


def learner(*overrides: str) -> DQN:
    module, config = load("learner", compose_train("learner.reward_scale=1", "learner.gamma=0.5", *overrides).learner)
    return module.Learner(config, SPEC)


class Table:
    """Stands in for the network: values read from the parameters, one row per state, the state in obs[0]."""

    def __call__(self, params, obs):
        if params["q"].dim() == 3:
            return vmap(self)(params, obs)
        return params["q"][obs[..., 0].long()]


def transitions(rows) -> Transitions:
    """(state, action, reward, next state, terminated, ended) -> [1, N]."""
    state, action, reward, after, terminated, ended = (torch.tensor([column]) for column in zip(*rows, strict=True))
    wide = [torch.stack([x.float(), torch.zeros_like(x.float())], -1) for x in (state, after)]
    return Transitions(wide[0], action, reward, wide[1], terminated, ended, torch.ones_like(reward))


ONLINE = {"q": torch.tensor([[1.0, 2.0], [4.0, 3.0]])}
TARGET = {"q": torch.tensor([[10.0, 30.0], [20.0, 40.0]])}
ROWS = [
    (0, 0, 1.0, 1, False, False),  # inside an episode
    (0, 1, 1.0, 1, True, True),  # terminated: no bootstrap
    (1, 0, 1.0, 0, False, True),  # time limit: bootstrap from the true successor
]


@pytest.mark.parametrize(
    ("double", "expected"),
    [
        (False, [1 + 0.5 * 40, 1.0, 1 + 0.5 * 30]),
        (True, [1 + 0.5 * 20, 1.0, 1 + 0.5 * 30]),  # online prefers action 0 in state 1, action 1 in state 0
    ],
)
def test_targets(double, expected):
    dqn = learner(f"learner.double={double}")
    dqn.network = Table()
    assert dqn.prepare(ONLINE, TARGET, transitions(ROWS)).signal["target"].flatten().tolist() == expected


@pytest.mark.parametrize(("kind", "expected"), [("squared", (4 + 0.25) / 2), ("huber", (1.5 + 0.125) / 2)])
def test_loss_sees_no_padding(kind, expected):
    dqn = learner(f"learner.loss={kind}")
    dqn.network = Table()
    batch = transitions(ROWS)._replace(weight=torch.tensor([[1.0, 0.0, 1.0]]))
    target = torch.tensor([[3.0, 1e9, 4.5]])  # errors 2 and 0.5; the padding would be enormous
    assert float(dqn.loss(ONLINE, Batch(batch, {"target": target}))) == pytest.approx(expected)


def test_a_stacked_learner_that_mixes_tasks_is_refused():
    class Mixing(DQN):
        def loss(self, params, batch):
            return super().loss(params, batch).mean()

    config = learner().config
    params = {k: v[None].repeat(2, *[1] * v.dim()) for k, v in learner().init(torch.Generator()).items()}
    both = Transitions(*(torch.stack([x, x]) for x in transitions(ROWS)))
    dqn = Mixing(config, SPEC)
    with pytest.raises(ValueError, match=r"Mixing.loss returns \[\] for 2 tasks: set stacked = False"):
        loss_each(dqn, params, prepare_each(dqn, params, params, both))
    Mixing.stacked = False
    assert loss_each(dqn, params, prepare_each(dqn, params, params, both)).shape == (2,)


def test_act_is_greedy_per_task_and_explores_by_epsilon():
    dqn = learner()
    dqn.network = Table()
    params = {"q": torch.stack([ONLINE["q"], -ONLINE["q"]])}  # [M=2, ...]
    obs = torch.zeros(2, 4000, 2)
    assert dqn.policy(params, obs).mode()[:, 0].tolist() == [1, 0]
    rng = torch.Generator().manual_seed(0)

    def act(epsilon):
        policy = EpsilonGreedy(NetworkPolicy(dqn, params), dqn.actions, epsilon)
        return policy.act(policy.start(4000, rng), obs)[0]

    share = (act(0.4) == torch.tensor([[1], [0]])).float().mean()
    assert float(share) == pytest.approx(0.8, abs=0.02)  # 0.6 greedy + half of 0.4
    assert float(act(1.0).float().mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("context", [0, 3])
def test_network_forms(dueling, layer_norm, context):
    names = f"learner.network.dueling={dueling}", f"learner.network.layer_norm={layer_norm}"
    dqn = learner(*names, f"learner.network.context={context}")
    params = dqn.init(torch.Generator().manual_seed(0))
    obs = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(1))
    q = dqn.network(params, obs)
    assert q.shape == (5, 3, 2)
    torch.testing.assert_close(q[2, 1], dqn.network(params, obs[2, 1]))
    stack = {k: torch.randn(4, *v.shape, generator=torch.Generator().manual_seed(2)) for k, v in params.items()}
    each = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(dqn.network(stack, each), vmap(dqn.network)(stack, each))
    acting = dqn.pack(stack)
    torch.testing.assert_close(dqn.network(acting, each), dqn.network(stack, each), rtol=0, atol=0)
    stack["head.bias"] += 1  # in place, as an optimiser does: who acts acts by it
    torch.testing.assert_close(dqn.network(acting, each), dqn.network(stack, each), rtol=0, atol=0)
    if dueling:  # advantages are centred: the mean over actions is the value alone
        moved = {**params, "head.bias": params["head.bias"] + 7}
        torch.testing.assert_close(dqn.network(moved, obs), q)


def test_a_policy_of_ones_own_takes_plain_weights():
    """What acts lays weights out once; the policy of a subclass, and whoever keeps the weights, do not see it."""

    class Own(DQN):
        def policy(self, params, obs):
            return Greedy(vmap(self.network)(params, obs), self.actions)

    dqn = learner()
    own, params = Own(dqn.config, SPEC), fresh(dqn, 3, torch.Generator().manual_seed(0))
    obs = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1))
    theirs, ours = NetworkPolicy(dqn, params), NetworkPolicy(own, params)
    state = ours.start(4, torch.Generator(), greedy=True)
    torch.testing.assert_close(ours.act(state, obs)[0], theirs.act(state, obs)[0])
    assert type(theirs.params) is dict


def test_stacked_networks_see_images():
    values = {"convolutions": [{"channels": 3, "kernel": 3, "stride": 2}], "hidden": [8], "activation": "relu"}
    config = NetworkConfig(**values, layer_norm=False, dueling=True, context=0)
    network = QNetwork(config, (2, 9, 9), (4,))
    rng = torch.Generator().manual_seed(0)
    networks = [network.init(rng) for _ in range(3)]
    obs = torch.randint(256, (3, 5, 2, 9, 9), generator=rng, dtype=torch.uint8)
    values = network({k: torch.stack([n[k] for n in networks]) for k in networks[0]}, obs)
    torch.testing.assert_close(values, torch.stack([network(n, o) for n, o in zip(networks, obs, strict=True)]))
