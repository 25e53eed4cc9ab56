"""Optimisers of the inner loop, on weights of many learners at once; each keeps what it remembers of the gradients itself.

| rule | update of a weight w with gradient g |
|---|---|
| SGD | w - alpha g |
| Adam | w - alpha m / (sqrt(v) + eps) with the unbiased running means m of g and v of g² (Kingma 2015, arXiv:1412.6980) |
| learned | w - alpha exp(0.5 s) d, where a small network says the direction d and the size s from what Adam knows and more |

The learned rule is in the spirit of Metz 2020 (arXiv:2009.11243): the same small network for every weight; its inputs have no
scale, so that losses of other sizes look the same to it.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from metarl_cli.interfaces import Params, State
from metarl_cli.networks.stacked import broadcast_rows, select_rows


class InnerOptimizer(Protocol):
    """One update of stacked weights ``[R, ...]`` after another."""

    def step(self, params: Params, gradients: Params, rates: Params, progress: float = 0.0) -> Params:
        """The weights after an update.

        Args:
            params: all weights; those without a gradient stay.
            gradients: of some of them.
            rates: a learning rate for each gradient, that broadcasts against it.
            progress: share of the lifetime that has passed.
        """
        ...

    def select_rows(self, rows: Tensor) -> None:
        """Go on with the memory of these rows ``[R]`` in the place of all."""
        ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


class SGD:
    """Plain gradient descent."""

    def step(self, params: Params, gradients: Params, rates: Params, progress: float = 0.0) -> Params:
        return {k: p - rates[k] * gradients[k] if k in gradients else p for k, p in params.items()}

    def select_rows(self, rows: Tensor) -> None:
        pass

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        pass


class Adam:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980)."""

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        self.betas, self.eps, self.count = betas, eps, 0
        self.first: Params = {}
        self.second: Params = {}

    def step(self, params: Params, gradients: Params, rates: Params, progress: float = 0.0) -> Params:
        self.count += 1
        (b1, b2), moved = self.betas, dict(params)
        for k, g in gradients.items():
            self.first[k] = b1 * self.first.get(k, torch.zeros_like(g)) + (1 - b1) * g
            self.second[k] = b2 * self.second.get(k, torch.zeros_like(g)) + (1 - b2) * g.square()
            first, second = self.first[k] / (1 - b1**self.count), self.second[k] / (1 - b2**self.count)
            moved[k] = params[k] - rates[k] * first / (second.sqrt() + self.eps)
        return moved

    def select_rows(self, rows: Tensor) -> None:
        self.first, self.second = select_rows(self.first, rows), select_rows(self.second, rows)

    def state_dict(self) -> State:
        return {"first": self.first, "second": self.second, "count": self.count}

    def load_state_dict(self, state: State) -> None:
        self.first, self.second, self.count = dict(state["first"]), dict(state["second"]), state["count"]


class Learned:
    """The update by a small network, one for each row.

    Inputs for every weight, all without scale: the gradient and its running means over about 2, 10 and 100 steps, over the
    root of the mean square; the weight, divided by the root of its tensor's mean square; the progress; whether it is a bias,
    whether it belongs to the head; 1.

    Args:
        weights: ``direct [R, F]``, ``inner [R, F, U]``, ``outer [R, U, 2]``: d = direct·x + outer·tanh(inner·x), and s.
    """

    MEMORIES = (0.5, 0.9, 0.99)
    FEATURES = 9
    ADAM = 2  # the input that alone is Adam's direction

    def __init__(self, weights: Params, decay: float = 0.999, eps: float = 1e-8):
        self.weights, self.decay, self.eps, self.count = weights, decay, eps, 0
        self.means: list[Params] = [{} for _ in self.MEMORIES]
        self.square: Params = {}

    def step(self, params: Params, gradients: Params, rates: Params, progress: float = 0.0) -> Params:
        self.count += 1
        moved = dict(params)
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
            inputs = [(g / root).clamp(-5, 5), *means, w / (size + 1e-3), *(torch.full_like(w, f) for f in flags)]
            moved[k] = w - rates[k] * self._update(torch.stack([x.flatten(1) for x in inputs], -1)).reshape(w.shape)
        return moved

    def _update(self, x: Tensor) -> Tensor:
        """``[R, n]`` from the inputs ``[R, n, F]``."""
        direction, size = (torch.tanh(x @ self.weights["inner"]) @ self.weights["outer"]).unbind(-1)
        direction = direction + (x @ self.weights["direct"][..., None])[..., 0]
        return direction * torch.exp(0.5 * size.clamp(-6, 6))

    def select_rows(self, rows: Tensor) -> None:
        self.means = [select_rows(memory, rows) for memory in self.means]
        self.square = select_rows(self.square, rows)

    def state_dict(self) -> State:
        return {"means": self.means, "square": self.square, "count": self.count}

    def load_state_dict(self, state: State) -> None:
        self.means = [dict(memory) for memory in state["means"]]
        self.square, self.count = dict(state["square"]), state["count"]


def clip_rows(gradients: Params, largest: float) -> tuple[Params, Tensor]:
    """Scale each row's gradient ``[R, ...]`` down to the ``largest`` norm; returns the norms ``[R]`` before too."""
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0)
    shrink = (largest / norms.clamp(min=1e-12)).clamp(max=1.0)
    return {name: g * broadcast_rows(shrink, g) for name, g in gradients.items()}, norms
