"""Reads the decompressed sizes of Arrow IPC messages from their metadata, before anything is decompressed.

pyarrow decompresses a batch as a whole, and a batch of 30 kB may hold one text of a gigabyte. Each compressed buffer
begins with its own uncompressed length, so a few bytes of each are enough. Metadata are flatbuffers, of which only the
needed fields are read (Arrow's format/Message.fbs and File.fbs, columnar format 1.5).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

MAGIC = b"ARROW1"
MAX_METADATA_BYTES = 64 * 1024 * 1024
VALUE_BYTES = 8
"""What a value of an array takes that has no buffer, such as null: its slot in the decoded array."""
_CONTINUATION = 0xFFFFFFFF
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_OLD_COMPRESSION = b"ARROW:experimental_compression"
"""How Arrow 0.17 said that a batch is compressed; still read."""


class Seekable(Protocol):
    """A seekable file."""

    def seek(self, position: int, /) -> object: ...
    def read(self, nbytes: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class MessageSize:
    """What one batch holds."""

    is_dictionary: bool
    num_rows: int
    stored_bytes: int
    unpacked_bytes: int
    """Of what is compressed in it; what is not lies in the file as it is."""


def file_messages(file: Seekable, num_bytes: int) -> Iterator[MessageSize]:
    """Yield the batches of an Arrow file, dictionaries first.

    Raises:
        pa.ArrowInvalid: if the file is damaged.
    """
    length, magic = struct.unpack("<i6s", _exactly(file, num_bytes - 10, 10))
    if magic != MAGIC or not 0 < length <= min(MAX_METADATA_BYTES, num_bytes):
        raise pa.ArrowInvalid("the footer is damaged")
    footer = _root(_exactly(file, num_bytes - 10 - length, length))
    for field in (2, 3):
        for offset, metadata_bytes, body_bytes in footer.structs(field, "<qi4xq"):
            head = _exactly(file, offset, 8)
            first, second = struct.unpack("<II", head)
            prefix = 8 if first == _CONTINUATION else 4
            length = second if first == _CONTINUATION else first
            if length + prefix > metadata_bytes + 8:
                raise pa.ArrowInvalid("a message of the footer is damaged")
            message = _message(_exactly(file, offset + prefix, length), file, offset + metadata_bytes, body_bytes)
            if message is not None:
                yield message


def stream_messages(file: Seekable, num_bytes: int) -> Iterator[MessageSize]:
    """Yield the batches of an Arrow stream, in order.

    Raises:
        pa.ArrowInvalid: if the stream is damaged.
    """
    position = 0
    while position + 4 <= num_bytes:
        (length,) = struct.unpack("<I", _exactly(file, position, 4))
        position += 4
        if length == _CONTINUATION:
            if position + 4 > num_bytes:
                break
            (length,) = struct.unpack("<I", _exactly(file, position, 4))
            position += 4
        if length == 0:
            return
        metadata = _exactly(file, position, length)
        position += length
        body_bytes = _root(metadata).number(3, "<q")
        message = _message(metadata, file, position, body_bytes)
        if message is not None:
            yield message
        position += body_bytes


def _exactly(file: Seekable, position: int, num_bytes: int) -> bytes:
    if position < 0 or not 0 <= num_bytes <= MAX_METADATA_BYTES:
        raise pa.ArrowInvalid("its metadata are damaged")
    file.seek(position)
    found = file.read(num_bytes)
    if len(found) != num_bytes:
        raise pa.ArrowInvalid("it is cut off")
    return found


def _message(metadata: bytes, file: Seekable, body: int, body_bytes: int) -> MessageSize | None:
    """Return what a message holds, or None if it is no batch.

    Args:
        metadata: its flatbuffer.
        file: where its body is.
        body: where the body begins.
        body_bytes: how long it is.
    """
    message = _root(metadata)
    kind, batch = message.number(1, "<B"), message.table(2)
    if kind not in (_DICTIONARY_BATCH, _RECORD_BATCH) or batch is None:
        return None
    if kind == _DICTIONARY_BATCH and (batch := batch.table(1)) is None:
        return None
    unpacked = sum(length for length, _ in batch.structs(1, "<qq")) * VALUE_BYTES
    if batch.table(3) is not None or _OLD_COMPRESSION in metadata:
        for offset, length in batch.structs(2, "<qq"):
            if length >= 8:
                (size,) = struct.unpack("<q", _exactly(file, body + offset, 8))
                unpacked += max(size, 0)
    return MessageSize(kind == _DICTIONARY_BATCH, batch.number(0, "<q"), body_bytes, unpacked)


# ----------------------------------------------------------------------------------------------- flatbuffers


class _Table:
    """A table of a flatbuffer, its fields by number."""

    def __init__(self, buffer: bytes, position: int) -> None:
        self._buffer = buffer
        self._position = position
        self._vtable = position - _unpacked("<i", buffer, position)
        self._vtable_bytes = _unpacked("<H", buffer, self._vtable)

    def number(self, field: int, form: str) -> int:
        """Return a number, 0 where it is not given."""
        offset = self._find_offset(field)
        return 0 if offset is None else _unpacked(form, self._buffer, offset)

    def table(self, field: int) -> "_Table | None":
        """Return a table within this one."""
        offset = self._find_offset(field)
        return None if offset is None else _Table(self._buffer, offset + _unpacked("<I", self._buffer, offset))

    def structs(self, field: int, form: str) -> Iterator[tuple[int, ...]]:
        """Return the structs of a vector."""
        offset = self._find_offset(field)
        if offset is None:
            return iter(())
        start = offset + _unpacked("<I", self._buffer, offset)
        end = start + 4 + _unpacked("<I", self._buffer, start) * struct.calcsize(form)
        if end > len(self._buffer):
            raise pa.ArrowInvalid("its metadata are damaged")
        return struct.iter_unpack(form, self._buffer[start + 4 : end])

    def _find_offset(self, field: int) -> int | None:
        entry = 4 + 2 * field
        offset = _unpacked("<H", self._buffer, self._vtable + entry) if entry + 2 <= self._vtable_bytes else 0
        return self._position + offset if offset else None


def _root(buffer: bytes) -> _Table:
    return _Table(buffer, _unpacked("<I", buffer, 0))


def _unpacked(form: str, buffer: bytes, position: int) -> int:
    if not 0 <= position <= len(buffer) - struct.calcsize(form):
        raise pa.ArrowInvalid("its metadata are damaged")
    return struct.unpack_from(form, buffer, position)[0]
