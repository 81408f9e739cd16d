"""Fit routers in closed form, and refit consumers for the experts that a router leaves inactive.

Shapes: x (H,) enters the feed-forward, h (I,) its consumer W (H, I) with bias b; E experts; N_e = ||W_e h_e||.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from umcompress.passes import _repair

if TYPE_CHECKING:
    from umcompress.extend import Contributions, Routed

# Softmax weights differ from 1 by about this much: the logits choose, and hardly weight.
NEARLY_EVEN = 0.01


def ridge(found: Contributions, damping: float) -> tuple[Tensor, Tensor, float]:
    """B = Cov(N, x) (Cov(x) + l I)^-1 with intercept a, l = damping * mean diag: (B (E, H), a (E,), R^2).

    What all experts have in common is taken out: it changes no choice, and costs digits in bfloat16.
    """
    second, mean = found.second[:-1, :-1], found.second[-1, :-1]
    spread, height = found.cross[:-1], found.cross[-1]
    moment = second - torch.outer(mean, mean)
    solved = _repair.solve(moment, spread - torch.outer(mean, height), moment.diagonal(), damping)
    intercept = height - mean @ solved
    fitted = _explained(found, torch.cat([solved, intercept[None]]))
    return (solved - solved.mean(1, keepdim=True)).T, intercept - intercept.mean(), fitted


def ridge_logits(found: Contributions, damping: float) -> tuple[Tensor, float]:
    """The same without an intercept, as logits of a softmax that is nearly even: (weight (E, H), R^2)."""
    second = found.second[:-1, :-1]
    solved = _repair.solve(second, found.cross[:-1], second.diagonal(), damping)
    fitted = _explained(found, torch.cat([solved, torch.zeros_like(solved[:1])]))
    centred = solved - solved.mean(1, keepdim=True)
    size = float((centred * (second @ centred)).sum(0).mean().clamp(min=0).sqrt())
    return centred.T * (NEARLY_EVEN / size if size > 0 else 0.0), fitted


def _explained(found: Contributions, fit: Tensor) -> float:
    """The share of the variance of N that fit (H + 1, E) explains, all experts together."""
    missed = found.square - 2 * (fit * found.cross).sum(0) + (fit * (found.second @ fit)).sum(0)
    variance = found.square - found.cross[-1].square()
    return 1 - float(missed.sum() / variance.sum().clamp(min=1e-300))


def refit(
    weight: Tensor, bias: Tensor | None, found: Routed, damping: float
) -> tuple[Tensor, Tensor | None, float]:
    """W' = W + Cov(r, g) (Cov(g) + l I)^-1 with g the channels left on, r = W (h - g), l = damping * mean diag.

    A consumer with a bias is refitted with it; without one, second moments take the place of covariances.
    Returns (W', b', mean ||what is still missing||^2).
    """
    device, double = weight.device, torch.float64
    moment, cross = found.second.to(device, double), found.cross.to(device, double)
    mean, lost, missing = found.mean.to(device), found.lost.to(device), found.lost_square
    if bias is not None:
        moment = moment.addr_(mean, mean, alpha=-1)
        cross = cross.addr_(lost, mean, alpha=-1)
        missing -= float(lost.square().sum())
    change = _repair.solve(moment, cross.T, moment.diagonal(), damping).T
    missing += float((change @ moment * change).sum() - 2 * (change * cross).sum())
    refitted = (weight.double() + change).to(weight.dtype)
    shifted = None if bias is None else (bias.double() + lost - change @ mean).to(bias.dtype)
    return refitted, shifted, missing
