"""Ethernet frames with their offloads: checksums that were left out, sizes to cut them to; and plain frames.

What skb_checksum_setup, skb_checksum_help and skb_gso_segment of Linux do for xen-netback. RFC 1071 is
the checksum: the sum of 16-bit words modulo 65535 is the whole number modulo 65535.
"""

from __future__ import annotations

from typing import NamedTuple

from hvcore.public.netif import XEN_NETIF_GSO_TYPE_NONE, XEN_NETIF_GSO_TYPE_TCPV4, XEN_NETIF_GSO_TYPE_TCPV6

ETH_HLEN = 14
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD
_VLANS = (0x8100, 0x88A8)
_TCP, _UDP = 6, 17
_CHECKSUM_AT = {_TCP: 16, _UDP: 6}
_HEADER = {_TCP: 20, _UDP: 8}
_OPTIONS = (0, 43, 60)  # IPv6: hop-by-hop, routing, destination
_FIN, _PSH, _CWR = 1, 8, 128
_GSO_VERSION = {XEN_NETIF_GSO_TYPE_TCPV4: 4, XEN_NETIF_GSO_TYPE_TCPV6: 6}
MAX_SEGMENTS = 2048  # of one frame: 64 KB in pieces of 32, less than any TCP makes


class Frame(NamedTuple):
    """A frame from its destination address on, without the check sequence.

    `is_blank`: the checksum of its TCP or UDP has that of the pseudo-header in its place. `is_validated`: it
    was never on a wire. `gso_type`, `gso_size`: it is many segments in one, of so many bytes each.
    """

    data: bytes
    is_blank: bool = False
    is_validated: bool = False
    gso_type: int = XEN_NETIF_GSO_TYPE_NONE
    gso_size: int = 0


class Transport(NamedTuple):
    """Where the parts of a TCP or UDP packet are in a frame; `end` is behind its last byte."""

    version: int
    network: int
    start: int
    end: int
    protocol: int


def transport_of(data: bytes) -> Transport | None:
    """The TCP or UDP of a frame, if it is one that is whole and in order."""
    at = 12
    for _ in range(2):
        if data[at : at + 2] and int.from_bytes(data[at : at + 2], "big") in _VLANS:
            at += 4
    kind, network = int.from_bytes(data[at : at + 2], "big"), at + 2
    if kind == _ETH_P_IP:
        found = _ipv4(data, network)
    elif kind == _ETH_P_IPV6:
        found = _ipv6(data, network)
    else:
        return None
    if found is None or found.protocol not in _HEADER or found.end > len(data):
        return None
    return found if found.start + _HEADER[found.protocol] <= found.end else None


def _ipv4(data: bytes, at: int) -> Transport | None:
    if len(data) < at + 20 or data[at] >> 4 != 4:
        return None
    length, size = 4 * (data[at] & 15), int.from_bytes(data[at + 2 : at + 4], "big")
    if length < 20 or size < length or int.from_bytes(data[at + 6 : at + 8], "big") & 0x3FFF:
        return None  # the last: a fragment
    return Transport(4, at, at + length, at + size, data[at + 9])


def _ipv6(data: bytes, at: int) -> Transport | None:
    if len(data) < at + 40 or data[at] >> 4 != 6:
        return None
    end = at + 40 + int.from_bytes(data[at + 4 : at + 6], "big")
    kind, start = data[at + 6], at + 40
    while kind in _OPTIONS:
        if start + 8 > min(end, len(data)):
            return None
        kind, start = data[start], start + 8 * (data[start + 1] + 1)
    return Transport(6, at, start, end, kind)


def internet_checksum(data: bytes) -> int:
    """RFC 1071, of data with an even number of bytes or a last word filled up with zeros."""
    if len(data) & 1:
        data += b"\0"
    value = int.from_bytes(data, "big")
    return 0xFFFF - (value % 0xFFFF or 0xFFFF) if value else 0xFFFF


def _pseudo_header(data: bytes | bytearray, where: Transport) -> bytes:
    first, last = (12, 20) if where.version == 4 else (8, 40)
    addresses = data[where.network + first : where.network + last]
    size = where.end - where.start
    return bytes(addresses) + size.to_bytes(4, "big") + where.protocol.to_bytes(4, "big")


def _checksum(data: bytes | bytearray, where: Transport) -> int:
    """The checksum of a TCP or UDP packet, whose field is 0."""
    value = internet_checksum(_pseudo_header(data, where) + bytes(data[where.start : where.end]))
    return 0xFFFF if not value and where.protocol == _UDP else value


def _fill(data: bytearray, where: Transport) -> None:
    at = where.start + _CHECKSUM_AT[where.protocol]
    data[at : at + 2] = bytes(2)
    data[at : at + 2] = _checksum(data, where).to_bytes(2, "big")


def filled(frame: Frame) -> Frame:
    """The frame for who cannot know of blank checksums."""
    if not frame.is_blank:
        return frame
    where = transport_of(frame.data)
    if where is None:
        return frame._replace(is_blank=False)
    data = bytearray(frame.data)
    _fill(data, where)
    return frame._replace(data=bytes(data), is_blank=False)


def for_offload(frame: Frame) -> Frame:
    """The frame with its checksum left to who sends it on, as that of many segments in one has to be."""
    where = None if frame.is_blank else transport_of(frame.data)
    if where is None:
        return frame
    at = where.start + _CHECKSUM_AT[where.protocol]
    start = 0xFFFF - internet_checksum(_pseudo_header(frame.data, where))
    data = frame.data[:at] + start.to_bytes(2, "big") + frame.data[at + 2 :]
    return frame._replace(data=data, is_blank=True)


def payload_of(frame: Frame) -> tuple[Transport, int] | None:
    """The TCP of many segments in one, and where its payload begins; None where it can be no segments."""
    where = transport_of(frame.data)
    version = _GSO_VERSION.get(frame.gso_type)
    if where is None or where.protocol != _TCP or where.version != version or not frame.gso_size:
        return None
    body = where.start + 4 * (frame.data[where.start + 12] >> 4)
    if not where.start + 20 <= body <= where.end:
        return None
    return (where, body) if (where.end - body) // frame.gso_size < MAX_SEGMENTS else None


def segments(frame: Frame) -> list[Frame]:
    """The frame as those of a wire: it alone where it is one, none where it can be none."""
    if not frame.gso_type:
        return [frame]
    found = payload_of(frame)
    if found is None:
        return []
    where, body = found
    payload = frame.data[body : where.end]
    starts = range(0, max(len(payload), 1), frame.gso_size)
    return [_segment(frame, where, body, payload, at, is_last=at == starts[-1]) for at in starts]


def _segment(frame: Frame, where: Transport, body: int, payload: bytes, at: int, *, is_last: bool) -> Frame:
    data = bytearray(frame.data[:body]) + payload[at : at + frame.gso_size]
    ip, tcp = where.network, where.start
    if where.version == 4:
        number = int.from_bytes(data[ip + 4 : ip + 6], "big") + at // frame.gso_size
        data[ip + 2 : ip + 4] = (len(data) - ip).to_bytes(2, "big")
        data[ip + 4 : ip + 6] = (number & 0xFFFF).to_bytes(2, "big")
        data[ip + 10 : ip + 12] = bytes(2)
        data[ip + 10 : ip + 12] = internet_checksum(bytes(data[ip:tcp])).to_bytes(2, "big")
    else:
        data[ip + 4 : ip + 6] = (len(data) - ip - 40).to_bytes(2, "big")
    sequence = int.from_bytes(data[tcp + 4 : tcp + 8], "big") + at
    data[tcp + 4 : tcp + 8] = (sequence & 0xFFFFFFFF).to_bytes(4, "big")
    if not is_last:
        data[tcp + 13] &= ~(_FIN | _PSH)
    if at:
        data[tcp + 13] &= ~_CWR
    _fill(data, where._replace(end=len(data)))
    return Frame(bytes(data), is_validated=True)
