"""Which channels a refitted consumer can do without: the optimal brain surgeon, by whole columns.

Shapes: W (H, I) consumer weight, h (I,) activations; second = E[h h'] (I, I), mean = E[h] (I,), both float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Up to this width the best channels to remove are looked for in at least 512 rounds, above it in 128, which at 4096
# channels takes half as long and leaves 0.1 % more error.
WIDE = 2048
TINY = torch.finfo(torch.float64).tiny
# Of less damping a channel, where samples are fewer than channels, the inverse and what is taken from it are rounding.
ROUNDING = 100 * torch.finfo(torch.float64).eps


def removal_errors(
    weight: Tensor, second: Tensor, mean: Tensor | None, damping: float, rounds: int | None = None
) -> Tensor:
    """(I,): what is left of error in the output, over the output's own size, once a channel and all below it are gone.

    With C the inverse of `second` + l I over the channels still there, l = damping * mean diagonal, removing a set P
    and refitting the others adds tr(W_:P C_PP^-1 W_:P') to the error, changes W by -W_:P C_PP^-1 C_P: and C by
    -C_:P C_PP^-1 C_P: (Hassibi and Stork 1993; for columns ZipLM, arXiv 2302.04089). In each round those go whose
    ||W_:j||^2 / C_jj is least. Given a mean, the consumer has a bias, which is refitted too, and `second` is taken
    about the mean. Besides `second` it takes twice its memory.
    """
    w, width = weight.double().cpu().clone(), weight.shape[1]
    gram = second.clone() if mean is None else torch.addr(second, mean, mean, alpha=-1)
    strength = max(damping, ROUNDING * width) * float(gram.diagonal().mean().clamp(min=0))
    errors, whole = torch.zeros(width, dtype=torch.float64), float(((w @ gram) * w).sum())
    if strength == 0.0:
        return errors
    inverse = _inverse(gram, strength)
    del gram
    there, place, total = torch.ones(width, dtype=torch.bool), torch.arange(width), 0.0
    batch = -(-width // (rounds or (512 if width <= WIDE else 128)))
    for _ in range(-(-width // batch)):
        prices = (w.square().sum(0) / inverse.diagonal()).masked_fill(~there, torch.inf)
        gone = prices.argsort(stable=True)[: min(batch, int(there.sum()))]
        rise = _remove(w, inverse, gone)
        share = prices[gone].cumsum(0)
        errors[place[gone]] = total + rise * share / share[-1].clamp(min=TINY)
        total += rise
        there[gone] = False
        if 2 * int(there.sum()) < len(there):
            w, inverse, place = w[:, there], inverse[there][:, there], place[there]
            there = there[there]
    return errors / max(whole, TINY)


def _remove(w: Tensor, inverse: Tensor, gone: Tensor) -> float:
    """Take columns out of W and C, in place: zeros are left, on C's diagonal a one. Returns the rise of the error."""
    rows = inverse[gone]
    solved = torch.linalg.solve(rows[:, gone], torch.cat([rows, w[:, gone].T], dim=1))
    change, lost = solved[:, : len(inverse)], solved[:, len(inverse) :]
    rise = float((w[:, gone].T * lost).sum())
    w.addmm_(w[:, gone], change, alpha=-1)
    inverse.addmm_(rows.T, change, alpha=-1)
    w[:, gone] = 0
    inverse[gone] = 0
    inverse[:, gone] = 0
    inverse[gone, gone] = 1
    return rise


def _inverse(gram: Tensor, strength: float) -> Tensor:
    """Of gram + l I, with l the strength, doubled until the factorisation succeeds, as for the refit. Changes gram."""
    own = gram.diagonal().clone()
    while True:
        gram.diagonal().copy_(own + strength)
        factor, failed = torch.linalg.cholesky_ex(gram)
        if not bool(failed):
            return torch.cholesky_inverse(factor)
        strength *= 2
