"""Per-token arrays on the wire: little-endian bytes in base64, with their dtype and shape beside them.

Loads without torch and without sglang. What arrives is checked before it is decoded, and nothing is ever unpickled.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sglang_trb.errors import InvalidParameter

DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "int32": np.dtype("<i4")}
MAX_DIMENSIONS = 4
MAX_BYTES = 1 << 28
"""256 MiB: a million tokens with 64 numbers each. Longer than any response; an end to absurd shapes."""

_NAMES = {(dtype.kind, dtype.itemsize): name for name, dtype in DTYPES.items()}
_ALLOWED = "one of " + ", ".join(DTYPES)


def pack(array: np.ndarray) -> dict[str, Any]:
    """Turn an array into its JSON form.

    Args:
        array: float32, float16 or int32, any shape of at most 4 dimensions, any byte order and layout.

    Returns:
        ``{"dtype": "float32", "shape": [T, 16], "data": "<base64, little-endian, C order>"}``.

    Raises:
        InvalidParameter: another dtype, or too many dimensions or bytes for ``unpack`` to take back.
    """
    array = np.asarray(array)
    name = _NAMES.get((array.dtype.kind, array.dtype.itemsize))
    if name is None:
        raise InvalidParameter("dtype", array.dtype.name, _ALLOWED)
    shape = _checked_shape("shape", list(array.shape), DTYPES[name].itemsize)
    raw = array.astype(DTYPES[name], order="C", copy=False).tobytes()
    return {"dtype": name, "shape": list(shape), "data": base64.b64encode(raw).decode("ascii")}


def unpack(packed: Mapping[str, Any], field: str = "array") -> np.ndarray:
    """Turn the JSON form back into an array, bit for bit.

    Args:
        packed: what ``pack`` returned, as it came over the wire (untrusted).
        field: what to call it in an error message, for example ``trb.beta``.

    Returns:
        A new, writable array in the machine's own byte order.

    Raises:
        InvalidParameter: a missing key, a dtype that is not allowed, a malformed shape, or data that is not base64 or
            not exactly as long as dtype and shape say.
    """
    if not isinstance(packed, Mapping):
        raise InvalidParameter(field, packed, "an object with the keys dtype, shape, data")
    for key in ("dtype", "shape", "data"):
        if key not in packed:
            raise InvalidParameter(f"{field}.{key}", None, "required")
    name, text = packed["dtype"], packed["data"]
    if not isinstance(name, str) or name not in DTYPES:
        raise InvalidParameter(f"{field}.dtype", name, _ALLOWED)
    shape = _checked_shape(f"{field}.shape", packed["shape"], DTYPES[name].itemsize)
    raw = _decoded(f"{field}.data", text, math.prod(shape) * DTYPES[name].itemsize)
    return np.frombuffer(raw, DTYPES[name]).reshape(shape).astype(DTYPES[name].newbyteorder("="))


def _checked_shape(field: str, shape: Any, itemsize: int) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise InvalidParameter(field, shape, "a list of integers >= 0")
    if len(shape) > MAX_DIMENSIONS:
        raise InvalidParameter(field, shape, f"at most {MAX_DIMENSIONS} dimensions")
    # Zero-length axes must not hide a huge one: count every axis as at least 1.
    if math.prod(max(size, 1) for size in shape) * itemsize > MAX_BYTES:
        raise InvalidParameter(field, shape, f"at most {MAX_BYTES} bytes")
    return tuple(shape)


def _decoded(field: str, text: Any, expected: int) -> bytes:
    allowed = f"base64 of exactly {expected} bytes, as dtype and shape say"
    if not isinstance(text, str):
        raise InvalidParameter(field, text, allowed)
    if len(text) != 4 * math.ceil(expected / 3):
        raise InvalidParameter(field, f"{len(text)} characters", f"{allowed}: {4 * math.ceil(expected / 3)} characters")
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidParameter(field, _abridged(text), f"{allowed} ({error})") from None
    if len(raw) != expected:
        raise InvalidParameter(field, f"{len(raw)} bytes", allowed)
    return raw


def _abridged(text: str, limit: int = 40) -> str:
    return text if len(text) <= limit else text[:limit] + "…"
