"""Plain values as CBOR, held against the cbor2 package, which knows nothing of this reader."""

from __future__ import annotations

import random
from contextlib import suppress

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainbuilder.saved.cbor import CborError, decode, encode

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 64), (1 << 64) - 1) | st.binary() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_values_come_back_and_are_cbor(value: object) -> None:
    data = encode(value)
    assert decode(data) == value
    assert cbor2.loads(data) == value
    assert data == cbor2.dumps(value)


@given(VALUES, st.randoms(use_true_random=False))
def test_a_changed_byte_is_a_value_or_one_error(value: object, chance: random.Random) -> None:
    data = bytearray(encode(value))
    data[chance.randrange(len(data))] = chance.randrange(256)
    with suppress(CborError):
        back = decode(bytes(data))
        assert decode(encode(back)) == back  # a map whose keys became equal is shorter


@pytest.mark.parametrize(
    ("data", "offset", "reason"),
    [
        ("", 0, "a value is cut short"),
        ("1801", 0, "not as short as it can be"),
        ("1b00000000ffffffff", 0, "not as short as it can be"),
        ("9f01ff", 0, "not a value of this format"),
        ("c11a00000000", 0, "not a value of this format"),
        ("f97e00", 0, "not a value of this format"),
        ("8200", 0, "more items than can follow"),
        ("9bffffffffffffffff", 0, "more items than can follow"),
        ("a10001", 1, "a key that is no text"),
        ("62c328", 1, None),
        ("5affffffff00", 5, "a value is cut short"),
        ("0000", 1, "something follows the value"),
        ("81" * 30 + "00", 25, "values within values"),
    ],
)
def test_what_encode_does_not_write_is_refused(data: str, offset: int, reason: str | None) -> None:
    if reason is None:  # bytes that are no UTF-8 are kept as surrogates, as file names are
        assert encode(decode(bytes.fromhex(data))) == bytes.fromhex(data)
        return
    with pytest.raises(CborError) as refused:
        decode(bytes.fromhex(data))
    assert (refused.value.offset, refused.value.reason) == (offset, reason)


@pytest.mark.parametrize("value", [1.5, {1: 2}, 1 << 64, object()])
def test_what_is_not_plain_is_not_encoded(value: object) -> None:
    with pytest.raises((TypeError, ValueError), match=r"plain value|no str|beyond 64 bits"):
        encode(value)
