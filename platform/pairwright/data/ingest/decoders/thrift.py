"""Reader for Thrift's compact protocol, as far as Parquet's page headers need it (parquet-format's parquet.thrift)."""

from typing import Any

import pyarrow as pa

DAMAGED = "a page header is damaged"


class Cursor:
    """A position in a text of Thrift's compact protocol."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.position = 0

    def fields(self, depth: int) -> dict[int, Any]:
        """Return the numbers and structs of a struct by the ids of their fields; other fields are skipped."""
        found: dict[int, Any] = {}
        number = 0
        while byte := self._byte():
            kind, step = byte & 15, byte >> 4
            number = number + step if step else self.integer()
            found[number] = self._value(kind, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if depth > 8:
            raise pa.ArrowInvalid(DAMAGED)
        match kind:
            case 1 | 2:
                return int(kind == 1)
            case 3:
                return self._byte()
            case 4 | 5 | 6:
                return self.integer()
            case 7:
                self.position += 8
            case 8:
                length = self.varint()
                self.position += length
            case 9 | 10:
                byte = self._byte()
                size = byte >> 4 if byte >> 4 < 15 else self.varint()
                if byte & 15 in (1, 2):
                    self.position += size
                else:
                    for _ in range(min(size, len(self.text))):
                        self._value(byte & 15, depth + 1)
            case 12:
                return self.fields(depth + 1)
            case _:
                raise pa.ArrowInvalid(DAMAGED)
        return 0

    def _byte(self) -> int:
        byte = self.text[self.position]
        self.position += 1
        return byte

    def varint(self) -> int:
        """Return a number that is not negative."""
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            if (shift := shift + 7) > 63:
                raise pa.ArrowInvalid(DAMAGED)

    def integer(self) -> int:
        """Return a number of either sign."""
        value = self.varint()
        return value >> 1 ^ -(value & 1)
