"""Text size of a Parquet DELTA_BYTE_ARRAY page, from its lengths alone (parquet-format's Encodings.md).

Each value is a number of characters to take from the previous value, and what follows them: 468 bytes may be 400 MB.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pairwright.data.ingest.decoders.thrift import Cursor

MAX_BLOCK_VALUES = 1 << 20


def num_text_bytes(values: bytes) -> int:
    """Return the bytes of all values of a page together.

    Args:
        values: the page, unpacked, behind its levels.

    Raises:
        pa.ArrowInvalid: if the page is damaged.
    """
    try:
        prefixes = _delta_numbers(values)
    except (IndexError, ValueError):
        raise pa.ArrowInvalid("a page of text is damaged") from None
    return len(values) + int(np.clip(prefixes, 0, None).sum())


def _delta_numbers(text: bytes) -> NDArray[np.int64]:
    """Return the numbers of DELTA_BINARY_PACKED (parquet-format's Encodings.md)."""
    cursor = Cursor(text)
    block_size, num_miniblocks, num_values = cursor.varint(), cursor.varint(), cursor.varint()
    first = cursor.integer()
    if not 0 < num_miniblocks <= block_size <= MAX_BLOCK_VALUES or num_values > 8 * len(text) * block_size:
        raise ValueError
    size, deltas, num_found = block_size // num_miniblocks, [np.array([first])], 1
    while num_found < num_values:
        smallest = cursor.integer()
        widths = text[cursor.position : cursor.position + num_miniblocks]
        cursor.position += num_miniblocks
        for width in widths:
            if num_found >= num_values:
                break
            packed = np.frombuffer(text, np.uint8, width * size // 8, cursor.position)
            cursor.position += len(packed)
            bits = np.unpackbits(packed, bitorder="little").reshape(-1, width) if width else np.zeros((size, 1))
            deltas.append(smallest + bits.astype(np.int64) @ (1 << np.arange(bits.shape[1], dtype=np.int64)))
            num_found += size
    return np.cumsum(np.concatenate(deltas)[:num_values])
