"""One seed makes every random stream, each derived by name: adding a stream, or drawing more from one, moves no other."""

from __future__ import annotations

import zlib

import numpy as np
import torch

from metarl_cli.types import State


def _sequence(seed: int, *names: str) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=tuple(zlib.crc32(name.encode()) for name in names))


def numpy_rng(seed: int, *names: str) -> np.random.Generator:
    """The numpy stream of this name (task parameters, resampling)."""
    return np.random.default_rng(_sequence(seed, *names))


def torch_rng(seed: int, *names: str, device: torch.device | str = "cpu") -> torch.Generator:
    """The torch stream of this name on ``device`` (environments, exploration, initialisation, minibatches)."""
    word = int(_sequence(seed, *names).generate_state(1, np.uint64)[0]) >> 1  # manual_seed takes 63 bits
    return torch.Generator(device=device).manual_seed(word)


class Streams(dict[str, torch.Generator]):
    """The named torch streams one algorithm draws from; saved and restored with it."""

    def __init__(self, seed: int, *names: str, device: torch.device | str = "cpu"):
        super().__init__({name: torch_rng(seed, name, device=device) for name in names})

    def state_dict(self) -> State:
        return {name: rng.get_state() for name, rng in self.items()}

    def load_state_dict(self, state: State) -> None:
        for name, rng in self.items():
            rng.set_state(state[name].cpu())
