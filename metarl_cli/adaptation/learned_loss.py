"""A learned loss for the inner loop (Bechtle 2019, arXiv:1906.05374): what gradient steps on a support descend.

    L(c; support) = 1/2 sum over transitions x_n, entries j of  w_nj (c_j - m_j(x_n, c))²
    w_nj          = p_j(x_n, c) / (1 + sum_n' p_j(x_n', c))                     m, p > 0: outputs of a small network
    c            <- c - alpha grad_c L(c; support)                              K times

The Q-network is given the context c as inputs (CAVIA: Zintgraf 2019, arXiv:1810.03642). Each transition says where the context
should be, and how sure it is of that. If p and m did not depend on c, a step with rate 1 would lead to the mean of a posterior
like that of PEARL (Rakelly 2019, arXiv:1903.08254), with its prior at the context before the step. As they do, further steps
read the same transitions in the light of the context so far.

The gradient of the temporal-difference error sees one number of each transition, and depends on the Q-network, which changes
all the time. This loss reads whole transitions, normalised, and does not depend on the Q-network's weights.

Differs from the paper: the loss is given single transitions and the context, not the outputs of the policy; the outer loss is
that of Q-learning.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from metarl_cli.adaptation.vectors import Reader
from metarl_cli.config.base import StrictModel
from metarl_cli.errors import UserError
from metarl_cli.interfaces import Batch, Learner, Params, Transitions
from metarl_cli.networks.layers import layers, linear
from metarl_cli.spaces import Distribution, Spec

OUT = 0.1  # gain of the last layer's initial weights: contexts that are wrong at first would teach precisions to be zero


class LossConfig(StrictModel):
    """The loss that the inner loop descends."""

    learned: bool = Field(description="a learned loss of transitions and context inputs; false: the learner's own")
    hidden: list[Annotated[int, Field(gt=0)]] = Field(min_length=1, description="units of each layer of a learned loss")


class LearnedLoss(Learner):
    """A learner with a learned loss in the place of its own.

    The weights are those of the learner's network, of the loss (``inner_loss.*``), and the normalisation of transitions
    (``inner_loss.mean`` and ``.scale``, not learned: see :meth:`measure`); of one network ``[...]``, or of M ``[M, ...]``.

    Args:
        learner: the learner; its network has context inputs.
        config: see :class:`LossConfig`.

    Raises:
        UserError: if observations are images.
    """

    stacked = True

    def __init__(self, learner: Learner, config: LossConfig):
        if len(learner.spec.obs_shape) != 1 or learner.spec.pixels:
            shape = list(learner.spec.obs_shape)
            raise UserError(f"a learned loss cannot read images, observations of {shape}; algo=maml_dqn has none")
        self.learner, self.spec, self.actions, self.config = learner, learner.spec, learner.actions, config
        self.stochastic = learner.stochastic
        self.reader = Reader(learner.spec)

    @override
    def rebuilt(self, spec: Spec) -> LearnedLoss:
        return LearnedLoss(self.learner.rebuilt(spec), self.config)

    @override
    def init(self, rng: torch.Generator) -> Params:
        params = self.learner.init(rng)
        size = len(params.get("context", ()))
        params |= layers("inner_loss", [self.reader.size + size, *self.config.hidden], rng)
        return params | linear("inner_loss.out", 2 * size, self.config.hidden[-1], OUT, rng)

    def start(self, device: torch.device) -> Params:
        """Return the normalisation of transitions before it is measured."""
        return named(self.reader.start(device))

    def measure(self, support: Transitions) -> Params:
        """Measure the normalisation on transitions ``[M, T, N, ...]``."""
        return named(self.reader.measure(support))

    @override
    def pack(self, params: Params) -> Params:
        return self.learner.pack(params)

    @override
    def policy(self, params: Params, obs: Tensor) -> Distribution:
        return self.learner.policy(params, obs)

    @override
    def prepare(
        self, params: Params, slow: Params, batch: Transitions, gamma: float | Tensor | None = None, lambda_: float = 0.0
    ) -> Batch:
        """Read the transitions ``[..., T, N]``; there are no targets, so that ``gamma`` and ``lambda_`` change nothing."""
        measured = {name: params[f"inner_loss.{name}"][..., None, :] for name in ("mean", "scale")}
        return Batch(batch, {"entries": self.reader.read(measured, batch).entries})

    @override
    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Return the loss of each task, ``[...]``."""
        x, context = batch.signal["entries"], params["context"][..., None, :]
        for i in range(len(self.config.hidden)):
            weight, bias = params[f"inner_loss.{i}.weight"].mT, params[f"inner_loss.{i}.bias"][..., None, :]
            if i == 0:  # the context is the same for all transitions of a task
                weight, of_context = weight[..., : self.reader.size, :], weight[..., self.reader.size :, :]
                bias = bias + context @ of_context
            x = F.silu(x @ weight + bias)
        mean, precision = (x @ params["inner_loss.out.weight"].mT + params["inner_loss.out.bias"][..., None, :]).chunk(2, -1)
        precision = F.softplus(precision) * batch.experience.weight.flatten(-2)[..., None]
        distance = (precision * (context - mean).square()).sum(-2) / (1 + precision.sum(-2))
        return 0.5 * distance.sum(-1)


def named(measured: Params) -> Params:
    """Return the normalisation as entries of the weights."""
    return {f"inner_loss.{name}": value for name, value in measured.items()}


def in_learned_loss(name: str) -> bool:
    """Return whether an entry of the weights belongs to a learned loss, which no inner step moves and no policy needs."""
    return name.startswith("inner_loss.")
