"""MandRIL: learn an initial reward network from which a few demonstrations of a new task tell what it wants.

Maximum-entropy inverse RL inside MAML (Xu 2019, arXiv:1805.12573):

    inner   theta_i = theta - alpha * g_i        g_i: the gradient of L(theta; demonstrations of task i)      K times
    outer   min over theta, alpha of  sum_i L(theta_i; demonstrations of task i in a new environment)

L is minus the log-likelihood of what the demonstrator did, soft-optimal for the reward r_theta: each evaluation of it plans in
the known environment. With ``inner.normalise`` a task's gradient is divided by its norm, over all weights together: the length
of a step is then its rate, as with Adam's first step, however likely the demonstrations are already.

Variants are values of the configuration, not code:

| variant | value | paper |
|---|---|---|
| plain MandRIL | inner.normalise=false, inner.order=2, inner.lr=0.3 | Xu 2019 |
| pre-training | inner=null, tune.steps, tune.lr | one reward for all tasks, fine-tuned by Adam at meta-test time |
| behaviour cloning | model.of=policy | MAML on what was done: Finn 2017, arXiv:1709.04905 |

Differs from the paper: the gradient is normalised and of first order by default, and rates are learned for every tensor; the
reward is of a cell's looks instead of an image; demonstrations number 1 to 20 in turn, so that one run is for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from metarl_cli.adaptation.demonstrations import (
    DemonstrationsConfig,
    Examples,
    FittingConfig,
    InferredPolicy,
    Planned,
    blank_examples,
    cost_of_demonstrations,
    cost_of_fitting,
    fit_from_scratch,
    fitted,
    imitate,
    likelihood_gradients,
    likelihood_loss,
    load_inferred,
    read,
    table_of,
)
from metarl_cli.adaptation.gradient import descended, normalised
from metarl_cli.config.base import StrictModel
from metarl_cli.config.footprint import COPIES, extrapolated, factor, peak, size_of, without_content
from metarl_cli.experience.demonstrations import demonstrate
from metarl_cli.experience.schedules import cosine
from metarl_cli.interfaces import (
    Adapted,
    Algorithm,
    Budget,
    Context,
    Family,
    Footprint,
    Holding,
    Params,
    State,
    Task,
    num_tasks,
)
from metarl_cli.networks.imitation import ModelConfig, Solution, build_model
from metarl_cli.networks.optimizers import backward
from metarl_cli.networks.stacked import detached, detached_groups, expand, load_groups
from metarl_cli.progress import timed
from metarl_cli.seeding import Streams, numpy_rng


class InnerConfig(StrictModel):
    """The inner loop: adaptation to the demonstrations of a task."""

    steps: int = Field(gt=0, description="K, gradient steps on the demonstrations")
    lr: float = Field(gt=0, description="learning rate; the initial value where rates are learned")
    rates: Literal["fixed", "tensor"] = Field(description="learned rates: none, or one per tensor")
    normalise: bool = Field(description="divide a task's gradient by its norm, that of all tensors together")
    order: Literal[1, 2] = Field(description="order of the meta-gradient; 1 ignores second derivatives")


class OuterConfig(StrictModel):
    """The outer loop, which learns the initialisation and the rates."""

    lr: float = Field(gt=0, description="Adam's learning rate")
    final_lr: float = Field(ge=0, description="final learning rate, as a share of lr (cosine over the run)")
    clip: float = Field(gt=0, description="largest norm of the meta-gradient")


class Config(DemonstrationsConfig):
    """MandRIL and its variants."""

    model: ModelConfig
    inner: InnerConfig | None = Field(description="the inner loop; none: one network for all tasks (pre-training)")
    tune: FittingConfig | None = Field(description="adaptation by Adam at meta-test time; none: there is an inner loop")
    outer: OuterConfig
    scratch: FittingConfig = Field(description="the reference that adapts fresh weights")

    @model_validator(mode="after")
    def _adapts_in_one_way(self) -> Config:
        if (self.inner is None) == (self.tune is None):
            raise ValueError("give either inner, the steps of training, or tune, steps of Adam after pre-training; not both")
        return self


Meta = dict[str, Params]  # {"init": weights, "rates": learning rates}


class Mandril(Algorithm):
    """Meta-learner of a network that explains demonstrations.

    Args:
        config: see :class:`Config`.
        context: the family, the seed, the device and the iterations of the run.

    Raises:
        ValueError: if the family is no table of states that are observed.
    """

    adapts_by = "demonstrations"
    uses_learner = False
    saved = ("optimizer", "rng")

    def __init__(self, config: Config, context: Context):
        self.config, self.context, self.family = config, context, table_of(context.family)
        self.rng = Streams(context.seed, "init", "support", "query", device=context.device)
        self.iteration = self.env_steps = 0
        self.task = self.draw()
        one = {name: value[:1] for name, value in self.task.items()}
        self.model = build_model(config.model, self.family.process(one))
        init, inner = self.model.init(self.rng["init"]), config.inner
        rates = {} if inner is None else {name: value.new_full((), inner.lr) for name, value in init.items()}
        self.meta: Meta = {"init": init, "rates": rates}
        learned = [*init.values(), *(rates.values() if inner is not None and inner.rates != "fixed" else ())]
        self.learned = [value.requires_grad_() for value in learned]
        self.optimizer = torch.optim.Adam(self.learned, lr=config.outer.lr, fused=True)

    def draw(self) -> Task:
        """Draw the training tasks of this iteration."""
        rng = numpy_rng(self.context.seed, "tasks", "train", str(self.iteration))
        return self.family.sample_tasks(self.config.tasks, "train", rng)

    @override
    def cost_of_training(self) -> Footprint:
        config, family, meta = self.config, self.family, without_content(self.meta)
        most = max(config.demonstrations) if config.inner else 0
        support, query = blank_examples(family, config.tasks, max(most, 1)), blank_examples(family, config.tasks, config.query)
        learned = [value for group in meta.values() for value in group.values() if value.requires_grad]

        def update_after(steps: int) -> float:
            def update() -> list[Tensor]:
                params = self.adapted(meta, support, config.tasks, steps)
                return backward(likelihood_loss(self.model, params, query).mean(), learned)

            return peak(update)

        demonstrated = cost_of_demonstrations(family, config.tasks, most + config.query)
        steps = config.inner.steps if config.inner else 0
        key = factor(algo__tasks=config.tasks, algo__demonstrations=most, algo__query=config.query, algo__inner__steps=steps)
        weights = Holding("algo.model.hidden", 3 * size_of(self.meta))
        return Footprint(
            [weights],
            [Holding(key, demonstrated + extrapolated(update_after, steps)), Holding(weights.key, COPIES * weights.bytes)],
        )

    @override
    def cost_of_adapting(self, tasks: int, episodes: int) -> float:
        demonstrated = cost_of_demonstrations(self.family, tasks, max(self.config.demonstrations))
        return demonstrated + cost_of_fitting(self.model, self.family, tasks)

    # -- one meta-iteration

    def train_step(self) -> dict[str, float]:
        """Have the tasks demonstrated twice, in different environments; learn to explain the second from the first."""
        config, self.task = self.config, self.draw()
        num = config.demonstrations[self.iteration % len(config.demonstrations)]
        support = self._demonstrated(num, "support") if config.inner else None
        loss, gradients = self.meta_gradient(support, self._demonstrated(config.query, "query"))
        for weight, gradient in zip(self.learned, gradients, strict=True):
            weight.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(self.learned, config.outer.clip)
        lr = config.outer.lr * cosine(config.outer.final_lr, self.iteration / self.context.iterations)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self.iteration += 1
        metrics = {"loss/query": float(loss), "grad/norm": float(norm), "train/lr": lr}
        if self.meta["rates"]:
            metrics["train/inner_lr"] = float(torch.stack(list(detached(self.meta["rates"]).values())).mean())
        return metrics

    @timed("demonstrations")
    def _demonstrated(self, num: int, stream: str) -> Examples:
        examples = read(self.family, demonstrate(self.family, self.task, num, self.rng[stream]))
        self.env_steps += int(examples.weight.sum())
        return examples

    def adapted(self, meta: Meta, examples: Examples | None, num: int, steps: int | None = None) -> Params:
        """Return the weights ``[M, ...]`` after the inner steps on demonstrations, differentiable in ``meta``.

        Args:
            meta: what is learned.
            examples: the demonstrations; None: no inner steps.
            num: M, the number of tasks.
            steps: how many inner steps; None: as configured.
        """
        params, inner = expand(meta["init"], num), self.config.inner
        if inner is None or examples is None:
            return params
        second = inner.order == 2 and torch.is_grad_enabled()
        for _ in range(inner.steps if steps is None else steps):
            gradients = likelihood_gradients(self.model, params, examples, create_graph=second)
            params = descended(params, meta["rates"], normalised(gradients) if inner.normalise else gradients, None)
        return params

    @timed("meta-gradient")
    def meta_gradient(self, support: Examples | None, query: Examples) -> tuple[Tensor, list[Tensor]]:
        """Return the loss of the adapted networks on the query, a mean over tasks, and its gradient in all that is learned."""
        params = self.adapted(self.meta, support, len(query.state))
        loss = likelihood_loss(self.model, params, query).mean()
        return loss.detach(), backward(loss, self.learned)

    # -- adaptation

    def adapt(self, task: Task, budget: Budget, rng: torch.Generator, family: Family | None = None) -> Iterator[Adapted]:
        """Yield the policies after some numbers of demonstrations; see :meth:`Algorithm.adapt`."""
        meta, num = detached_groups(self.meta), num_tasks(task)

        def learn(examples: Examples | None) -> tuple[Callable[[Task], Solution], int]:
            params, steps = self.adapted(meta, examples, num), 0
            if examples is not None:
                steps = self.config.inner.steps if self.config.inner else 0
                if self.config.tune is not None:
                    params, steps = fitted(self.model, params, examples, self.config.tune), self.config.tune.steps
            return (lambda where: self.model.solve(params, self.family.process(where))), steps

        return imitate(Planned(self.family, learn), self.family, family, task, budget, rng)

    @override
    def adapt_from_scratch(self, task: Task, budget: Budget, rng: torch.Generator) -> Iterator[Adapted]:
        """Adapt fresh weights of the same network, with Adam on the same demonstrations."""
        fit = fit_from_scratch(self.model, self.config.scratch, self.family, num_tasks(task), rng)
        return imitate(fit, self.family, None, task, budget, rng)

    @override
    def load_policy(self, state: State, task: Task) -> InferredPolicy:
        return load_inferred(self.family, state, task)

    # -- saving

    @override
    def weights(self) -> State:
        return {"meta": detached_groups(self.meta)}

    @override
    def load_weights(self, state: State) -> None:
        load_groups(self.meta, state["meta"])


Algo = Mandril
