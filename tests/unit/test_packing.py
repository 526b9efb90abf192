"""Arrays on the wire: bit for bit there and back, and nothing accepted that `pack` would not have made."""

import base64
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_trb.errors import InvalidParameter
from sglang_trb.wire.packing import DTYPES, MAX_BYTES, pack, unpack

SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@given(name=st.sampled_from(sorted(DTYPES)), shape=SHAPES, data=st.data())
def test_any_bits_survive(name, shape, data):
    size = int(np.prod(shape)) * DTYPES[name].itemsize
    array = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), DTYPES[name]).reshape(shape)
    back = unpack(pack(array))
    assert back.shape == shape and back.dtype == np.dtype(name)
    assert back.tobytes() == array.tobytes()


def test_wire_form_is_the_contract():
    assert pack(np.array([[1.0, -2.0]], np.float32)) == {
        "dtype": "float32",
        "shape": [1, 2],
        "data": base64.b64encode(b"\0\0\x80\x3f\0\0\0\xc0").decode(),
    }


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.arange(6, dtype=np.float32).reshape(3, 2).T,
        np.arange(12, dtype=np.int32)[::2],
        np.float32(3.5),
    ],
    ids=["big-endian", "transposed", "strided", "scalar"],
)
def test_layout_and_byte_order_do_not_matter(array):
    np.testing.assert_array_equal(unpack(pack(array)), array)


def test_non_finite_values_survive():
    array = np.array([np.nan, np.inf, -np.inf, -0.0], np.float32)
    assert unpack(pack(array)).tobytes() == array.tobytes()


def test_result_is_writable():
    array = unpack(pack(np.zeros(3, np.float32)))
    array[0] = 1
    assert array.tolist() == [1, 0, 0]


@pytest.mark.parametrize("dtype", ["float64", "int64", "bool", "object", "complex64", "uint32", "U3"])
def test_pack_refuses_other_dtypes(dtype):
    with pytest.raises(InvalidParameter, match=r"dtype.*one of float32, float16, int32"):
        pack(np.zeros(2, dtype))


def test_pack_refuses_what_unpack_would_not_take_back():
    with pytest.raises(InvalidParameter, match="dimensions"):
        pack(np.zeros((1,) * 5, np.float32))
    with pytest.raises(InvalidParameter, match="bytes"):
        pack(np.broadcast_to(np.float32(0), (MAX_BYTES,)))


GOOD = {"dtype": "float32", "shape": [2], "data": base64.b64encode(bytes(8)).decode()}


@pytest.mark.parametrize(
    ("packed", "field"),
    [
        ([], r"trb\.beta:"),
        (None, r"trb\.beta:"),
        ({}, r"trb\.beta\.dtype"),
        ({"dtype": "float32", "shape": [2]}, r"trb\.beta\.data"),
        (GOOD | {"dtype": "float64"}, r"trb\.beta\.dtype.*float64"),
        (GOOD | {"dtype": "object"}, r"trb\.beta\.dtype"),
        (GOOD | {"dtype": ["float32"]}, r"trb\.beta\.dtype"),
        (GOOD | {"dtype": None}, r"trb\.beta\.dtype"),
        (GOOD | {"shape": 2}, r"trb\.beta\.shape"),
        (GOOD | {"shape": [2.0]}, r"trb\.beta\.shape"),
        (GOOD | {"shape": [True, 2]}, r"trb\.beta\.shape"),
        (GOOD | {"shape": [-2]}, r"trb\.beta\.shape"),
        (GOOD | {"shape": ["2"]}, r"trb\.beta\.shape"),
        (GOOD | {"shape": [1] * 5}, r"trb\.beta\.shape.*dimensions"),
        (GOOD | {"shape": [1 << 40]}, r"trb\.beta\.shape.*bytes"),
        (GOOD | {"shape": [0, 1 << 62]}, r"trb\.beta\.shape.*bytes"),
        (GOOD | {"shape": [3]}, r"trb\.beta\.data.*12 bytes"),
        (GOOD | {"shape": [1]}, r"trb\.beta\.data.*4 bytes"),
        (GOOD | {"data": base64.b64encode(bytes(7)).decode()}, r"trb\.beta\.data.*7 bytes"),
        (GOOD | {"data": bytes(8)}, r"trb\.beta\.data"),
        (GOOD | {"data": "!" * 12}, r"trb\.beta\.data"),
        (GOOD | {"data": "AAAAAAAA\nAA="}, r"trb\.beta\.data"),
        (GOOD | {"data": "ÄÄÄÄÄÄÄÄÄÄÄ="}, r"trb\.beta\.data"),
    ],
)
def test_unpack_names_what_is_wrong(packed, field):
    with pytest.raises(InvalidParameter, match=field):
        unpack(packed, "trb.beta")


def test_a_pickle_is_just_bytes_of_the_wrong_length():
    payload = base64.b64encode(pickle.dumps(print)).decode()
    with pytest.raises(InvalidParameter, match="data"):
        unpack(GOOD | {"data": payload})


def test_messages_stay_short():
    with pytest.raises(InvalidParameter) as raised:
        unpack(GOOD | {"data": "A" * 10_000_000})
    assert len(str(raised.value)) < 300
