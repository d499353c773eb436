"""Tokens table: memory-mapped tokenised groups (`TokenGroup`), by row number.

A group's prompt is stored once and each completion after it: ``prompt_ids + completion_ids[k]`` is the plain
tokenisation of prompt and completion k. Files are uncompressed Arrow, so that a random group is a few numpy views
into the page cache and nothing is read that no batch asks for; the price is disk, about three times zstd.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pairwright.data.tokens.column_files import ID_BYTES, ColumnChunk, MappedColumns, mapped_columns
from pairwright.data.tokens.token_group import GroupColumns, GroupSizes, TokenGroup
from pairwright.errors import StoreError
from pairwright.records import TOKENS_SCHEMA, TOKENS_SCHEMA_V1

# Record batches of 256 groups whose views stay: a view takes 5 kB and 60 us to make.
VIEWS_KEPT = 4096
MAPPED_FROM = 500_000
"""Groups from which on the columns are memory-mapped: fewer take 17 MB a rank."""
BYTES_PER_GROUP = 34
BATCHES_AT_ONCE = 64
"""Record batches whose columns are written at once."""

logger = logging.getLogger(__name__)

Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]


class _Views(NamedTuple):
    """Numpy views of one record batch; offsets index into values, as Arrow lays lists out."""

    group_id: pa.Array
    subset: pa.Array
    prompt_offsets: Int32s
    prompt_ids: Int32s
    completion_offsets: Int32s
    token_offsets: Int32s
    completion_ids: Int32s
    num_characters: Int32s
    completion_index: NDArray[np.int16]
    pair_offsets: Int32s
    chosen: NDArray[np.int16]
    rejected: NDArray[np.int16]
    weight: NDArray[np.float32]
    margin: NDArray[np.float32]
    more_subsets: pa.Array | None

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> "_Views":
        prompts, completions = batch.column("prompt_ids"), batch.column("completion_ids")
        pairs = batch.column("pairs")
        chosen, rejected, weight, margin = pairs.values.flatten()
        return cls(
            group_id=batch.column("group_id"),
            subset=batch.column("subset"),
            prompt_offsets=prompts.offsets.to_numpy(),
            prompt_ids=prompts.values.to_numpy(),
            completion_offsets=completions.offsets.to_numpy(),
            token_offsets=completions.values.offsets.to_numpy(),
            completion_ids=completions.values.values.to_numpy(),
            num_characters=batch.column("num_characters").values.to_numpy(),
            completion_index=batch.column("completion_index").values.to_numpy(),
            pair_offsets=pairs.offsets.to_numpy(),
            chosen=chosen.to_numpy(),
            rejected=rejected.to_numpy(),
            weight=weight.to_numpy(),
            margin=margin.to_numpy(zero_copy_only=False),
            more_subsets=batch.column("more_subsets") if "more_subsets" in batch.schema.names else None,
        )

    def group(self, row: int) -> TokenGroup:
        prompt = slice(self.prompt_offsets[row], self.prompt_offsets[row + 1])
        first, last = self.completion_offsets[row], self.completion_offsets[row + 1]
        bounds = self.token_offsets[first : last + 1].tolist()
        pairs = slice(self.pair_offsets[row], self.pair_offsets[row + 1])
        return TokenGroup(
            group_id=self.group_id[row].as_py(),
            subset=self.subset[row].as_py(),
            prompt_ids=self.prompt_ids[prompt],
            completion_ids=[self.completion_ids[a:b] for a, b in itertools.pairwise(bounds)],
            num_characters=self.num_characters[first:last],
            completion_index=self.completion_index[first:last],
            chosen_P=self.chosen[pairs].astype(np.int64),
            rejected_P=self.rejected[pairs].astype(np.int64),
            weight_P=self.weight[pairs],
            margin_P=self.margin[pairs],
            more_subsets=() if self.more_subsets is None else tuple(self.more_subsets[row].as_py() or ()),
        )


def groups_to_table(groups: Sequence[TokenGroup], splits: Sequence[str]) -> pa.Table:
    """Return groups, each with its split, as a table in TOKENS_SCHEMA; what ``TokenTable`` gives back."""
    completions = _lists([ids for group in groups for ids in group.completion_ids])
    of_completions = _offsets([len(group.completion_ids) for group in groups])
    pairs = pa.StructArray.from_arrays(
        [
            pa.array(_joined([group.chosen_P for group in groups], np.int16)),
            pa.array(_joined([group.rejected_P for group in groups], np.int16)),
            pa.array(_joined([group.weight_P for group in groups], np.float32)),
            pa.array(_joined([group.margin_P for group in groups], np.float32), from_pandas=True),
        ],
        fields=list(TOKENS_SCHEMA.field("pairs").type.value_type),
    )
    indices = _joined([group.completion_index for group in groups], np.int16)
    num_characters = _joined([group.num_characters for group in groups], np.int32)
    columns = [
        pa.array([group.group_id for group in groups], pa.string()),
        pa.array(splits, pa.string()),
        pa.array([group.subset for group in groups], pa.string()),
        _lists([group.prompt_ids for group in groups]),
        pa.ListArray.from_arrays(of_completions, completions),
        pa.ListArray.from_arrays(of_completions, pa.array(indices)),
        pa.ListArray.from_arrays(of_completions, pa.array(num_characters)),
        pa.ListArray.from_arrays(_offsets([len(group.chosen_P) for group in groups]), pairs),
        pa.array([list(group.more_subsets) or None for group in groups], pa.list_(pa.string())),
    ]
    return pa.Table.from_arrays(columns, schema=TOKENS_SCHEMA)


class TokenTable:
    """Groups of a tokens table by row number, in the order of its files; pickles as its paths.

    Raises:
        StoreError: if a file is missing or is not one that ``tokenize_groups`` made.
    """

    def __init__(self, paths: Sequence[Path], *, mapped_from: int = MAPPED_FROM) -> None:
        self._paths = tuple(paths)
        self._mapped_from = mapped_from
        self._readers = [_open(path) for path in self._paths]
        self._batch_rows = [_batch_rows(reader) for reader in self._readers]
        rows = [_num_rows(*each) for each in zip(self._readers, self._batch_rows, strict=True)]
        self._starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
        self._views: dict[tuple[int, int], _Views] = {}

    def __reduce__(self) -> tuple[type["TokenTable"], tuple[tuple[Path, ...]]]:
        return TokenTable, (self._paths,)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def group(self, i: int) -> TokenGroup:
        """Return group ``i``; its arrays are views and stay valid as long as they are held."""
        views, row = self._locate(i)
        return views.group(row)

    def group_id(self, i: int) -> str:
        views, row = self._locate(i)
        return views.group_id[row].as_py()

    def subset(self, i: int) -> str | None:
        views, row = self._locate(i)
        return views.subset[row].as_py()

    def rows_of_split(self, split: str) -> Int64s:
        """Return the row numbers of a split (train, validation), int64; none if no group is in it.

        In order of group ids: what a step trains on follows from what the table holds, not from how its files lie.
        """
        if self._mapped is not None:
            return self._mapped.rows_of_split.get(split, np.empty(0, np.int64))
        named = []
        for batch, start in self._record_batches():
            rows = np.flatnonzero(batch.column("split").to_numpy(zero_copy_only=False) == split)
            named.append(pa.table({"group": batch.column("group_id").take(pa.array(rows)), "row": rows + start}))
        if not named:
            return np.empty(0, np.int64)
        table = pa.concat_tables(named)
        # Indices, not the sorted table: ids of more than 2 GiB fit into no array of strings.
        order = pc.call_function("sort_indices", [table], pc.SortOptions([("group", "ascending")]))
        return table["row"].take(order).to_numpy()

    def completion_tokens(self, i: int) -> Int32s:
        """Return the tokens of each of a group's completions, without the prompt, int32, shape (K,)."""
        views, row = self._locate(i)
        first, last = views.completion_offsets[row], views.completion_offsets[row + 1]
        return np.diff(views.token_offsets[first : last + 1])

    def sizes_of(self, rows: Int64s) -> GroupSizes:
        """Return the sizes of some groups, such as a global batch's, by row number."""
        return self._columns.sizes_of(rows)

    @property
    def num_completions_G(self) -> NDArray[np.int16]:
        """Kept completions of each group, int16, shape (G,)."""
        return self._columns.num_completions_G

    @property
    def num_pairs_G(self) -> Int32s:
        """Pairs of each group, int32, shape (G,)."""
        return self._columns.num_pairs_G

    @property
    def longest_row_tokens_G(self) -> Int32s:
        """Tokens of each group's prompt and longest completion together, int32, shape (G,)."""
        return self._columns.longest_row_tokens_G

    @property
    def weight_G(self) -> NDArray[np.float64]:
        """Sum of each group's pair weights, float64, shape (G,): a global batch's weight without reading its tokens."""
        return self._columns.weight_G

    @cached_property
    def longest_row_tokens(self) -> int:
        """Most tokens that a prompt and one of its completions have together."""
        if self._mapped is not None:
            return self._mapped.longest_row_tokens
        return int(self.longest_row_tokens_G.max(initial=0))

    @cached_property
    def _mapped(self) -> MappedColumns | None:
        """The columns of a large table, memory-mapped; None for a small one, and where the cache cannot be written."""
        if len(self) < self._mapped_from:
            return None
        try:
            return mapped_columns(self._paths, len(self), self._column_chunks())
        except (StoreError, OSError, UnicodeError) as error:
            logger.warning("%s (until then every rank holds %d bytes a group)", error, BYTES_PER_GROUP)
            return None

    @cached_property
    def _columns(self) -> GroupColumns:
        if self._mapped is not None:
            return self._mapped.columns
        columns = GroupColumns.empty(len(self))
        for batch, start in self._record_batches():
            for column, values in zip(columns, _columns_of(_Views.of(batch)), strict=True):
                column[start : start + batch.num_rows] = values
        return columns

    def _record_batches(self) -> Iterator[tuple[pa.RecordBatch, int]]:
        """Yield each record batch with the row number of its first group; files are mapped one after the other."""
        for number, start in enumerate(self._starts[:-1].tolist()):
            reader = _open(self._paths[number])
            for batch_number in range(reader.num_record_batches):
                batch = self._checked(reader.get_batch(batch_number), number, batch_number)
                yield batch, start + batch_number * self._batch_rows[number]

    def _column_chunks(self) -> Iterator[ColumnChunk]:
        every = self._record_batches()
        while batches := list(itertools.islice(every, BATCHES_AT_ONCE)):
            parts = [_columns_of(_Views.of(batch)) for batch, _ in batches]
            ids = np.concatenate([batch.column("group_id").to_numpy(zero_copy_only=False) for batch, _ in batches])
            splits = np.concatenate([batch.column("split").to_numpy(zero_copy_only=False) for batch, _ in batches])
            columns = GroupColumns(*(np.concatenate(each) for each in zip(*parts, strict=True)))
            yield ColumnChunk(columns, ids.astype(f"S{ID_BYTES}"), splits)

    def _locate(self, i: int) -> tuple[_Views, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"group {i} of a tokens table of {len(self)} groups")
        number = int(np.searchsorted(self._starts, i, side="right")) - 1
        batch, row = divmod(i - int(self._starts[number]), self._batch_rows[number])
        return self._views_of(number, batch), row

    def _views_of(self, number: int, batch: int) -> _Views:
        views = self._views.get((number, batch))
        if views is None:
            if len(self._views) == VIEWS_KEPT:
                del self._views[next(iter(self._views))]
            found = self._checked(self._readers[number].get_batch(batch), number, batch)
            views = self._views[number, batch] = _Views.of(found)
        return views

    def _checked(self, batch: pa.RecordBatch, number: int, batch_number: int) -> pa.RecordBatch:
        """Return a record batch, after a check that it has as many rows as all but the last of its file."""
        is_last = batch_number == self._readers[number].num_record_batches - 1
        if batch.num_rows != self._batch_rows[number] and not is_last:
            raise StoreError(
                f"{self._paths[number]}: record batch {batch_number} has {batch.num_rows} groups, expected "
                f"{self._batch_rows[number]} as in the first; delete the whole table to make it anew"
            )
        return batch


def _open(path: Path) -> pa.ipc.RecordBatchFileReader:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
    except FileNotFoundError:
        raise StoreError(
            f"{path}: this file of the tokens table is gone; delete the table's directory to make it anew"
        ) from None
    except pa.ArrowInvalid as error:
        raise StoreError(f"{path}: not an Arrow file ({error}); delete the whole table to make it anew") from None
    if not any(reader.schema.equals(schema) for schema in (TOKENS_SCHEMA, TOKENS_SCHEMA_V1)):
        raise StoreError(f"{path}: not a file of a tokens table: its columns are {', '.join(reader.schema.names)}")
    return reader


def _batch_rows(reader: pa.ipc.RecordBatchFileReader) -> int:
    """Return the groups of each record batch of a file but the last."""
    return max(1, reader.get_batch(0).num_rows) if reader.num_record_batches else 1


def _num_rows(reader: pa.ipc.RecordBatchFileReader, batch_rows: int) -> int:
    number = reader.num_record_batches
    return (number - 1) * batch_rows + reader.get_batch(number - 1).num_rows if number else 0


def _columns_of(views: _Views) -> GroupColumns:
    prompts, completions = np.diff(views.prompt_offsets), np.diff(views.token_offsets)
    pairs = np.diff(views.pair_offsets)
    longest = np.zeros(prompts.size, np.int32)
    num_completions = np.diff(views.completion_offsets)
    np.maximum.at(longest, np.repeat(np.arange(longest.size), num_completions), completions)
    weight = np.bincount(np.repeat(np.arange(pairs.size), pairs), views.weight.astype(np.float64), pairs.size)
    return GroupColumns(
        num_completions_G=num_completions.astype(np.int16),
        num_pairs_G=pairs,
        prompt_tokens_G=prompts,
        completion_tokens_G=np.diff(views.token_offsets[views.completion_offsets]),
        longest_row_tokens_G=prompts + longest,
        weight_G=weight.astype(np.float64, copy=False),
    )


def _lists(rows: Sequence[Int32s]) -> pa.ListArray:
    return pa.ListArray.from_arrays(_offsets([len(row) for row in rows]), pa.array(_joined(rows, np.int32)))


def _offsets(lengths: Sequence[int]) -> pa.Array:
    return pa.array(np.cumsum([0, *lengths], dtype=np.int32))


def _joined(rows: Sequence[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *rows], dtype=dtype, casting="same_kind")
