"""The Zarr codec `ditic.record`: one record, padded with zeros to the array's cap, as any Zarr reader sees it.

In: a chunk of uint8 (1, 1, cap).  Out: the record's bytes without the padding, and the chunk back.
Registered as an entry point, so `zarr.open` finds it; nothing in this package imports it, and it needs zarr.

It lets tools copy, slice and re-shard the records of an archive.  It decodes no pixels: a tile alone has seams, and
`ditic_stream.open` reads the neighbours that heal them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.common import JSON

from ditic_stream.bitstream import record_length
from ditic_stream.errors import FormatError

NAME = "ditic.record"


@dataclass(frozen=True)
class RecordCodec(ArrayBytesCodec):
    """Array-to-bytes codec without configuration.  Raises FormatError for a chunk that begins with no record."""

    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        if data.get("name") != NAME or data.get("configuration"):
            raise ValueError(
                f"codec {data.get('name')!r} with {data.get('configuration')!r}; {NAME} has no configuration"
            )
        return cls()

    def to_dict(self) -> dict[str, JSON]:
        return {"name": NAME}

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        data = np.ascontiguousarray(chunk_array.as_numpy_array(), dtype=np.uint8).tobytes()
        length = record_length(data)
        if length > len(data) or any(data[length:]):
            raise FormatError(f"chunk of {len(data)} bytes is not one record of {length} and zeros")
        return chunk_spec.prototype.buffer.from_bytes(data[:length])

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        data = chunk_bytes.to_bytes()
        size = int(np.prod(chunk_spec.shape))
        length = record_length(data)
        if length != len(data) or length > size:
            raise FormatError(f"record of {length} bytes in a chunk of {len(data)}; the array's cap is {size}")
        padded = np.zeros(size, dtype=np.uint8)
        padded[:length] = np.frombuffer(data, dtype=np.uint8)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(padded.reshape(chunk_spec.shape))

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        raise NotImplementedError("a record is as long as it is")
