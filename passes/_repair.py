"""Change what is left of a consumer so that it stands in for the channels that it lost.

Shapes: W (H, I) consumer weight, b (H,) its bias, h (I,) activations; S kept, P removed channels;
second = E[h h'] (I, I), mean = E[h] (I,), both float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _removed(width: int, kept: Sequence[int]) -> Tensor:
    gone = torch.ones(width, dtype=torch.bool)
    gone[list(kept)] = False
    return gone.nonzero().flatten()


def mean_into_bias(weight: Tensor, bias: Tensor | None, mean: Tensor, kept: Sequence[int]) -> Tensor:
    """b + W_P m_P: the average of what was removed is added back (FLAP, arXiv 2312.11983)."""
    removed = _removed(weight.shape[1], kept)
    lost = weight.double().cpu()[:, removed] @ mean[removed]
    return (lost if bias is None else bias.double().cpu() + lost).to(weight.dtype)


def least_squares(
    weight: Tensor, bias: Tensor | None, second: Tensor, mean: Tensor, kept: Sequence[int], damping: float
) -> tuple[Tensor, Tensor | None]:
    """W' = W_S + W_P H_PS (H_SS + l I)^-1 with l = damping * mean diag H: the damped refit in delta form.

    Strong damping shrinks it to plain removal, never to zero.  A consumer with a bias is refitted with it:
    then H is the covariance and b' = b + W m - W' m_S.  Returns (W', b').
    """
    keep = torch.tensor(list(kept))
    removed = _removed(weight.shape[1], kept)
    w = weight.double().cpu()
    moment = second if bias is None else second - torch.outer(mean, mean)
    change = solve(moment[keep][:, keep], moment[keep][:, removed] @ w[:, removed].T, moment, damping).T
    refitted = w[:, keep] + change
    if bias is None:
        return refitted.to(weight.dtype), None
    shifted = bias.double().cpu() + w @ mean - refitted @ mean[keep]
    return refitted.to(weight.dtype), shifted.to(weight.dtype)


def solve(gram: Tensor, target: Tensor, moment: Tensor, damping: float) -> Tensor:
    """(gram + l I) X = target by Cholesky; l doubles until the factorisation succeeds.

    Dead channels leave zero rows in gram and target: l keeps the system definite and their change zero.
    Where nothing is alive there is nothing to learn from, and the change is zero.
    """
    strength = damping * float(moment.diagonal().mean().clamp(min=0))
    if strength == 0.0:
        return torch.zeros_like(target)
    while True:
        damped = gram.clone()
        damped.diagonal().add_(strength)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not bool(failed):
            return torch.cholesky_solve(target, factor)
        strength *= 2
