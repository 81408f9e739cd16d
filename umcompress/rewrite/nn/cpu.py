"""The products of `dispatch` on a CPU: one matrix product for each expert that has tokens.

They are registered as operators, so that a compiled graph calls them as a whole. Each expert's tokens are gathered
just before its product and added just after it: the (T*k, H) copy that would otherwise be made costs more
than the products of a small expert. Shapes as in `dispatch`; `token` (M,) is the token of each sorted row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

ONEDNN_IS_FASTER = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
# Multiplications below which oneDNN's setup costs more than it saves.
_LARGE = 1 << 20
# Rows up to this length are short for `one_token_sum`.
_SHORT = 512


def linear_product(x: Tensor, weight: Tensor) -> Tensor:
    """x (T, K), weight (N, K) -> (T, N), as the products of experts are made. No gradient."""
    return _product(x.contiguous(), weight.contiguous())


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a (n, K), b (N, K) -> a b' (n, N)."""
    if _through_onednn(a, b):
        return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")  # type: ignore[no-any-return]
    return torch.mm(a, b.t())


def _product_into(out: Tensor, a: Tensor, b: Tensor) -> None:
    """The first rows of a b', as many as `out` has."""
    if _through_onednn(a, b):
        out.copy_(_first(_product(a, b), out.shape[0]))
    else:
        torch.mm(_first(a, out.shape[0]), b.t(), out=out)


def _through_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether to multiply by oneDNN: on AMD processors with AVX-512 MKL's float32 products take twice as long.

    On those with AVX2 alone MKL is the faster of both by a tenth.
    """
    large = ONEDNN_IS_FASTER and min(a.shape) > 1 and a.numel() * b.shape[0] >= _LARGE
    return large and a.dtype == torch.float32 and torch._C._has_mkldnn and bool(torch.backends.mkldnn.enabled)


def _groups(ends: Tensor, rows: int, dtype: torch.dtype) -> Iterator[tuple[int, int, int, int]]:
    """(expert, start, end, padded end) of each expert that has rows.

    oneDNN prepares each size once and remembers only so many: for it sizes from 64 up are rounded up to 8 in each
    octave, by taking rows of the next expert along.
    """
    rounded = ONEDNN_IS_FASTER or dtype == torch.bfloat16
    start = 0
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            step = 1 << max((end - start).bit_length() - 4, 0) if rounded and end - start > 64 else 1
            yield expert, start, end, min(start - (start - end) // step * step, rows)
        start = end


def _first(rows: Tensor, count: int) -> Tensor:
    return rows if rows.shape[0] == count else rows[:count]


@torch.library.custom_op("umcompress::spread_products", mutates_args=())
def spread_products(x: Tensor, weights: Sequence[Tensor], token: Tensor, ends: Tensor) -> list[Tensor]:
    """x (T, K), weights of (E, N, K) -> for each weight (M, N): each token times the matrices of its experts."""
    outs = [x.new_empty(token.shape[0], weight.shape[1]) for weight in weights]
    for expert, start, end, padded in _groups(ends, token.shape[0], x.dtype):
        mine = x.index_select(0, token[start:padded])
        for weight, out in zip(weights, outs, strict=True):
            _product_into(out[start:end], mine, weight[expert])
    return outs


@spread_products.register_fake
def _(x: Tensor, weights: Sequence[Tensor], token: Tensor, ends: Tensor) -> list[Tensor]:
    return [x.new_empty(token.shape[0], weight.shape[1]) for weight in weights]


@torch.library.custom_op("umcompress::sum_products", mutates_args=())
def sum_products(
    rows: Sequence[Tensor], weights: Sequence[Tensor], token: Tensor, ends: Tensor, tokens: int
) -> Tensor:
    """rows of (M, K), weights of (E, N, K) -> (T, N): the sum over each token's experts, and over the pairs."""
    exact = torch.promote_types(rows[0].dtype, torch.float32)
    out = rows[0].new_zeros(tokens, weights[0].shape[1], dtype=exact)
    for expert, start, end, padded in _groups(ends, token.shape[0], rows[0].dtype):
        made = _product(rows[0][start:padded], weights[0][expert]).to(exact)
        for row, weight in zip(rows[1:], weights[1:], strict=True):
            made += _product(row[start:padded], weight[expert])
        out.index_add_(0, token[start:end], _first(made, end - start))
    return out.to(rows[0].dtype)


@sum_products.register_fake
def _(rows: Sequence[Tensor], weights: Sequence[Tensor], token: Tensor, ends: Tensor, tokens: int) -> Tensor:
    return rows[0].new_empty(tokens, weights[0].shape[1])


@torch.library.custom_op("umcompress::outer_products", mutates_args=())
def outer_products(
    rows: Sequence[Tensor], x: Tensor, token: Tensor, ends: Tensor, rows_last: bool
) -> list[Tensor]:
    """rows of (M, N), x (T, K) -> for each (E, N, K), or (E, K, N) if `rows_last`: sums over an expert's tokens."""
    outs = [_empty_outer(row, x, ends, rows_last) for row in rows]
    without = torch.diff(ends, prepend=ends.new_zeros(1)).eq(0).nonzero()[:, 0]
    for out in outs:
        out[without] = 0
    for expert, start, end, padded in _groups(ends, token.shape[0], x.dtype):
        mine = x.index_select(0, token[start:padded])
        if padded > end:
            mine[end - start :] = 0
        for row, out in zip(rows, outs, strict=True):
            left, right = (mine, row[start:padded]) if rows_last else (row[start:padded], mine)
            _product_into(out[expert], left.t(), right.t())
    return outs


@outer_products.register_fake
def _(rows: Sequence[Tensor], x: Tensor, token: Tensor, ends: Tensor, rows_last: bool) -> list[Tensor]:
    return [_empty_outer(row, x, ends, rows_last) for row in rows]


def _empty_outer(row: Tensor, x: Tensor, ends: Tensor, rows_last: bool) -> Tensor:
    sides = (x.shape[1], row.shape[1]) if rows_last else (row.shape[1], x.shape[1])
    return row.new_empty(ends.shape[0], *sides)


def one_token_products(x: Tensor, weight: Tensor, numbers: Sequence[int]) -> Tensor:
    """x (K,), weight (E, N, K), the token's k experts -> (k, N). No gradient; no weight is copied."""
    out = x.new_empty(len(numbers), weight.shape[1])
    for number, row in zip(numbers, out.unbind(), strict=True):
        torch.mv(weight[number], x, out=row)
    return out


def one_token_sum(rows: Tensor, weight: Tensor, numbers: Sequence[int]) -> Tensor:
    """rows (k, K), weight (E, N, K) -> (N,): the sum over the experts. No gradient; no weight is copied."""
    each = [(weight[number], row) for number, row in zip(numbers, rows.unbind(), strict=True)]
    if rows.dtype == torch.float32 and weight.shape[2] <= _SHORT:
        # Short rows come from memory twice as fast one product at a time as through gemv.
        sums = torch.mul(*each[0])
        for matrix, row in each[1:]:
            sums.addcmul_(matrix, row)
        return sums.sum(1)
    if rows.dtype == torch.bfloat16:
        # gemv of bfloat16 takes five times as long as a product of one row; the experts are summed as for many tokens.
        return torch.cat([torch.mm(row[None], matrix.t()) for matrix, row in each]).float().sum(0).to(rows.dtype)
    out = torch.mv(*each[0])
    for matrix, row in each[1:]:
        out.addmv_(matrix, row)
    return out
