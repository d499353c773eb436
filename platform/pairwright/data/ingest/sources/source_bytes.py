"""Reads a source's stored bytes as blocks of about 2 MB, as text, or as a seekable file; the same local and remote.

Every remote read is tied to the etag of the listing, so that a source that changes meanwhile fails instead of giving
half of each. An error of a file system or a store becomes one line that names the source.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, cast

import obstore
import pyarrow as pa
from obstore.exceptions import BaseError

from pairwright.data.ingest.sources.source import Compression, SourceRef, split_url
from pairwright.data.storage.object_store import ObjectStore, first_line, open_store
from pairwright.errors import SourceError, StoreError
from pairwright.progress_bar import note_progress

READ_BYTES = 2 * 1024 * 1024
"""What is read, and so parsed, at a time: 1 to 4 MB stay in the cache, 64 MB at a time halve the rate of parsing."""
HASHED_BYTES = 64 * 1024 * 1024
"""Size of a block that is hashed separately; content hashes depend on it, so it must not change."""
REMOTE_BUFFER_BYTES = 256 * 1024
"""What the smallest read of a remote file fetches: fewer requests against bytes that nobody wanted."""
FREE_TEXT_BYTES = 16 * 1024 * 1024
"""Text that any source may have, however small it is: a ratio says nothing about a few equal records."""


def read_blocks(source: SourceRef, start: int, end: int) -> Iterator[bytes]:
    """Yield the stored bytes in [start, end), in blocks of about 2 MB; what was added since the listing is not read.

    Raises:
        SourceError: if the source cannot be read or has changed since it was listed.
    """
    position = start
    try:
        for block in _local_blocks(source, start, end) if source.is_local else _remote_blocks(source, start, end):
            position += len(block)
            yield block
    except FileNotFoundError:
        raise SourceError(f"{source.uri}: is gone since it was listed; run the command again") from None
    except (OSError, BaseError) as error:
        raise SourceError(f"{source.uri}: cannot be read: {first_line(error)}") from None
    if position < end:
        raise SourceError(
            f"{source.uri}: ended at byte {position:,} of {source.size:,}: something is changing it; "
            "ingest it when it is finished"
        )


def text_blocks(source: SourceRef) -> Iterator[bytes]:
    """Yield the text of a source from its beginning, decompressed where its name says so.

    Raises:
        SourceError: if the source cannot be read to its end.
    """
    if source.compression is None:
        yield from read_blocks(source, 0, source.size)
        return
    if source.size == 0:
        raise SourceError(f"{source.uri}: 0 bytes, which is no {source.compression} file; copy it again")
    yield from _decompressed(source, source.compression)


def check_ratio(source: SourceRef, num_bytes: int, stored_bytes: int, what: str = "text") -> None:
    """Refuse a source that decompresses to far more than data does, so that it cannot exhaust memory and time.

    Args:
        source: what is read.
        num_bytes: how much there is of it, unpacked.
        stored_bytes: how much there is of it, as stored.
        what: its name, for the message.

    Raises:
        SourceError: if it is more than ``limits.max_text_ratio`` allows.
    """
    most = max(FREE_TEXT_BYTES, source.limits.max_text_ratio * stored_bytes)
    if num_bytes > most:
        raise SourceError(
            f"{source.uri}: {stored_bytes:,} stored bytes unpack to {num_bytes:,} bytes of {what} or more, expected at "
            f"most {source.limits.max_text_ratio:,} times as many; if you trust it, set limits.max_text_ratio"
        )


def hash_block(source: SourceRef, start: int, end: int) -> tuple[str, int]:
    """Return SHA-256 (64 hex digits) and number of newlines of the stored bytes in [start, end).

    Raises:
        SourceError: if they cannot be read, or the source is shorter than when it was listed.
    """
    digest, newlines = hashlib.sha256(), 0
    for block in read_blocks(source, start, end):
        digest.update(block)
        note_progress(0, len(block))
        newlines += block.count(b"\n")
    return digest.hexdigest(), newlines


def checksum_blocks(source: SourceRef, block_bytes: int = HASHED_BYTES) -> list[tuple[int, int]]:
    """Return the [start, end) of the blocks that are hashed separately, and so by several tasks: at least one."""
    return [(start, min(start + block_bytes, source.size)) for start in range(0, max(source.size, 1), block_bytes)]


def content_hash(digests: Sequence[str]) -> str:
    """Return the content hash of a local source from the SHA-256 of each of its blocks.

    It is the SHA-256 of the file where that is one block of up to 64 MB, else the SHA-256 of those of its blocks.
    """
    if len(digests) == 1:
        return f"sha256:{digests[0]}"
    return f"sha256-64m:{hashlib.sha256(bytes.fromhex(''.join(digests))).hexdigest()}"


def open_file(source: SourceRef) -> pa.NativeFile:
    """Return the stored bytes as a seekable file: by range requests, where the source is remote.

    Raises:
        SourceError: if it is gone or cannot be read.
    """
    if not source.is_local:
        buffered = io.BufferedReader(_RemoteFile(source), REMOTE_BUFFER_BYTES)
        return pa.PythonFile(cast("IO[bytes]", buffered), mode="r")
    try:
        return pa.OSFile(source.uri)
    except FileNotFoundError:
        raise SourceError(f"{source.uri}: is gone since it was listed; run the command again") from None
    except OSError as error:
        raise SourceError(f"{source.uri}: cannot be read: {first_line(error)}") from None


# ---------------------------------------------------------------------------------------- local and remote


def _local_blocks(source: SourceRef, start: int, end: int) -> Iterator[bytes]:
    with Path(source.uri).open("rb") as file:
        file.seek(start)
        left = end - start
        while left > 0 and (block := file.read(min(READ_BYTES, left))):
            left -= len(block)
            yield block


def _remote_blocks(source: SourceRef, start: int, end: int) -> Iterator[bytes]:
    if start >= end:
        return
    root, key = split_url(source.uri)
    try:
        yield from _ranged(source, open_store(root), key, start, end)
    except StoreError as error:
        raise SourceError(str(error)) from None


def _ranged(source: SourceRef, store: ObjectStore, key: str, start: int, end: int) -> Iterator[bytes]:
    try:
        options: obstore.GetOptions = {"range": (start, end), "if_match": source.etag}
        for block in obstore.get(store, key, options=options).stream(min_chunk_size=READ_BYTES):
            yield bytes(block)
    except obstore.exceptions.PreconditionError:
        raise SourceError(f"{source.uri}: has changed since it was listed; run the command again") from None


class _RemoteFile(io.RawIOBase):
    """An object as a file: every read is a range request for the version that was listed."""

    def __init__(self, source: SourceRef) -> None:
        self._source = source
        root, self._key = split_url(source.uri)
        try:
            self._store = open_store(root)
        except StoreError as error:
            raise SourceError(str(error)) from None
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        end = min(self._position + len(buffer), self._source.size)
        if end <= self._position:
            return 0
        filled = 0
        try:
            for block in _ranged(self._source, self._store, self._key, self._position, end):
                buffer[filled : filled + len(block)] = block
                filled += len(block)
        except FileNotFoundError:
            raise SourceError(f"{self._source.uri}: is gone since it was listed; run the command again") from None
        except BaseError as error:
            raise SourceError(f"{self._source.uri}: cannot be read: {first_line(error)}") from None
        self._position += filled
        return filled


# ------------------------------------------------------------------------------------------- compressed


class BlockFile(io.RawIOBase):
    """Blocks in a row as a file that is read once."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        while not self._rest and (block := next(self._blocks, None)) is not None:
            self._rest = memoryview(block)
        num_bytes = min(len(buffer), len(self._rest))
        buffer[:num_bytes] = self._rest[:num_bytes]
        self._rest = self._rest[num_bytes:]
        return num_bytes


def _decompressed(source: SourceRef, compression: Compression) -> Iterator[bytes]:
    """Yield the text of a compressed source, all of its frames or members.

    pyarrow's stream is used because it notices a missing end; python-zstandard's reader stops there in silence.
    """
    num_bytes = 0
    file = pa.PythonFile(cast("IO[bytes]", BlockFile(read_blocks(source, 0, source.size))), mode="r")
    try:
        with pa.CompressedInputStream(file, compression) as stream:
            while block := stream.read(READ_BYTES):
                num_bytes += len(block)
                check_ratio(source, num_bytes, source.size)
                yield block
    except (OSError, MemoryError) as error:  # a frame may ask for any window
        what = f"not a whole {compression} file: {first_line(error)} after {num_bytes:,} bytes of text"
        raise SourceError(f"{source.uri}: {what}; copy it again") from None
