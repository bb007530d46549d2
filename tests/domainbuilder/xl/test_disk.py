"""xl's disk syntax: the examples of xl-disk-configuration(5), the old forms, and what is refused."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from domainbuilder.errors import BuildError
from domainbuilder.xl.disk import parse_disk
from hvcore.backends.disk import Disk

CD = Disk("hdc", "/srv/image.iso", readwrite=False, is_cdrom=True, removable=True)
READ_ONLY = Disk("xvda1", "/a", readwrite=False, discard=False, trusted=False)


@pytest.mark.parametrize(
    "text",
    [  # the four that the manual page says are the same, and old forms of it
        "/dev/vg/guest-volume,,hda",
        "/dev/vg/guest-volume,raw,hda,rw",
        "format=raw, vdev=hda, access=rw, target=/dev/vg/guest-volume",
        "raw:/dev/vg/guest-volume,hda,w",
        "phy:/dev/vg/guest-volume,hda,w",
        "file:/dev/vg/guest-volume,hda",
        "tap:aio:/dev/vg/guest-volume,hda,w",
        "  /dev/vg/guest-volume , ,hda".replace(" ,", ","),
        "backendtype=phy,vdev=hda,discard,target=/dev/vg/guest-volume",
    ],
)
def test_ways_to_say_the_same(text: str) -> None:
    assert parse_disk(text) == Disk("hda", "/dev/vg/guest-volume")


@pytest.mark.parametrize(
    ("text", "disk"),
    [
        ("/srv/image.iso,,hdc,cdrom", CD),
        ("/srv/image.iso,,hdc:cdrom,r", CD),
        ("format=raw, vdev=hdc, access=ro, devtype=cdrom, target=/srv/image.iso", CD),
        (",,hdc:cdrom,r",
            Disk("hdc", "", format="empty", readwrite=False, is_cdrom=True, removable=True)),
        ("vdev=xvda,target=/a,b=c,d", Disk("xvda", "/a,b=c,d")),
        ("/a,raw,xvda1,r,no-discard,untrusted", READ_ONLY),
        ("/a,raw,xvda,rw,direct-io-safe", Disk("xvda", "/a", direct_io_safe=True)),
    ],
)  # fmt: skip
def test_what_a_disk_is(text: str, disk: Disk) -> None:
    assert parse_disk(text) == disk


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no vdev specified"),
        ("/a", "no vdev specified"),
        ("/a,raw,xvda,w,more", "too many positional parameters; found more"),
        ("/a,raw,xvda,x", "unknown value for access; found x; expected r, ro, w, rw"),
        ("/a,zip,xvda", "unknown value for format; found zip; expected raw, qcow, qcow2, vhd, empty, qed"),
        ("/a,vhd,xvda", "images of this format are not read here; found vhd; expected raw, qcow2"),
        ("vdev=xvda,vdev=xvdb,target=/a", "vdev respecified; found xvdb"),
        ("vdev=xvda", "no target specified (and device not removable)"),
        ("/a,raw,ada0", "Invalid or unsupported virtual disk identifier; found ada0"),
        ("size=10G,vdev=xvda,target=/a", "unknown parameter; found size=10G"),
        ("script=block-drbd,vdev=xvda,target=r0", "there is no such script here; found block-drbd"),
        ("drbd:r0,xvda,w", "there is no such script here; found block-drbd"),
        ("backend=storage,vdev=xvda,target=/a", "there is no such backend here; found storage"),
        ("specification=virtio,vdev=xvda,target=/a", "there is no such specification here; found virtio"),
        ("zfs:/a,xvda,w", "unknown deprecated disk prefix; found zfs"),
        ("/a,raw,hdc:floppy", "unknown deprecated type; found floppy"),
        ("colo,vdev=xvda,target=/a", "COLO is not supported"),
    ],
)
def test_what_is_no_disk_here(text: str, message: str) -> None:
    with pytest.raises(BuildError) as caught:
        parse_disk(text)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"disk {text!r}: ")


@settings(max_examples=300)
@given(st.text(alphabet="abcxvd/,:=. rwqo2-", max_size=30))
def test_any_text_is_a_disk_or_refused(text: str) -> None:
    try:
        disk = parse_disk(text)
    except BuildError:
        return
    assert disk.devid >= 0
    assert disk.format in ("raw", "empty")
