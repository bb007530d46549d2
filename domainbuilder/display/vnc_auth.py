"""VNC's authentication: a challenge, encrypted with the password by DES (RFC 6143, section 7.2.2; FIPS 46-3).

It keeps out who does not know the password and cannot listen: eight letters of it count, and DES is broken.
Nothing else of this project needs a cipher, so no library is asked for one.
"""

from __future__ import annotations

# Each table says which bit of what goes in is the next that comes out, from 1 for the first.
_IP = [first - 8 * i for first in (58, 60, 62, 64, 57, 59, 61, 63) for i in range(8)]
_FP = [_IP.index(bit) + 1 for bit in range(1, 65)]
_E = [(4 * group + i - 1) % 32 + 1 for group in range(8) for i in range(6)]
_P = [16, 7, 20, 21, 29, 12, 28, 17, 1, 15, 23, 26, 5, 18, 31, 10,
      2, 8, 24, 14, 32, 27, 3, 9, 19, 13, 30, 6, 22, 11, 4, 25]  # fmt: skip
_PC1 = [
    57, 49, 41, 33, 25, 17, 9, 1, 58, 50, 42, 34, 26, 18, 10, 2, 59, 51, 43, 35, 27, 19, 11, 3, 60,
    52, 44, 36, 63, 55, 47, 39, 31, 23, 15, 7, 62, 54, 46, 38, 30, 22, 14, 6, 61, 53, 45, 37, 29,
    21, 13, 5, 28, 20, 12, 4,
]  # fmt: skip
_PC2 = [
    14, 17, 11, 24, 1, 5, 3, 28, 15, 6, 21, 10, 23, 19, 12, 4, 26, 8, 16, 7, 27, 20, 13, 2, 41, 52,
    31, 37, 47, 55, 30, 40, 51, 45, 33, 48, 44, 49, 39, 56, 34, 53, 46, 42, 50, 36, 29, 32,
]  # fmt: skip
_SHIFTS = (1, 1, 2, 2, 2, 2, 2, 2, 1, 2, 2, 2, 2, 2, 2, 1)
_S = [  # each row of each box: what the columns 0 to 15 become
    ["e4d12fb83a6c5907", "0f74e2d1a6cb9538", "41e8d62bfc973a50", "fc8249175b3ea06d"],
    ["f18e6b34972dc05a", "3d47f28ec01a69b5", "0e7ba4d158c6932f", "d8a13f42b67c05e9"],
    ["a09e63f51dc7b428", "d709346a285ecbf1", "d6498f30b12c5ae7", "1ad069874fe3b52c"],
    ["7de3069a1285bc4f", "d8b56f03472c1ae9", "a690cb7df13e5284", "3f06a1d8945bc72e"],
    ["2c417ab6853fd0e9", "eb2c47d150fa3986", "421bad78f9c5630e", "b8c71e2d6f09a453"],
    ["c1af92680d34e75b", "af427c9561de0b38", "9ef528c3704a1db6", "432c95fabe17608d"],
    ["4b2ef08d3c975a61", "d0b7491ae35c2f86", "14bdc37eaf680592", "6bd814a7950fe23c"],
    ["d2846fb1a93e50c7", "1fd8a374c56b0e92", "7b419ce206adf358", "21e74a8dfc90356b"],
]


def _chosen(bits: list[int], table: list[int]) -> list[int]:
    return [bits[place - 1] for place in table]


def _bits(data: bytes) -> list[int]:
    return [byte >> 7 - i & 1 for byte in data for i in range(8)]


def _keys(key: bytes) -> list[list[int]]:
    half = _chosen(_bits(key), _PC1)
    left, right = half[:28], half[28:]
    keys = []
    for shift in _SHIFTS:
        left, right = left[shift:] + left[:shift], right[shift:] + right[:shift]
        keys.append(_chosen(left + right, _PC2))
    return keys


def _mixed(right: list[int], key: list[int]) -> list[int]:
    """The cipher function."""
    sum_ = [bit ^ other for bit, other in zip(_chosen(right, _E), key, strict=True)]
    out = []
    for box in range(8):
        first, *middle, last = sum_[6 * box : 6 * box + 6]
        column = int("".join(map(str, middle)), 2)
        value = int(_S[box][2 * first + last][column], 16)
        out += [value >> 3 - i & 1 for i in range(4)]
    return _chosen(out, _P)


def des(key: bytes, block: bytes) -> bytes:
    """Eight bytes, encrypted with the eight of the key, of which the lowest bit of each does not count."""
    bits = _chosen(_bits(block), _IP)
    left, right = bits[:32], bits[32:]
    for one in _keys(key):
        left, right = right, [bit ^ other for bit, other in zip(left, _mixed(right, one), strict=True)]
    whole = _chosen(right + left, _FP)
    return int("".join(map(str, whole)), 2).to_bytes(8, "big")


def response(password: str, challenge: bytes) -> bytes:
    """What a viewer who knows the password answers to 16 bytes. VNC has each byte's lowest bit first."""
    key = bytes(int(f"{byte:08b}"[::-1], 2) for byte in password.encode()[:8].ljust(8, b"\0"))
    return des(key, challenge[:8]) + des(key, challenge[8:])
