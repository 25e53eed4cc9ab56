"""Optimisers of the inner loop, on the stacked weights of many learners; each holds its own gradient statistics.

| rule | update of a weight w with gradient g |
|---|---|
| SGD | w - alpha g |
| Adam | w - alpha m / (sqrt(v) + eps) with the unbiased running means m of g and v of g² (Kingma 2015, arXiv:1412.6980) |
| learned | w - alpha exp(0.5 s) d, where a small network computes direction d and size s from Adam's statistics and more |

The learned rule follows the idea of Metz 2020 (arXiv:2009.11243): one small network is applied to every weight. Its inputs are
normalised, so that the scale of the loss does not matter.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from typing_extensions import override

from metarl_cli.interfaces import Params, State
from metarl_cli.networks.stacked import broadcast_rows, select_rows
from metarl_cli.progress import timed


class InnerOptimizer(Protocol):
    """A rule for successive updates of stacked weights ``[R, ...]``."""

    def step(self, params: Params, gradients: Params, rates: Params, progress: float = 0.0) -> Params:
        """Return the weights after an update.

        Args:
            params: all weights; a weight without a gradient does not change.
            gradients: the gradients, for some of the weights.
            rates: a learning rate for each gradient, which broadcasts against it.
            progress: share of the lifetime that has passed.
        """
        ...

    def select_rows(self, rows: Tensor) -> None:
        """Replace the gradient statistics by copies of rows ``rows [R]``."""
        ...

    def state_dict(self) -> State:
        """Return the gradient statistics."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Restore the gradient statistics from :meth:`state_dict`."""
        ...


class SGD(InnerOptimizer):
    """Plain gradient descent."""

    @override
    def step(self, params: Params, gradients: Params, rates: Params, progress: float = 0.0) -> Params:
        return {k: p - rates[k] * gradients[k] if k in gradients else p for k, p in params.items()}

    @override
    def select_rows(self, rows: Tensor) -> None:
        pass

    @override
    def state_dict(self) -> State:
        return {}

    @override
    def load_state_dict(self, state: State) -> None:
        pass


class Adam(InnerOptimizer):
    """Adam (Kingma and Ba 2015, arXiv:1412.6980)."""

    def __init__(self, eps: float = 1e-8):
        self.eps, self.count = eps, 0
        self.first: Params = {}
        self.second: Params = {}

    @override
    def step(self, params: Params, gradients: Params, rates: Params, progress: float = 0.0) -> Params:
        self.count += 1
        b1, b2, updated = 0.9, 0.999, dict(params)
        for k, g in gradients.items():
            self.first[k] = b1 * self.first.get(k, torch.zeros_like(g)) + (1 - b1) * g
            self.second[k] = b2 * self.second.get(k, torch.zeros_like(g)) + (1 - b2) * g.square()
            first, second = self.first[k] / (1 - b1**self.count), self.second[k] / (1 - b2**self.count)
            updated[k] = params[k] - rates[k] * first / (second.sqrt() + self.eps)
        return updated

    @override
    def select_rows(self, rows: Tensor) -> None:
        self.first, self.second = select_rows(self.first, rows), select_rows(self.second, rows)

    @override
    def state_dict(self) -> State:
        return {"first": self.first, "second": self.second, "count": self.count}

    @override
    def load_state_dict(self, state: State) -> None:
        self.first, self.second, self.count = dict(state["first"]), dict(state["second"]), state["count"]


class Learned(InnerOptimizer):
    """An update rule computed by a small network, one network for each row.

    Inputs for every weight, all normalised: the gradient and its running means over about 2, 10 and 100 steps, divided by the
    root of the running mean square; the weight, divided by the root mean square of its tensor; the progress; whether it is a
    bias; whether it belongs to the head; 1.

    Args:
        weights: ``direct [R, F]``, ``inner [R, F, U]``, ``outer [R, U, 2]``: d = direct·x + outer·tanh(inner·x), and s.
    """

    MEMORIES = (0.5, 0.9, 0.99)  # decay of the running means: about 2, 10 and 100 steps
    FEATURES = 9
    ADAM = 2  # index of the input that equals Adam's direction, the running mean of decay 0.9
    LARGEST_GRADIENT = 5  # bound of the normalised gradient: a spike would reach sqrt(1 / (1 - decay)), about 32
    SMALLEST_SIZE = 1e-3  # added to the root mean square of a tensor, which is 0 for fresh biases
    LARGEST_SIZE = 6  # bound of s: the factor exp(0.5 s) stays within e^-3 to e^3, 0.05 to 20, so that no update explodes

    def __init__(self, weights: Params, decay: float = 0.999, eps: float = 1e-8):
        self.weights, self.decay, self.eps, self.count = weights, decay, eps, 0
        self.means: list[Params] = [{} for _ in self.MEMORIES]
        self.square: Params = {}

    @override
    def step(self, params: Params, gradients: Params, rates: Params, progress: float = 0.0) -> Params:
        self.count += 1
        updated = dict(params)
        for k, g in gradients.items():
            self.square[k] = self.decay * self.square.get(k, torch.zeros_like(g)) + (1 - self.decay) * g.square()
            root = (self.square[k] / (1 - self.decay**self.count)).sqrt() + self.eps
            means = []
            for b, memory in zip(self.MEMORIES, self.means, strict=True):
                memory[k] = b * memory.get(k, torch.zeros_like(g)) + (1 - b) * g
                means.append(memory[k] / (1 - b**self.count) / root)
            w = params[k]
            size = broadcast_rows(w.flatten(1).square().mean(1).sqrt(), w)
            flags = (progress, float(k.endswith(("bias", "shift"))), float(k.startswith(("head", "value"))), 1.0)
            g_now = (g / root).clamp(-self.LARGEST_GRADIENT, self.LARGEST_GRADIENT)
            inputs = [g_now, *means, w / (size + self.SMALLEST_SIZE), *(torch.full_like(w, f) for f in flags)]
            updated[k] = w - rates[k] * self._update(torch.stack([x.flatten(1) for x in inputs], -1)).reshape(w.shape)
        return updated

    def _update(self, x: Tensor) -> Tensor:
        """Return the updates ``[R, n]`` of n weights, before the learning rate, from the inputs ``[R, n, F]``."""
        direction, size = (torch.tanh(x @ self.weights["inner"]) @ self.weights["outer"]).unbind(-1)
        direction = direction + (x @ self.weights["direct"][..., None])[..., 0]
        return direction * torch.exp(0.5 * size.clamp(-self.LARGEST_SIZE, self.LARGEST_SIZE))

    @override
    def select_rows(self, rows: Tensor) -> None:
        self.means = [select_rows(memory, rows) for memory in self.means]
        self.square = select_rows(self.square, rows)

    @override
    def state_dict(self) -> State:
        return {"means": self.means, "square": self.square, "count": self.count}

    @override
    def load_state_dict(self, state: State) -> None:
        self.means = [dict(memory) for memory in state["means"]]
        self.square, self.count = dict(state["square"]), state["count"]


@timed("backward")
def backward(loss: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """Return the gradient of a scalar in each of the weights, contiguous as they are: fused Adam reads no strides."""
    return [gradient.contiguous() for gradient in torch.autograd.grad(loss, weights)]


def clip_rows(gradients: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """Clip each row's gradient, ``[R, n]``, to the norm ``largest``; also return the norms ``[R]`` before clipping."""
    norms = torch.linalg.vector_norm(gradients, dim=1)
    return gradients * (largest / norms.clamp(min=1e-12)).clamp(max=1.0)[:, None], norms
