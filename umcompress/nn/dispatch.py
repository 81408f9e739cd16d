"""Bring tokens to their experts and back: sort by expert, one product per group of rows, sum per token.

Shapes: T tokens, E experts, k of them chosen by each token, M = T*k rows sorted by expert, K in, N out.
`ends` (E,) int32: where each expert's rows end. Everything stays on the device: nothing asks for a count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Order:
    """Where each pair of token and chosen expert went. `expert`, `token` (M,); `position` (T, k); `ends` (E,)."""

    expert: Tensor
    token: Tensor
    position: Tensor
    pair: Tensor
    ends: Tensor


def sort_by_expert(chosen: Tensor, experts: int) -> Order:
    """chosen (T, k) -> the order that lays each expert's tokens next to each other."""
    expert, pair = torch.sort(chosen.reshape(-1), stable=True)
    position = torch.empty_like(pair)
    position[pair] = torch.arange(pair.numel(), device=pair.device)
    numbers = torch.arange(experts, device=chosen.device)
    ends = torch.searchsorted(expert, numbers, right=True, out_int32=True)
    token = torch.div(pair, max(chosen.shape[1], 1), rounding_mode="floor")
    return Order(expert, token, position.view_as(chosen), pair, ends)


class _Spread(torch.autograd.Function):
    """x (T, K) -> (M, K): a row for each pair. The gradient gathers, as `_Collect` does: no atomic adds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, position: Tensor) -> Tensor:
        ctx.save_for_backward(position)
        return x.index_select(0, token)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (position,) = ctx.saved_tensors
        return _sum_of_rows(grad, position), None, None


class _Collect(torch.autograd.Function):
    """rows (M, N) -> (T, N): the sum of each token's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, token: Tensor, position: Tensor) -> Tensor:
        ctx.save_for_backward(token)
        return _sum_of_rows(rows, position)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (token,) = ctx.saved_tensors
        return grad.index_select(0, token), None, None


def _sum_of_rows(rows: Tensor, position: Tensor) -> Tensor:
    return rows.index_select(0, position.reshape(-1)).view(*position.shape, rows.shape[1]).sum(1)


def spread(x: Tensor, order: Order) -> Tensor:
    """x (T, K) -> (M, K), a row for each pair of token and expert, sorted by expert."""
    return _Spread.apply(x, order.token, order.position)  # type: ignore[no-any-return, no-untyped-call]


def collect(rows: Tensor, order: Order) -> Tensor:
    """rows (M, N) -> (T, N): the sum over each token's experts."""
    return _Collect.apply(rows, order.token, order.position)  # type: ignore[no-any-return, no-untyped-call]


class _GroupedProduct(torch.autograd.Function):
    """rows (M, K), weight (E, N, K) -> (M, N): each row times the matrix of its expert."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight, ends)
        return _products(rows, weight.mT, ends)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        rows, weight, ends = ctx.saved_tensors
        grad = grad.contiguous()
        to_rows = _products(grad, weight, ends) if ctx.needs_input_grad[0] else None
        to_weight = _outer_products(grad, rows, ends) if ctx.needs_input_grad[1] else None
        return to_rows, to_weight, None


def grouped_linear(rows: Tensor, weight: Tensor, bias: Tensor | None, order: Order) -> Tensor:
    """rows (M, K) sorted by expert, weight (E, N, K), bias (E, N) -> (M, N)."""
    kind = rows.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        rows, weight, bias = rows.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    out: Tensor = _GroupedProduct.apply(rows, weight, order.ends)  # type: ignore[no-untyped-call]
    return out if bias is None else out + bias.index_select(0, order.expert)


def _products(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """rows (M, K), weight (E, K, N) -> (M, N)."""
    if rows.is_cuda:
        return F.grouped_mm(rows, weight, offs=ends)
    return torch.ops.umcompress.products(rows, weight, ends)  # type: ignore[no-any-return]


def _outer_products(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """left (M, N), right (M, K) -> (E, N, K): the sum over each expert's rows."""
    if left.is_cuda:
        return F.grouped_mm(left.mT, right, offs=ends)
    return torch.ops.umcompress.outer_products(left, right, ends)  # type: ignore[no-any-return]


@torch.library.custom_op("umcompress::products", mutates_args=())
def _products_on_cpu(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    out = rows.new_empty(rows.shape[0], weight.shape[2])
    start = 0
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            torch.mm(rows[start:end], weight[expert], out=out[start:end])
        start = end
    return out


@_products_on_cpu.register_fake
def _(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[2])


@torch.library.custom_op("umcompress::outer_products", mutates_args=())
def _outer_products_on_cpu(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    out = left.new_empty(ends.shape[0], left.shape[1], right.shape[1])
    start = 0
    for expert, end in enumerate(ends.tolist()):
        torch.mm(left[start:end].mT, right[start:end], out=out[expert])
        start = end
    return out


@_outer_products_on_cpu.register_fake
def _(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    return left.new_empty(ends.shape[0], left.shape[1], right.shape[1])
