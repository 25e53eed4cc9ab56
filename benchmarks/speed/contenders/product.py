"""The arithmetic limit: float32 products of two matrices of 1024 x 1024, in floating-point operations."""

from __future__ import annotations

from typing import Any

import torch
from serving import Contender, serve

SIZE = 1024


def build(options: dict[str, Any]) -> Contender:
    a, b = torch.randn(2, SIZE, SIZE, device=options["device"])

    def run(count: int) -> float:
        for _ in range(count):
            product = a @ b
        float(product[0, 0])  # waits for a GPU
        return count * 2.0 * SIZE**3

    return Contender(run)


torch.set_num_threads(1)
serve(build, ["torch"])
