"""xl's syntax of network interfaces (xl-network-configuration(5)): `mac=..., bridge=..., rate=...`.

Each is optional, as in tools/xl/xl_parse.c of Xen 4.17. What names the interface in domain 0 is taken and has
no effect here, where there is none to name; what a switch of this host has no use for is refused by its name.
"""

from __future__ import annotations

import re

from domainbuilder.errors import BuildError
from domainbuilder.xl.device_settings import Check, DeviceSettings
from hvcore.backends.vif import MOST_VIFS, MTU, Vif

_MAC = re.compile(r"[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2}){5}")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_RATE = re.compile(r"([0-9]{1,9})([GMK]?)([bB])/s(?:@([0-9]{1,9})([mu]?)s)?")
_FORWARD = re.compile(r"(?:([0-9]{1,3}(?:\.[0-9]{1,3}){3})/)?([0-9]{1,5})(?::([0-9]{1,5}))?")
_FORWARDS = "[ADDRESS/]PORT[:GUESTPORT], with + between them"
_LOOPBACK = "127.0.0.1"
_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3}
_USECS = {"": 1000000, "m": 1000, "u": 1}
_DEFAULT_INTERVAL_US = 50000
_IDLE = frozenset(("vifname", "model", "netdev", "accel"))
_REFUSED = frozenset(("gatewaydev", "backend", "forwarddev"))


def forwards(text: str) -> list[str]:
    """Ports of this machine that lead into a guest, `[ADDRESS/]PORT[:GUESTPORT]` with + between them.

    As passt has them, `ADDRESS/PORT:GUESTPORT`; the loopback where no address is given. Raises BuildError.
    """
    return [_forward(part) for part in text.split("+")] if text else []


def _forward(text: str) -> str:
    found = _FORWARD.fullmatch(text)
    if found is not None:
        address, port, to = found.groups(default="")
        numbers = [int(part) for part in (port, to or port)]
        if all(0 < number < 1 << 16 for number in numbers) and all(
            int(b) < 256 for b in address.split(".") if b
        ):
            return f"{address or _LOOPBACK}/{port}:{to or port}"
    raise BuildError("no port that leads into a guest", found=text, expected=_FORWARDS)


def _are_forwards(text: str) -> bool:
    try:
        return bool(forwards(text))
    except BuildError:
        return False


def parse_rate(text: str) -> tuple[int, int] | None:
    """xlu_vif_parse_rate(): bytes each interval, and the interval in microseconds; None for no such thing."""
    found = _RATE.fullmatch(text)
    if found is None:
        return None
    number, unit, bits, every, every_unit = found.groups()
    rate = int(number) * _UNITS[unit] // (8 if bits == "b" else 1)
    interval = int(every) * _USECS[every_unit] if every else _DEFAULT_INTERVAL_US
    each = rate * interval // 10**6
    return (each, interval) if each and 0 < interval < 1 << 32 else None


_CHECKS: dict[str, Check] = {
    "type": (lambda text: text in ("vif", "user"), "vif, on a bridge, or user, which leads out of the host"),
    "script": (
        lambda text: text.rpartition("/")[2] in ("vif-bridge", "vif-openvswitch"),
        "vif-bridge or vif-openvswitch, for which a switch of this host stands: no script is run here",
    ),
    "mac": (
        lambda text: bool(_MAC.fullmatch(text)) and not int(text.partition(":")[0], 16) & 1,
        "six bytes of one station, such as 00:16:3e:01:02:03",
    ),
    "bridge": (lambda text: bool(_NAME.fullmatch(text)), "a name, such as xenbr0"),
    "ip": (lambda text: text.isprintable(), "addresses"),
    "rate": (lambda text: parse_rate(text) is not None, "such as 10Mb/s or 1MB/s@20ms"),
    "mtu": (lambda text: text.isdecimal() and 68 <= int(text[:6]) <= 65517, "68 to 65517"),
    "devid": (lambda text: text.isdecimal() and int(text[:6]) < MOST_VIFS, f"0 to {MOST_VIFS - 1}"),
    "trusted": (lambda text: text in ("0", "1"), "0 or 1"),
    "tcp": (_are_forwards, _FORWARDS),
    "udp": (_are_forwards, _FORWARDS),
}


def parse_vif(text: str) -> Vif:
    """The interface that `text` describes. Raises BuildError, with the word that is wrong."""
    settings = DeviceSettings("vif", text, _CHECKS, _IDLE)

    def refuse(name: str, value: str, _part: str) -> None:
        if name in _REFUSED:
            raise settings.fail(f"there is no {name} here", value)

    chosen = settings.chosen(refuse)
    rate, interval = parse_rate(chosen.get("rate", "")) or (0, _DEFAULT_INTERVAL_US)
    is_outside = chosen.get("type") == "user"
    for name in ("bridge",) if is_outside else ("tcp", "udp"):
        if name in chosen:
            raise settings.fail(f"{name} does not go with type={chosen.get('type', 'vif')}", chosen[name])
    return Vif(
        mac=":".join(part.zfill(2) for part in chosen.get("mac", "").lower().split(":") if part),
        bridge=chosen.get("bridge", "xenbr0"),
        script=chosen.get("script", "vif-bridge").rpartition("/")[2],
        ip=chosen.get("ip", ""),
        rate=rate,
        rate_usecs=interval,
        mtu=int(chosen.get("mtu", MTU)),
        trusted=chosen.get("trusted", "1") == "1",
        is_outside=is_outside,
        tcp=chosen.get("tcp", ""),
        udp=chosen.get("udp", ""),
        devid=int(chosen.get("devid", "-1")),
    )
