"""Returns of whole episodes: individuals act greedily on their tasks, and those whose episodes are all over leave the batch.

Small networks in few environments spend their time on calls of operations. With ``hardware.compile`` some steps, of acting and
of the environments together, are therefore one compiled function, where the environments have physics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from metarl_cli.adaptation.gradient import NetworkPolicy
from metarl_cli.experience.finite import LARGEST, StepCheck
from metarl_cli.experience.rollout import rollout
from metarl_cli.interfaces import Env, Learner, Params, Physics, State, Step, Task
from metarl_cli.networks.compiling import Compiled
from metarl_cli.networks.stacked import first, select_rows
from metarl_cli.progress import timed
from metarl_cli.seeding import CommonRandomNumbers

UNROLLED = 4  # steps of the compiled function; with more of them it takes longer to compile
FEWER = 4  # a compiled batch shrinks to a quarter at a time, as the code for each batch size has to be compiled


class Sums(NamedTuple):
    """What is kept of the first episodes ``[R, N]`` of a batch."""

    total: Tensor  # rewards
    length: Tensor  # [steps]
    running: Tensor  # 1 until the episode is over, then 0

    def after(self, reward: Tensor, ended: Tensor) -> Sums:
        """Return the sums after one more step."""
        total, length = torch.addcmul(self.total, reward, self.running).to(self.total.dtype), self.length + self.running
        return Sums(total, length, self.running.masked_fill(ended, 0))


class Measuring:
    """The measurement of individuals.

    Args:
        learner: the learner that defines the networks.
        compile: whether some steps are one compiled function, for environments that have physics.
    """

    def __init__(self, learner: Learner, compile: bool):
        self.learner, self.compile = learner, compile
        self.code: Compiled | None = None

    def __call__(self, env: Env, params: Params, copies: int, limit: int) -> tuple[Tensor, Tensor]:
        """Return the returns and the lengths [steps] of the first episodes of P individuals on M tasks, both ``[P, M, N]``.

        Individuals leave the batch where the environments can select rows; with common random numbers the others are
        unaffected.

        Args:
            env: the environments ``[P M, N]`` at the start of episodes, after ``one_episode``.
            params: weights ``[P M, ...]`` or ``[P, ...]``.
            copies: P.
            limit: the length after which an episode is cut off [steps]; at most the horizon.

        Raises:
            EnvironmentFault: if an environment returns what is not finite.
        """
        shape, device = env.obs.shape[:2], env.obs.device
        returns, lengths = torch.zeros(2, copies, shape[0] // copies, shape[1], device=device)
        sums = Sums(torch.zeros(shape, device=device), torch.zeros(shape, device=device), torch.ones(shape, device=device))
        alive, watch = torch.arange(copies, device=device), StepCheck(env)
        moments = rollout(common(env, copies), *self._acting(params, env))
        time, left = 0, sums.running.numel()
        while time < limit:
            # the first step is a plain one, whose shapes and types are checked
            ahead = self._ahead(env, params, sums) if 0 < time <= limit - UNROLLED else None
            if ahead is not None:
                watch.finish()
                sums, time, watch.seen = ahead, time + UNROLLED, watch.seen + UNROLLED
            else:
                step = next(moments).step
                watch.see(step)
                sums, time = sums.after(step.reward, step.ended), time + 1
            before, left = left, int(sums.running.count_nonzero())
            if left == 0:
                break
            if left == before or not env.can_select_rows or 2 * left > sums.running.numel():
                continue  # half of the individuals cannot be over
            lives = sums.running.view(len(alive), -1).any(1)
            tasks = returns.shape[1]
            num = _kept(len(alive), int(lives.count_nonzero()), tasks, ahead is not None)
            if num < len(alive):
                returns[alive], lengths[alive] = (x.view(-1, *returns.shape[1:]) for x in sums[:2])
                chosen = _filled(lives, num)
                rows = chosen.repeat_interleave(tasks)
                alive, sums = alive[chosen], Sums(*(x[rows] for x in sums))
                watch.finish()
                env.select_rows(rows)
                params = select_rows(params, chosen if len(first(params)) == len(chosen) else rows)
                moments = rollout(common(env, len(alive)), *self._acting(params, env))
        watch.finish()
        returns[alive], lengths[alive] = (x.view(-1, *returns.shape[1:]) for x in sums[:2])
        return returns, lengths

    def _acting(self, params: Params, env: Env) -> tuple[NetworkPolicy, State]:
        """Return the greedy policies of the individuals, and the state in which they begin."""
        policy = NetworkPolicy(self.learner, params)
        return policy, policy.start(env.obs.shape[1], torch.Generator())

    # -- compiled

    def _ahead(self, env: Env, params: Params, sums: Sums) -> Sums | None:
        """Take the next steps by compiled code; None, and no step, where there is none, or their results are not finite."""
        physics = env.physics() if self.compile else None
        if physics is None or (self.code is not None and self.code.failed):
            return None
        if self.code is None:
            self.code = Compiled(self._unrolled(physics), "the episodes of individuals")
        arguments = (params, physics.constants, physics.starts, physics.state, *sums)
        run = self.code.prepared(*arguments)
        if self.code.failed:
            return None
        state, largest, *after = timed("compiled code")(run)(*arguments)
        if not float(largest) <= LARGEST:  # false for nan, too
            return None
        physics.advance(state, UNROLLED)
        return Sums(*after)

    def _unrolled(self, physics: Physics) -> Callable[..., tuple[Tensor, ...]]:
        """Return the function to compile, of weights, constants, starts, states and sums."""
        observe, dynamics = physics.observe, physics.dynamics

        def steps(params: Params, constants: Task, starts: Tensor, state: Tensor, *sums: Tensor) -> tuple[Tensor, ...]:
            after, num = Sums(*sums), len(first(params))
            largest = sums[0].new_zeros(())
            for _ in range(UNROLLED):
                obs = observe(state)
                policy = self.learner.policy(params, obs if len(obs) == num else obs.reshape(num, -1, *obs.shape[2:]))
                action = policy.mode()
                action = action if len(obs) == num else action.reshape(*obs.shape[:2], *action.shape[2:])
                state, reward, terminated = dynamics(state, action, constants)
                after = after.after(reward, terminated)
                for numbers in (observe(state), reward):
                    if numbers.is_floating_point():
                        largest = torch.maximum(largest, numbers.abs().amax())
                state = torch.where(terminated.unsqueeze(-1), starts, state)
            return state, largest, *after

        return steps


def common(env: Env, copies: int) -> Env | CommonEnv:
    """Return the environments, in which P copies of the same rows draw the same random numbers if they draw any."""
    return CommonEnv(env, copies) if env.draws else env


class CommonEnv:
    """An environment in which P copies of the same rows draw the same random numbers."""

    def __init__(self, env: Env, copies: int):
        self.env, self.copies, self.obs = env, copies, env.obs

    def step(self, action: Tensor) -> Step:
        """Act in every environment."""
        with CommonRandomNumbers(self.copies):
            step = self.env.step(action)
        self.obs = step.obs
        return step


def _kept(individuals: int, living: int, tasks: int, compiled: bool) -> int:
    """Return how many individuals stay in a batch; all where it does not pay to drop some.

    A selection copies the batch, hence at most log P of them. BLAS rounds a single row differently.
    """
    if not compiled:
        return living if 2 * living <= individuals and living * tasks > 1 else individuals
    while individuals // FEWER >= living and individuals // FEWER * tasks > 1:
        individuals //= FEWER
    return individuals


def _filled(lives: Tensor, num: int) -> Tensor:
    """Return the mask ``[P]`` of ``num`` individuals: of all that live, and of the first of the others."""
    order = lives.long().argsort(descending=True, stable=True)
    return torch.zeros_like(lives).index_fill_(0, order[:num], True)
