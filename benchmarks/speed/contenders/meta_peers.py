"""The meta-gradient of MAML-DQN by ``higher`` and by TorchOpt, one task after another, with the losses of metarl.

Both hold the targets of the inner steps fixed for the outer gradient, as a user of these libraries would; metarl differentiates
through them and so does a little more. The loss is the same to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import meta_learning
import torch
from serving import Contender, serve
from torch import Tensor, nn

Batch = dict[str, Tensor]
Network = Callable[[Tensor], Tensor]


def network(hidden: int, seed: int) -> nn.Sequential:
    """A network with the shared weights."""
    sizes = ((meta_learning.OBS, hidden), (hidden, hidden), (hidden, meta_learning.ACTIONS))
    first, second, head = (nn.Linear(*size) for size in sizes)
    arrays = meta_learning.weights(hidden, seed)
    for name, layer in (("hidden.0", first), ("hidden.1", second), ("head", head)):
        layer.load_state_dict({kind: torch.as_tensor(arrays[f"{name}.{kind}"]) for kind in ("weight", "bias")})
    return nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), head)


def batches(tasks: int, steps: int, envs: int, seed: int, device: str) -> list[Batch]:
    """The shared experience, task by task ``[T N, ...]``."""
    arrays = meta_learning.experience(tasks, steps, envs, seed)
    tensors = {name: torch.as_tensor(value, device=device).flatten(1, 2) for name, value in arrays.items()}
    return [{name: value[task] for name, value in tensors.items()} for task in range(tasks)]


def loss(online: Network, value: Tensor, batch: Batch) -> Tensor:
    """The squared error of Q-learning with the values of the next observations."""
    target = batch["reward"] * meta_learning.REWARD_SCALE + meta_learning.GAMMA * ~batch["terminated"] * value
    error = online(batch["obs"]).gather(1, batch["action"][:, None])[:, 0] - target
    return (error.square() * batch["weight"]).sum() / batch["weight"].sum()


def support_loss(online: Network, batch: Batch) -> Tensor:
    with torch.no_grad():
        value = online(batch["next_obs"]).max(1).values
    return loss(online, value, batch)


def query_loss(online: Network, slow: Network, batch: Batch) -> Tensor:
    """With double Q-learning: the adapted network chooses, the adapted slow copy values."""
    with torch.no_grad():
        choice = online(batch["next_obs"]).argmax(1, keepdim=True)
        value = slow(batch["next_obs"]).gather(1, choice)[:, 0]
    return loss(online, value, batch)


def by_higher(online: nn.Module, slow: nn.Module, steps: int, supports: list[Batch], queries: list[Batch]) -> Tensor:
    import higher

    optimizer, slow_optimizer = (torch.optim.SGD(net.parameters(), lr=meta_learning.RATE) for net in (online, slow))
    total = torch.zeros(())
    for support, query in zip(supports, queries, strict=True):
        with (
            higher.innerloop_ctx(online, optimizer, copy_initial_weights=False) as (adapted, inner),
            higher.innerloop_ctx(slow, slow_optimizer, track_higher_grads=False) as (slow_adapted, slow_inner),
        ):
            for _ in range(steps):
                inner.step(support_loss(adapted, support))
                slow_inner.step(support_loss(slow_adapted, support))
            part = query_loss(adapted, slow_adapted, query) / len(queries)
            part.backward()
            total += part.detach()
    return total


def by_torchopt(online: nn.Module, slow: nn.Module, steps: int, supports: list[Batch], queries: list[Batch]) -> Tensor:
    import torchopt

    inner, slow_inner = (torchopt.MetaSGD(net, lr=meta_learning.RATE) for net in (online, slow))
    before, slow_before = (torchopt.extract_state_dict(net, by="reference") for net in (online, slow))
    losses = []
    for support, query in zip(supports, queries, strict=True):
        for _ in range(steps):
            inner.step(support_loss(online, support))
            slow_inner.step(support_loss(slow, support))
        losses.append(query_loss(online, slow, query))
        torchopt.recover_state_dict(online, before)
        torchopt.recover_state_dict(slow, slow_before)
    total = torch.stack(losses).mean()
    total.backward()
    return total.detach()


LIBRARIES = {"higher": by_higher, "torchopt": by_torchopt}


def build(options: dict[str, Any]) -> Contender:
    tasks, steps, hidden, device = (options[k] for k in ("tasks", "steps", "hidden", "device"))
    online, slow = (network(hidden, seed).to(device) for seed in (0, 1))
    supports = batches(tasks, options["length"], options["envs"], 2, device)
    queries = batches(tasks, 1, options["query"], 3, device)
    library = LIBRARIES[options["library"]]

    value = 0.0

    def run(count: int) -> float:
        nonlocal value
        for _ in range(count):
            online.zero_grad()
            found = library(online, slow, steps, supports, queries)
        value = float(found)  # waits for a GPU
        return float(count)

    return Contender(run, extras=lambda: {"loss": value})


torch.set_num_threads(1)
serve(build, ["higher", "torchopt", "torch"])
