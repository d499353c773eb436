"""The backward pass of the CPU kernel in half precision, by matrix products.

PyTorch's own backward kernel takes 1.2 ms a call, however small, and 4.8 ns a number in bfloat16, because it does not
use the matrix units that its forward pass uses (Xeon with AMX, one thread, November 2026). So the attention weights are
recomputed as one matrix product a tile, exp(scaling * query * key - log_sum), and everything else follows by matrix
products. The log-sum is subtracted before the product is rounded, which keeps the weights as exact as the dtype allows:
it enters the product as extra columns, in as many parts as the dtype needs to hold it (``_columns``).

Gradients in bfloat16 are 0.6 % off those of float64, those of PyTorch's kernel 0.3 %. A layer at K=4, 512 prompt tokens
and 256 completion tokens, 4 heads of 64, two groups: 34 ms instead of 47 ms.
"""

# ruff: noqa: N815 - shape suffixes: H key heads, G query heads for each, T tokens, D head dimension

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Attention weights computed at once: more do not fit the cache, fewer need more calls (benchmarks/train_vs_trl.py).
MOST_NUMBERS = 2**20
FEWEST_QUERIES = 64
TOKENS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Tile:
    """Queries and the keys that they attend to in one call."""

    queries: slice
    keys: slice
    is_own: bool
    """Whether the keys belong to the queries' own segment; every query is in exactly one such tile."""
    is_causal: bool
    mask: Tensor | None
    """Additive, of queries times keys; None for no mask."""


@dataclass(frozen=True, slots=True)
class _Span:
    """Tokens of several tiles, or of part of one: ``num_tiles`` runs of ``length`` tokens, ``step`` apart."""

    start: int
    length: int
    num_tiles: int
    step: int

    def of(self, tensor_HTD: Tensor) -> Tensor:
        """Return a view of shape (..., tiles, length, D) of a tensor of shape (..., T, D)."""
        rows = tensor_HTD.narrow(-2, self.start, (self.num_tiles - 1) * self.step + self.length)
        return rows.unfold(-2, self.length, self.step).transpose(-1, -2)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Part of a tile, or several tiles of one shape."""

    queries: _Span
    keys: _Span
    first_query: int
    """Index of the first query in its tile, for the causal mask."""
    tile: Tile


@dataclass(frozen=True, slots=True)
class Operands:
    """Operands of a whole sequence: H' key heads, G query heads for each, T tokens, D plus the extra columns."""

    query_HGTD: Tensor
    """Extra columns: minus a query's log-sum of exponentials, divided by the scaling."""
    key_HTD: Tensor
    """Extra columns: 1."""
    value_HTD: Tensor
    """Extra columns: 1."""
    grad_HGTD: Tensor
    """Gradient of the result. Extra columns: minus its product with the result."""

    @classmethod
    def of(
        cls, query: Tensor, key: Tensor, value: Tensor, out: Tensor, grad: Tensor, log_sum: Tensor, scaling: float
    ) -> "Operands":
        """Return the operands of (H', G, T, D) tensors; keys and values are equal for all G."""
        key, value = key[:, 0], value[:, 0]
        # Some hundred tokens at a time: float32 copies of the whole sequence would not fit the cache.
        chunks = zip(grad.split(TOKENS_AT_ONCE, dim=2), out.split(TOKENS_AT_ONCE, dim=2), strict=True)
        delta_HGT = torch.cat([(g.to(log_sum.dtype) * o.to(log_sum.dtype)).sum(-1) for g, o in chunks], dim=2)
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
    # Every piece reuses the same memory, so it stays in the cache.
    scratch = [operands.key_HTD.new_empty(0) for _ in range(2)]
    for piece in _pieces(tiles, num_heads * num_shared):
        grad_query, grad_key, grad_value = _piece_gradients(operands, piece, scaling, scratch, head_dim)
        put = Tensor.copy_ if piece.tile.is_own else Tensor.add_
        put(piece.queries.of(into_query), grad_query)
        piece.keys.of(into_key).add_(grad_key)
        piece.keys.of(into_value).add_(grad_value)


def _columns(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Return numbers as columns of a dtype that add up to them: three in bfloat16, one if the dtype holds them."""
    parts = []
    rest = numbers
    while rest.dtype != dtype and len(parts) < 2:
        parts.append(rest.to(dtype))
        rest = rest - parts[-1]
    return torch.stack([*parts, rest.to(dtype)], -1)


def _pieces(tiles: Sequence[Tile], num_heads: int) -> Iterator[_Piece]:
    """Yield pieces of about ``MOST_NUMBERS`` attention weights."""
    first = 0
    while first < len(tiles):
        tile = tiles[first]
        num_queries, num_keys = _length(tile.queries), _length(tile.keys)
        most = min(len(tiles) - first, MOST_NUMBERS // (num_heads * num_queries * num_keys))
        num_equal = 1
        while num_equal < most and _continues(tiles[first : first + num_equal + 1]):
            num_equal += 1
        if num_equal > 1:
            step = tiles[first + 1].queries.start - tile.queries.start
            queries = _Span(tile.queries.start, num_queries, num_equal, step)
            yield _Piece(queries, _Span(tile.keys.start, num_keys, num_equal, step), 0, tile)
        else:
            yield from _split_tile(tile, num_heads)
        first += num_equal


def _split_tile(tile: Tile, num_heads: int) -> Iterator[_Piece]:
    """Yield a tile in pieces of equal numbers of queries; a causal tile's pieces have only the keys that they see."""
    num_queries, num_keys = _length(tile.queries), _length(tile.keys)
    most = max(FEWEST_QUERIES, MOST_NUMBERS // (num_heads * num_keys))
    # At least two pieces of a causal tile: the first does not need the later half of the keys.
    num_pieces = max(-(-num_queries // most), 2 if tile.is_causal and num_queries > 2 * FEWEST_QUERIES else 1)
    rows = -(-num_queries // num_pieces)
    for start in range(0, num_queries, rows):
        stop = min(start + rows, num_queries)
        seen = stop if tile.is_causal else num_keys
        queries = _Span(tile.queries.start + start, stop - start, 1, 1)
        yield _Piece(queries, _Span(tile.keys.start, seen, 1, 1), start, tile)


def _continues(tiles: Sequence[Tile]) -> bool:
    """Whether the last tile continues those before it: same shape, no mask, same rule, one step further."""
    before, tile = tiles[-2:]
    step, first_step = (b.queries.start - a.queries.start for a, b in ((before, tile), (tiles[0], tiles[1])))
    return (
        tile.mask is before.mask is None
        and (tile.is_own, tile.is_causal) == (before.is_own, before.is_causal)
        and _length(tile.queries) == _length(before.queries)
        and _length(tile.keys) == _length(before.keys)
        and step == first_step == tile.keys.start - before.keys.start
    )


def _length(span: slice) -> int:
    return span.stop - span.start


def _piece_gradients(
    operands: Operands, piece: _Piece, scaling: float, scratch: list[Tensor], head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a piece's part of the gradients of its queries, (H', G, tiles, length, D), its keys and its values."""
    num_heads, num_shared, _, width = operands.query_HGTD.shape
    num_tiles = piece.queries.num_tiles
    query, grad = (
        piece.queries.of(tensor).transpose(1, 2).reshape(num_heads * num_tiles, -1, width)
        for tensor in (operands.query_HGTD, operands.grad_HGTD)
    )
    key, value = (
        piece.keys.of(tensor).reshape(num_heads * num_tiles, -1, width)
        for tensor in (operands.key_HTD, operands.value_HTD)
    )
    # Keys by queries: so two of the three products below need no transposed copy.
    weights, change = _views(scratch, (key.shape[0], key.shape[1], query.shape[1]))
    torch.baddbmm(weights.new_zeros(1), key, query.mT, beta=0, alpha=scaling, out=weights).exp_()
    _hide(weights.unflatten(2, (num_shared, -1)).transpose(1, 2) if num_shared > 1 else weights, piece)
    torch.bmm(value, grad.mT, out=change).mul_(weights)
    key, query, grad = key[..., :head_dim], query[..., :head_dim], grad[..., :head_dim]
    grad_query = torch.bmm(change.mT, key).mul_(scaling)
    grad_key = torch.bmm(change, query).mul_(scaling)
    grad_value = torch.bmm(weights, grad)
    return (
        grad_query.view(num_heads, num_tiles, num_shared, -1, head_dim).transpose(1, 2),
        grad_key.view(num_heads, num_tiles, -1, head_dim),
        grad_value.view(num_heads, num_tiles, -1, head_dim),
    )


def _views(scratch: list[Tensor], shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Return two tensors of a shape as views of the scratch memory, which grows to the largest shape."""
    numel = shape[0] * shape[1] * shape[2]
    if scratch[0].numel() < numel:
        scratch[:] = [tensor.new_empty(numel) for tensor in scratch]
    return scratch[0][:numel].view(shape), scratch[1][:numel].view(shape)


def _hide(weights: Tensor, piece: _Piece) -> None:
    """Set to 0, in place, the weights of keys that a query does not see; before, they may even be infinite."""
    if piece.tile.is_causal:
        weights.triu_(-piece.first_query)
    elif piece.tile.mask is not None:
        num_queries = weights.shape[-1]
        mask = piece.tile.mask[piece.first_query : piece.first_query + num_queries]
        weights.masked_fill_(mask.mT != 0, 0.0)
