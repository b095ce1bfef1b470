"""Optimise hidden matrices with Muon (Jordan 2024): momentum, made nearly orthogonal. Adam serves the rest."""

from collections import defaultdict

import torch
from torch import Tensor


def orthogonal(g: Tensor, steps: int = 5) -> Tensor:
    """Bring all singular values to about 1 by five Newton-Schulz steps.  (K, rows, columns) -> the same"""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.mT if g.shape[1] > g.shape[2] else g
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return x.mT if g.shape[1] > g.shape[2] else x


class Muon:
    """The optimiser, with Nesterov momentum. Matrices of one shape are handled together."""

    def __init__(self, parameters: list[Tensor], momentum: float = 0.95, decay: float = 0.01) -> None:
        self.groups: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for p in parameters:
            self.groups[p.shape].append(p)
        self.moments = {shape: torch.zeros(len(ps), *shape) for shape, ps in self.groups.items()}
        self.momentum, self.decay = momentum, decay

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update the parameters that have a gradient."""
        for shape, ps in self.groups.items():
            trained = [i for i, p in enumerate(ps) if p.grad is not None]
            if not trained:
                continue
            g = torch.stack([ps[i].grad for i in trained])  # type: ignore[misc]
            m = self.moments[shape][trained].lerp_(g, 1 - self.momentum)
            self.moments[shape][trained] = m
            update = orthogonal(g.lerp(m, self.momentum)) * max(1.0, shape[0] / shape[1]) ** 0.5
            for i, u in zip(trained, update, strict=True):
                ps[i].mul_(1 - lr * self.decay).sub_(u, alpha=lr)
