"""Repair a consumer after channels were removed: adjust its weight and bias to compensate for them.

Shapes: W (H, I) consumer weight, b (H,) its bias, h (I,) activations; S kept, P removed channels;
second = E[h h'] (I, I), mean = E[h] (I,), both float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Of H that are taken out at a time.
ROWS = 2048


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

    Besides H it takes the memory of H_SS, its factor, and a few W: H is not copied as a whole.
    """
    keep = torch.tensor(list(kept))
    removed = _removed(weight.shape[1], kept)
    w = weight.double().cpu()
    gram, target, diagonal = second[keep[:, None], keep], _product(second, keep, removed, w), second.diagonal()
    if bias is not None:
        gram.addr_(mean[keep], mean[keep], alpha=-1)
        target.addr_(mean[keep], w[:, removed] @ mean[removed], alpha=-1)
        diagonal = diagonal - mean.square()
    change = solve(gram, target, diagonal, damping).T
    refitted = w[:, keep] + change
    if bias is None:
        return refitted.to(weight.dtype), None
    shifted = bias.double().cpu() + w @ mean - refitted @ mean[keep]
    return refitted.to(weight.dtype), shifted.to(weight.dtype)


def _product(second: Tensor, keep: Tensor, removed: Tensor, w: Tensor) -> Tensor:
    """H_SP W_P', some rows at a time: (S, H)."""
    wanted = w[:, removed].T
    parts = (keep[start : start + ROWS] for start in range(0, len(keep), ROWS))
    return torch.cat([second[rows[:, None], removed] @ wanted for rows in parts])


def solve(gram: Tensor, target: Tensor, diagonal: Tensor, damping: float) -> Tensor:
    """(gram + l I) X = target by Cholesky, l = damping * mean diagonal; l doubles until the factorisation succeeds.

    Dead channels leave zero rows in gram and target: l keeps the system definite and their change zero.
    Where nothing is alive there is nothing to learn from, and the change is zero.
    """
    strength = damping * float(diagonal.mean().clamp(min=0))
    if strength == 0.0:
        return torch.zeros_like(target)
    own = gram.diagonal().clone()
    while True:
        # On `gram` itself, which may be most of the memory, and taken back.
        gram.diagonal().copy_(own + strength)
        factor, failed = torch.linalg.cholesky_ex(gram)
        gram.diagonal().copy_(own)
        if not bool(failed):
            # Not cholesky_solve, which copies the factor.
            half = torch.linalg.solve_triangular(factor, target, upper=False)
            found: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
            return found
        strength *= 2
