"""The backward pass of a flat row's attention on CPU: tiles and the result's gradient -> those of what went in.

PyTorch's own backward kernel takes 1.2 ms a call, however small, and 4.8 ns a number in bfloat16, since it does without
the matrix units that its forward uses (Xeon with AMX, one thread, November 2026). So the weights are computed again as
one matrix product a tile, exp(scaling * query * key - log_sum), and all else follows by matrix products. Subtracting
first and rounding after keeps them as exact as the dtype allows: what is subtracted goes through the product as
columns of its own, in as many parts as the dtype needs to hold it (``_columns``). Gradients in bfloat16 are 0.6 % off
those of float64, PyTorch's kernel's 0.3 %. A layer of K=4 512/256, 4 heads of 64, two groups: 34 ms instead of 47 ms.
"""

# ruff: noqa: N815 - shape suffixes: H key heads, G query heads to each, T tokens, D numbers a head

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Weights computed at once; more leave the cache, fewer cost calls. Found with benchmarks/train_vs_trl.py.
MOST_NUMBERS = 2**19
FEWEST_QUERIES = 64


@dataclass(frozen=True, slots=True)
class Tile:
    """Queries and the keys that they attend to in one call."""

    queries: slice
    keys: slice
    is_own: bool
    """Whether the keys are of the queries' own segment: every query is in just one of these."""
    is_causal: bool
    mask: Tensor | None
    """To add to queries times keys."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Part of a tile, or several tiles of one length side by side."""

    queries: slice
    keys: slice
    num_tiles: int
    first_query: int
    """Place in the tile of the first query, for the causal rule."""
    tile: Tile


@dataclass(frozen=True, slots=True)
class Operands:
    """Of a whole row: H' key heads, G query heads to each, T tokens, D numbers a head and the columns behind them."""

    query_HGTD: Tensor
    """Last columns: minus the logarithm of a query's sum of exponentials, divided by the scaling."""
    key_HTD: Tensor
    """Last columns: 1."""
    value_HTD: Tensor
    """Last columns: 1."""
    grad_HGTD: Tensor
    """Of the result. Last columns: minus its product with the result."""

    @classmethod
    def of(
        cls, query: Tensor, key: Tensor, value: Tensor, out: Tensor, grad: Tensor, log_sum: Tensor, scaling: float
    ) -> "Operands":
        """Return the operands of (H', G, T, D) tensors; keys and values are alike for all G."""
        key, value = key[:, 0], value[:, 0]
        delta_HGT = (grad.to(log_sum.dtype) * out).sum(-1)
        columns = _columns(log_sum / -scaling, query.dtype)
        ones = key.new_ones(()).expand(*key.shape[:2], columns.shape[-1])
        return cls(
            query_HGTD=torch.cat([query, columns], -1),
            key_HTD=torch.cat([key, ones], -1),
            value_HTD=torch.cat([value, ones], -1),
            grad_HGTD=torch.cat([grad, _columns(-delta_HGT, query.dtype)], -1),
        )


def tiled_gradients(
    operands: Operands, tiles: Sequence[Tile], scaling: float, into: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Write the gradients of queries, keys and values, of shapes (H', G, T, D) and (H', T, D), into ``into``."""
    into_query, into_key, into_value = into
    into_key.zero_()
    into_value.zero_()
    num_heads, num_shared, _, head_dim = into_query.shape
    # Reused by every piece, so they stay in the cache.
    scratch = [operands.key_HTD.new_empty(0) for _ in range(2)]
    for piece in _pieces(tiles, num_heads * num_shared):
        grad_query, grad_key, grad_value = _piece_gradients(operands, piece, scaling, scratch, head_dim)
        put = Tensor.copy_ if piece.tile.is_own else Tensor.add_
        put(into_query[:, :, piece.queries], grad_query)
        into_key[:, piece.keys].add_(grad_key)
        into_value[:, piece.keys].add_(grad_value)


def _columns(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Return numbers as columns of a dtype that add up to them: three in bfloat16, one where nothing is lost."""
    parts = []
    rest = numbers
    while rest.dtype != dtype and len(parts) < 2:
        parts.append(rest.to(dtype))
        rest = rest - parts[-1]
    return torch.stack([*parts, rest.to(dtype)], -1)


def _pieces(tiles: Sequence[Tile], num_heads: int) -> Iterator[_Piece]:
    """Yield pieces of about ``MOST_NUMBERS`` weights; of a causal tile only those with a key to see."""
    first = 0
    while first < len(tiles):
        tile = tiles[first]
        num_queries, num_keys = tile.queries.stop - tile.queries.start, tile.keys.stop - tile.keys.start
        last = first + 1
        room = MOST_NUMBERS // (num_heads * num_queries * num_keys)
        while last < len(tiles) and last - first < room and _lies_behind(tiles[last], tiles[last - 1]):
            last += 1
        if last > first + 1:
            span = slice(tile.queries.start, tiles[last - 1].queries.stop)
            yield _Piece(span, span, last - first, 0, tile)
        else:
            rows = max(FEWEST_QUERIES, MOST_NUMBERS // (num_heads * num_keys))
            # Equal pieces, and at least two of a causal tile: the first has no use for the later half of the keys.
            num_pieces = max(-(-num_queries // rows), 2 if tile.is_causal and num_queries > 2 * FEWEST_QUERIES else 1)
            rows = -(-num_queries // num_pieces)
            for start in range(0, num_queries, rows):
                stop = min(start + rows, num_queries)
                queries = slice(tile.queries.start + start, tile.queries.start + stop)
                keys = slice(tile.keys.start, tile.keys.start + stop) if tile.is_causal else tile.keys
                yield _Piece(queries, keys, 1, start, tile)
        first = last


def _lies_behind(tile: Tile, before: Tile) -> bool:
    """Whether two segments of one length stand side by side and follow one plain rule."""
    same_rule = tile.is_causal == before.is_causal and tile.mask is before.mask is None
    same_length = tile.queries.stop - tile.queries.start == before.queries.stop - before.queries.start
    return tile.is_own and before.is_own and same_rule and same_length and tile.queries.start == before.queries.stop


def _piece_gradients(
    operands: Operands, piece: _Piece, scaling: float, scratch: list[Tensor], head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a piece adds to the gradients of its queries, keys and values."""
    num_heads, num_shared, _, width = operands.query_HGTD.shape
    rows = num_shared * (piece.queries.stop - piece.queries.start) // piece.num_tiles
    query, grad = (
        tensor[:, :, piece.queries].unflatten(2, (piece.num_tiles, -1)).transpose(1, 2).reshape(-1, rows, width)
        for tensor in (operands.query_HGTD, operands.grad_HGTD)
    )
    key, value = (
        tensor[:, piece.keys].reshape(num_heads * piece.num_tiles, -1, width)
        for tensor in (operands.key_HTD, operands.value_HTD)
    )
    # Keys by queries: two of the three products below then need no transposed copy.
    shape = (key.shape[0], key.shape[1], query.shape[1])
    weights, change = _views(scratch, shape)
    torch.baddbmm(weights.new_zeros(1), key, query.mT, beta=0, alpha=scaling, out=weights).exp_()
    _hide(weights.unflatten(2, (num_shared, -1)).transpose(1, 2), piece)
    torch.bmm(value, grad.mT, out=change).mul_(weights)
    key, query, grad = key[..., :head_dim], query[..., :head_dim], grad[..., :head_dim]
    grad_query = torch.bmm(change.mT, key).mul_(scaling)
    grad_key = torch.bmm(change, query).mul_(scaling)
    grad_value = torch.bmm(weights, grad)
    of_queries = grad_query.view(num_heads, piece.num_tiles, num_shared, -1, head_dim).transpose(1, 2).flatten(2, 3)
    return of_queries, grad_key.view(num_heads, -1, head_dim), grad_value.view(num_heads, -1, head_dim)


def _views(scratch: list[Tensor], shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Return two tensors of a shape out of the scratch space, which grows to the largest."""
    numel = shape[0] * shape[1] * shape[2]
    if scratch[0].numel() < numel:
        scratch[:] = [tensor.new_empty(numel) for tensor in scratch]
    return scratch[0][:numel].view(shape), scratch[1][:numel].view(shape)


def _hide(weights: Tensor, piece: _Piece) -> None:
    """Set to 0, in place, the weights of keys that a query does not see; they may be anything, infinite too."""
    if piece.tile.is_causal:
        weights.triu_(-piece.first_query)
    elif piece.tile.mask is not None:
        num_queries = weights.shape[-1]
        mask = piece.tile.mask[piece.first_query : piece.first_query + num_queries]
        weights.masked_fill_(mask.mT != 0, 0.0)
