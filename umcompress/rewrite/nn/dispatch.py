"""Dispatch tokens to experts and combine the results: sort by expert, one product per group of rows, sum per token.

Shapes: T tokens, E experts, k of them chosen by each token, M = T*k rows sorted by expert, K in, N out.
On an accelerator nothing here synchronises: all counts stay on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from umcompress.rewrite.nn import cpu


@dataclass(frozen=True)
class ExpertOrder:
    """The pairs of token and chosen expert as M rows sorted by expert.

    `expert`, `token`, `pair` (M,): of each row; `position` (T, k): the row of each pair; `ends` (E,) int32:
    where each expert's rows end.
    """

    expert: Tensor
    token: Tensor
    pair: Tensor
    position: Tensor
    ends: Tensor


def sort_by_expert(chosen: Tensor, experts: int) -> ExpertOrder:
    """chosen (T, k) -> the order of its T*k pairs by expert, then by token."""
    expert, pair = torch.sort(chosen.reshape(-1), stable=True)
    position = torch.empty_like(pair)
    position[pair] = torch.arange(pair.shape[0], device=pair.device)
    numbers = torch.arange(experts, device=chosen.device)
    ends = torch.searchsorted(expert, numbers, right=True, out_int32=True)
    token = torch.div(pair, chosen.shape[1], rounding_mode="floor")
    return ExpertOrder(expert, token, pair, position.view_as(chosen), ends)


def spread_linear(x: Tensor, weights: Sequence[Tensor], order: ExpertOrder) -> tuple[Tensor, ...]:
    """Apply to each token the linears of its experts: x (T, K), weights of (E, N, K) -> for each weight (M, N)."""
    x, *weights = _autocast(x, *weights)
    return _Spread.apply(x, order, *weights)  # type: ignore[no-any-return, no-untyped-call]


def sum_linear(rows: Tensor, weight: Tensor, order: ExpertOrder) -> Tensor:
    """Apply a linear of each row's expert and sum per token: rows (M, K), weight (E, N, K) -> (T, N)."""
    rows, weight = _autocast(rows, weight)
    return _Sum.apply(rows, weight, order)  # type: ignore[no-any-return, no-untyped-call]


def _autocast(*tensors: Tensor) -> list[Tensor]:
    kind = tensors[0].device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return [tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors]
    return list(tensors)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: ExpertOrder, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.order = order
        ctx.save_for_backward(x, *weights)
        return tuple(_spread(x, weights, order))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, *weights = ctx.saved_tensors
        grads = tuple(grad.contiguous() for grad in grads)
        to_x = _sum(grads, [weight.mT for weight in weights], ctx.order) if ctx.needs_input_grad[0] else None
        wanted = [grad for grad, needed in zip(grads, ctx.needs_input_grad[2:], strict=True) if needed]
        made = iter(_outer(wanted, x, ctx.order) if wanted else ())
        return to_x, None, *(next(made) if needed else None for needed in ctx.needs_input_grad[2:])


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, order: ExpertOrder) -> Tensor:
        ctx.order = order
        ctx.save_for_backward(rows, weight)
        return _sum([rows], [weight], order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        rows, weight = ctx.saved_tensors
        grad = grad.contiguous()
        to_rows = _spread(grad, [weight.mT], ctx.order)[0] if ctx.needs_input_grad[0] else None
        to_weight = _outer([rows], grad, ctx.order, rows_last=True)[0] if ctx.needs_input_grad[1] else None
        return to_rows, to_weight, None


def _on_cpu(x: Tensor) -> bool:
    return x.is_cpu


def _grouped(x: Tensor, *sides: int) -> bool:
    """Whether grouped_mm runs as one kernel: bfloat16 whose rows start at multiples of 16 bytes."""
    return x.is_cuda and x.dtype == torch.bfloat16 and all(side % 8 == 0 for side in sides)


def _spread(x: Tensor, weights: Sequence[Tensor], order: ExpertOrder) -> list[Tensor]:
    """The kernel of `spread_linear`, and of the gradient of `sum_linear` with respect to its rows."""
    if _on_cpu(x):
        spread: list[Tensor] = cpu.spread_products(x, weights, order.token, order.ends)
        return spread
    if _grouped(x, *weights[0].shape[1:]):
        rows = x.index_select(0, order.token)
        return [F.grouped_mm(rows, weight.mT, offs=order.ends) for weight in weights]
    return [torch.einsum("tk,enk->ten", x, w)[order.token, order.expert] for w in weights]


def _sum(rows: Sequence[Tensor], weights: Sequence[Tensor], order: ExpertOrder) -> Tensor:
    """The kernel of `sum_linear`, and of the gradient of `spread_linear` with respect to x."""
    if _on_cpu(rows[0]):
        out: Tensor = cpu.sum_products(rows, weights, order.token, order.ends, order.position.shape[0])
        return out
    if _grouped(rows[0], *weights[0].shape[1:]):
        made = [F.grouped_mm(row, weight.mT, offs=order.ends) for row, weight in zip(rows, weights, strict=True)]
        flat = sum(made[1:], made[0]).index_select(0, order.position.reshape(-1))
        return flat.view(*order.position.shape, flat.shape[1]).sum(1)
    full = [torch.einsum("tek,enk->tn", _all_experts(row, order), w) for row, w in zip(rows, weights, strict=True)]
    return sum(full[1:], full[0])


def _outer(rows: Sequence[Tensor], x: Tensor, order: ExpertOrder, rows_last: bool = False) -> list[Tensor]:
    """Gradients with respect to weights: rows of (M, N), x (T, K) -> (E, N, K), or (E, K, N) if `rows_last`."""
    if _on_cpu(x):
        outer: list[Tensor] = cpu.outer_products(rows, x, order.token, order.ends, rows_last)
        return outer
    if _grouped(x, x.shape[1], *(row.shape[1] for row in rows)):
        mine = x.index_select(0, order.token)
        pairs = [(mine, row) if rows_last else (row, mine) for row in rows]
        return [F.grouped_mm(left.mT, right, offs=order.ends) for left, right in pairs]
    into = "ten,tk->ekn" if rows_last else "ten,tk->enk"
    return [torch.einsum(into, _all_experts(row, order), x) for row in rows]


def _all_experts(rows: Tensor, order: ExpertOrder) -> Tensor:
    """Scatter rows (M, N) to (T, E, N), zero where an expert was not chosen: no grouped product, but no loop either."""
    full = rows.new_zeros(order.position.shape[0], order.ends.shape[0], rows.shape[1])
    return full.index_put((order.token, order.expert), rows)
