"""Adaptation by demonstrations: somebody who knows a task shows a few episodes of it, and no reward is seen.

    L(theta) = - mean_t log pi_theta(a_t | s_t, t)        of a reward's soft-optimal policy, or of a policy that copies

With a reward that is linear in features, r = theta . f, and deterministic moves, the gradient of L is beta times the difference
of the features that pi_theta is expected to meet and those that were met (Ziebart 2008, aaai.org/Papers/AAAI/2008/AAAI08-227;
causal entropy for moves by chance: Ziebart 2010). Demonstrations take place in another environment of the same task, where the
family has others (``Family.elsewhere``): what was learned is then used in an environment that nobody has shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.adaptation.reward_maps import draw_rewards
from metarl_cli.config.base import StrictModel
from metarl_cli.config.footprint import META, peak, size_of, without_content
from metarl_cli.envs.planning import Process, TablePolicy
from metarl_cli.envs.tabular import GridFamily, TabularFamily
from metarl_cli.errors import UserError
from metarl_cli.experience.demonstrations import demonstrate
from metarl_cli.interfaces import (
    Adapted,
    Budget,
    Demonstrated,
    Demonstrations,
    Diagnostics,
    Family,
    Params,
    Policy,
    State,
    Task,
    num_tasks,
)
from metarl_cli.networks.imitation import Model, Solution
from metarl_cli.networks.optimizers import Adam
from metarl_cli.networks.stacked import expand, stack
from metarl_cli.progress import timed
from metarl_cli.seeding import torch_rng

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class FittingConfig(StrictModel):
    """Steps of Adam on the likelihood of demonstrations."""

    steps: int = Field(gt=0, description="steps of Adam on all demonstrations")
    lr: float = Field(gt=0, description="Adam's learning rate")


class DemonstrationsConfig(StrictModel):
    """The tasks of an iteration, and what is demonstrated of them."""

    tasks: int = Field(gt=0, description="training tasks of an iteration, drawn for each anew")
    demonstrations: list[Annotated[int, Field(gt=0)]] = Field(
        min_length=1, description="numbers of demonstrations that a task is learned from, one for each iteration in turn"
    )
    query: int = Field(gt=0, description="other demonstrations of each task, by which what is learned is judged")


class Examples(NamedTuple):
    """Demonstrations as a table of states reads them."""

    process: Process  # of the environments where they took place
    state: Tensor  # [M, T, N]
    action: Tensor  # [M, T, N]
    weight: Tensor  # [M, T, N] 0 after an episode's end

    def first(self, num: int) -> Examples:
        """Return the first demonstrations of each task."""
        return Examples(self.process, *(x[:, :, :num] for x in self[1:]))

    def chosen(self, choices: Tensor) -> Tensor:
        """Return the log-probabilities ``[M, T, N]`` of what was done, for those of all actions ``[M, H, S, A]``."""
        now = choices[:, : self.state.shape[1]].flatten(2)
        return now.gather(2, self.state * choices.shape[-1] + self.action) * self.weight


def table_of(family: Family) -> TabularFamily:
    """Return the family.

    Raises:
        ValueError: if it is no table of states that are observed.
    """
    if not isinstance(family, TabularFamily) or family.spec.obs_shape != (family.num_states,):
        raise ValueError(
            "this algorithm plans: it needs a table of states that it observes (env=sprite_grid); algo=pemirl needs none"
        )
    return family


def read(family: TabularFamily, given: Demonstrations) -> Examples:
    """Return what a family's demonstrations show."""
    seen = given.experience
    return Examples(family.process(given.task), family.states(seen.obs), seen.action, seen.weight)


def blank_examples(family: TabularFamily, tasks: int, num: int) -> Examples:
    """Return ``num`` demonstrations of each of so many tasks without content, by which memory is measured."""
    one = family.process(family.sample_tasks(1, "train", np.random.default_rng(0)))
    transition, features = (x.expand(tasks, *x.shape[1:]) for x in without_content((one.transition, one.features)))
    seen = torch.zeros(tasks, family.spec.horizon, num, dtype=torch.long, device=META)
    return Examples(
        one._replace(transition=transition, features=features), seen, seen, torch.zeros_like(seen, dtype=torch.float)
    )


def cost_of_demonstrations(family: TabularFamily, tasks: int, num: int) -> float:
    """Return the bytes of ``num`` demonstrations of each of so many tasks, and of what is known of their environments."""
    known = family.process(family.sample_tasks(1, "train", np.random.default_rng(0)))
    alike = family.of_places and isinstance(family, GridFamily)  # moves are the same in all tasks, and held once
    places = 3 * tasks * (size_of(known.features) + (0 if alike else size_of(known.transition)))
    return places + 2 * tasks * num * family.spec.horizon * family.spec.bytes_per_transition


def cost_of_fitting(model: Model, family: TabularFamily, tasks: int) -> float:
    """Return the bytes that a gradient step on the demonstrations of so many tasks takes, with their weights and Adam's."""
    params = expand(without_content(model.init(torch_rng(0, "blank"))), tasks)
    gradient = peak(lambda: likelihood_gradients(model, params, blank_examples(family, tasks, 1)))
    return gradient + 4 * size_of(params)  # weights, their gradients and Adam's two means


def likelihood_loss(model: Model, params: Params, examples: Examples) -> Tensor:
    """Return ``L [M]``, the mean over steps of minus the log-probability of what was done."""
    return -examples.chosen(model.choices(params, examples.process)).sum((1, 2)) / examples.weight.sum((1, 2))


@timed("inner gradient")
def likelihood_gradients(model: Model, params: Params, examples: Examples, create_graph: bool = False) -> Params:
    """Return the gradient of each task's loss in its weights ``[M, ...]``."""
    with torch.enable_grad():
        moving = {k: (v.view_as(v) if create_graph else v.detach()).requires_grad_() for k, v in params.items()}
        losses = likelihood_loss(model, moving, examples)
        gradients = torch.autograd.grad(losses.sum(), list(moving.values()), create_graph=create_graph)
    return dict(zip(moving, gradients, strict=True))


def fitted(model: Model, params: Params, examples: Examples, config: FittingConfig) -> Params:
    """Return the weights ``[M, ...]`` after steps of Adam on the loss of each task."""
    adam, rate = Adam(), dict.fromkeys(params, torch.tensor(config.lr, device=examples.weight.device))
    for _ in range(config.steps):
        params = adam.step(params, likelihood_gradients(model, params, examples), rate)
    return params


def numbers(most: int) -> list[int]:
    """Return the numbers of demonstrations after which an adaptation is looked at: 0, 1, 2, 5, 10, 20, 50 ..., and all."""
    usual = [digit * 10**power for power in range(len(str(most))) for digit in (1, 2, 5)]
    return sorted({0, *(n for n in usual if n <= most), most})


class InferredPolicy(TablePolicy):
    """The plan for what is inferred of M tasks, or the policy that copies.

    Args:
        solution: what to do, and the reward that it is for.
        family: of the tasks.
        task: the environments.
        examples: demonstrations in them, to be drawn; None where there are none.
    """

    def __init__(self, solution: Solution, family: TabularFamily, task: Task, examples: Examples | None = None):
        super().__init__(solution.table)
        self.reward, self.family, self.task, self.examples = solution.reward, family, task, examples

    @override
    def diagnostics(self) -> Diagnostics:
        return super().diagnostics() if self.reward is None else Diagnostics({}, {}, {"reward": self._drawing(self.reward)})

    def _drawing(self, reward: Tensor) -> Figure:
        """Draw the inferred reward of the first task beside the true one, and where the demonstrations went."""
        family = self.family
        true = family.rewards({name: value[:1] for name, value in self.task.items()})
        inferred, real = family.arrange(reward[0]), family.arrange(true[0])
        if not family.of_places:
            return draw_rewards(inferred, real, ("state", "action"))
        paths, columns = list[Tensor](), inferred.shape[1]
        if self.examples is not None:
            paths = [torch.stack([path % columns, path // columns], -1) for path in self.examples.state[0].T]
        return draw_rewards(inferred, real, ("column", "row"), paths)

    @override
    def state_dict(self) -> State:
        return {"table": self.table, "reward": self.reward}


def load_inferred(family: TabularFamily, state: State, task: Task) -> InferredPolicy:
    """Return the policy that was saved.

    Raises:
        ValueError: if it is of other tasks, or of another family.
    """
    expected = num_tasks(task), family.spec.horizon, family.num_states, family.spec.actions.size
    if state["table"].shape != expected:
        raise ValueError(f"the saved plan {list(state['table'].shape)} is not one of this family and task, {list(expected)}")
    return InferredPolicy(Solution(state["table"], state["reward"]), family, task)


# what is learned from demonstrations: the policies in environments of the tasks, in which some of them may have taken place
# (None: none has); and the gradient steps that it took
Learned = tuple[Callable[[Task, Demonstrations | None], Policy], int]


@torch.no_grad()
def imitate(
    learn: Callable[[Demonstrations | None], Learned],
    family: Family,
    where: Family | None,
    task: Task,
    budget: Budget,
    rng: torch.Generator,
) -> Iterator[Adapted]:
    """Yield the policies of M tasks before the first demonstration, and after some numbers of them.

    Args:
        learn: returns what is learned from demonstrations; from none at first.
        family: of the tasks.
        where: the tasks run; None: in the family's own environments.
        task: the tasks.
        budget: the number of demonstrations, and perhaps the demonstrations.
        rng: of the demonstrations.

    Raises:
        UserError: if the tasks run in environments of others, or nobody demonstrates them.
    """
    if where is not None and where is not family:
        raise UserError("nobody demonstrates an environment of one's own; give demonstrations=FILE to metarl adapt")
    act, _ = learn(None)
    yield Adapted(0, 0, 0, act(task, None))
    if not budget.steps:
        return
    given = budget.demonstrations or demonstrate(family, task, budget.steps, rng)
    new = any(not torch.equal(given.task[name], task[name]) for name in task)
    for num in numbers(budget.steps)[1:]:
        seen = given.first(num)
        act, steps = learn(seen)
        there = act(given.task, seen)
        weight = seen.experience.weight
        spent = round(float(weight.sum()) / len(weight))
        yield Adapted(num, steps, spent, act(task, None) if new else there, demonstrated=Demonstrated(seen, there))


class Planned:
    """What a family with few states makes of demonstrations: see :data:`Learned`.

    Args:
        family: the family.
        learn: returns what solves any environments of the tasks, and the gradient steps that it took.
    """

    def __init__(self, family: TabularFamily, learn: Callable[[Examples | None], tuple[Callable[[Task], Solution], int]]):
        self.family, self.learn = family, learn

    def __call__(self, given: Demonstrations | None) -> Learned:
        """Learn from demonstrations."""
        solve, steps = self.learn(self.read(given))
        return (lambda task, seen: InferredPolicy(solve(task), self.family, task, self.read(seen))), steps

    def read(self, given: Demonstrations | None) -> Examples | None:
        """Return what demonstrations show."""
        return None if given is None else read(self.family, given)


def fit_from_scratch(model: Model, config: FittingConfig, family: TabularFamily, num: int, rng: torch.Generator) -> Planned:
    """Return how fresh weights of each of ``num`` tasks are fitted to its demonstrations, of which ``rng`` is the generator."""
    init = torch_rng(rng.initial_seed(), "fresh", device=rng.device)  # ``rng`` is of the demonstrations alone
    fresh = stack([model.init(init) for _ in range(num)])

    def learn(examples: Examples | None) -> tuple[Callable[[Task], Solution], int]:
        params = fresh if examples is None else fitted(model, fresh, examples, config)
        return (lambda there: model.solve(params, family.process(there))), 0 if examples is None else config.steps

    return Planned(family, learn)
