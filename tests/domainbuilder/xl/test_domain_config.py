"""What a configuration asks for: values, what is said of keys, refusals with their place, JSON and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from domainbuilder.xl.config_json import parse_json, to_json
from domainbuilder.xl.config_keys import KEYS, Fate
from domainbuilder.xl.config_syntax import ConfigError, Source, parse
from domainbuilder.xl.domain_config import Read, read_config
from domainbuilder.xl.vfb import parse_vfb
from hvcore.backends.vfb import Vfb

FULL = """\
# A guest
name = "debian"
type = "pv"
uuid = "6b1a9c3e-0000-4000-8000-123456789abc"
kernel = "/boot/vmlinuz"
ramdisk = "/boot/initrd"
root = "/dev/xvda1"
extra = "ro console=hvc0"
memory = 0x100
maxmem = 512
vcpus = 2
maxvcpus = 4
cap = 50
rtc_timeoffset = '-3600'
on_crash = "preserve"
on_reboot = 'destroy'
disk = [ "/srv/a.img,raw,xvda,w",
         "file:/srv/b.iso,xvdb:cdrom,r", ]
vif = [ 'mac=00:16:3e:01:02:03, bridge=xenbr0', "" ]
"""


def _read(text: str) -> Read:
    return read_config("x.cfg", parse([Source("x.cfg", text)], {}))


def _small(more: str) -> Read:
    return _read(f"name='a'\nkernel='k'\n{more}\n")


def test_everything_together() -> None:
    config, remarks = _read(FULL)
    assert remarks == ()
    assert (config.name, config.kernel, config.ramdisk) == ("debian", "/boot/vmlinuz", "/boot/initrd")
    assert config.cmdline == "root=/dev/xvda1 ro console=hvc0"
    assert (config.memory, config.maxmem, config.vcpus, config.maxvcpus, config.cap) == (256, 512, 2, 4, 50)
    assert config.rtc_timeoffset == -3600
    assert (config.on_crash, config.on_reboot, config.on_poweroff) == ("preserve", "destroy", "destroy")
    assert [(disk.target, disk.vdev, disk.readwrite) for disk in config.disks] == [
        ("/srv/a.img", "xvda", True),
        ("/srv/b.iso", "xvdb", False),
    ]
    assert config.vifs == ("mac=00:16:3e:01:02:03, bridge=xenbr0", "")


def test_json_and_back() -> None:
    config = _read(FULL).config
    text = to_json(config)
    again = read_config("x.json", parse([], parse_json(Source("x.json", text)))).config
    assert again == config
    assert to_json(again) == text
    with pytest.raises(ConfigError, match=r"x.json:3:\d+: memory is not a valid number; found \'lots\'"):
        read_config(
            "x.json", parse_json(Source("x.json", '{"name": "a",\n"kernel": "k",\n "memory": "lots"}'))
        )
    with pytest.raises(ConfigError, match=r"x.json:2:1: "):
        parse_json(Source("x.json", '{"name":\n}'))
    with pytest.raises(ConfigError, match=r"x.json:1:2: kernel: a NUL, which no text has"):
        parse_json(Source("x.json", r'{"kernel": "a\u0000b"}'))


def test_the_defaults_are_xls() -> None:
    config = _small("").config
    assert (config.vcpus, config.memory, config.on_reboot, config.on_crash) == (1, None, "restart", "destroy")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("memory='lots'", r"x.cfg:3:8: memory is not a valid number; found 'lots'"),
        ("memory=[1]", r"x.cfg:3:8: a list; expected a number"),
        ("memory=0", r"x.cfg:3:8: memory is out of range; found 0; expected 1 to "),
        ("memory=09", r"x.cfg:3:8: memory is not a valid number"),
        ("memory=1\nmemory+='2'", r"x.cfg:4:1: memory: can't use \+= with numbers"),
        ("vcpus=4\nmaxvcpus=2", r"x.cfg:4:1: maxvcpus: maxvcpus < vcpus"),
        ("memory=64\nmaxmem=32", r"x.cfg:4:1: maxmem: maxmem is below memory"),
        ("disk='/a,raw,xvda,w'", r"x.cfg:3:1: disk: a single value; .*expected a list of strings"),
        ("disk=['/a,raw,xvda,w', '/b,raw,nonsense,w']", r"x.cfg:3:24: disk: .*nonsense"),
        ("disk=['/a,raw,xvda,w', '/b,raw,xvda,w']", r"x.cfg:3:1: disk: two disks have the same vdev"),
        ("on_crash='explode'", r"x.cfg:3:10: on_crash: unknown; found 'explode'; expected destroy, restart"),
        ("type='hvm'", r"x.cfg:3:1: type: hvm guests do not run here"),
        ("type='pvx'", r"x.cfg:3:1: type: Invalid domain type pvx"),
        ("builder='hvm'", r"x.cfg:3:1: builder: hvm guests do not run here"),
        ("firmware='pvgrub64'", r"x.cfg:3:1: firmware: both kernel and firmware specified"),
        ("uuid='123'", r"x.cfg:3:6: Failed to parse UUID; found '123'"),
        ("pci=['01:00.0']", r"x.cfg:3:1: pci: cannot be had: there is no hardware"),
        ("vtpm=['backend=0']", r"x.cfg:3:1: vtpm: cannot be had: there is no such device"),
        ("vfb=['vnc=0,sdl=1']", r"x.cfg:3:6: vfb: sdl: no window is opened here; .*found sdl=1"),
        ("vfb=['vnc=0', 'vnc=0']", r"x.cfg:3:15: vfb: a domain has one framebuffer; found 2"),
        ("vfb=['vnc=0,keymap=de']", r"x.cfg:3:6: vfb: invalid keymap; found de; expected en-us"),
        ("vnc=1\nvncpasswd='a,b'", r"x.cfg:4:11: unrecognized argument; found b"),
        ("vfb=['vnclisten=a b']", r"x.cfg:3:6: vfb: invalid vnclisten"),
        ("vfb=['vncdisplay=99999']", r"x.cfg:3:6: vfb: invalid vncdisplay; found 99999; expected 0 to 59635"),
        ("vnc=1\nvncdisplay=99999", r"x.cfg:4:12: invalid vncdisplay"),
        ("vnc=1\nsdl=1", r"x.cfg:4:5: sdl: no window is opened here"),
        ("vfb=['type=sdl']", r"x.cfg:3:6: vfb: unrecognized argument; found type=sdl; expected vnc="),
        ("vpmu=1", r"x.cfg:3:1: vpmu: cannot be had"),
        ("timer_mode='one_missed_tick_pending'", r"timer_mode: cannot be had: xl: not supported for PV"),
        ("vif=['mac=00:16']", r"x.cfg:3:6: vif: invalid mac; found 00:16; expected six bytes"),
        ("vif=['colour=red']", r"x.cfg:3:6: vif: unrecognized argument; found colour=red"),
        ("cap='-1'", r"x.cfg:3:5: cap is out of range"),
        ("rtc_timeoffset=0x80000000", r"x.cfg:3:16: rtc_timeoffset is out of range; found 2147483648"),
        ("localtime=1", r"x.cfg:3:1: localtime: cannot be had: .*see rtc_timeoffset"),
    ],
)
def test_a_wrong_value_is_an_error_with_its_place_and_what_is_allowed(more: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _small(more)


def test_what_has_to_be_there() -> None:
    with pytest.raises(ConfigError, match=r"^x.cfg: Domain name must be specified"):
        _read("kernel='k'\n")
    with pytest.raises(ConfigError, match=r"^x.cfg: Neither kernel nor bootloader specified"):
        _read("name='a'\n")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("pool='p'", "x.cfg:3: pool has no effect: there are no physical processors to choose from"),
        ("cpus='0-3'", "x.cfg:3: cpus has no effect: there are no physical processors to choose from"),
        ("apic=1", "x.cfg:3: apic is ignored, as xl does: for HVM and PVH guests alone"),
        ("sdl=1", "x.cfg:3: sdl has no effect, as with xl, without vnc=1"),
        ("vfb=['vnc=0']\nvnc=1", "x.cfg:4: vnc has no effect, as with xl, beside vfb="),
        ("memroy=1", "x.cfg:3: memroy: unknown, and ignored"),
        ("cmdline='x'\nextra='y'", "x.cfg:4: ignoring extra= in favour of cmdline="),
    ],
)
def test_what_has_no_effect_is_told_with_its_line(more: str, told: str) -> None:
    assert told in [str(remark) for remark in _small(more).remarks]


@pytest.mark.parametrize(
    "more", ["pci=[]", "vfb=[]", "vpmu=0", "localtime=0", "tsc_mode='default'", "e820_host=0"]
)
def test_what_asks_for_nothing_is_no_matter(more: str) -> None:
    assert _small(more).remarks == ()


def test_every_key_that_xl_reads_is_known_and_no_other() -> None:
    listed = (Path(__file__).with_name("xl_keys.txt")).read_text().splitlines()
    assert {name for name in listed if not name.startswith("#")} == KEYS.keys()
    assert all(key.why for key in KEYS.values() if key.fate in (Fate.IDLE, Fate.REFUSED))


def test_the_manual_has_every_key_and_what_becomes_of_it() -> None:
    page = (Path(__file__).parents[3] / "docs" / "xl-cfg.md").read_text()
    _, _, page = page.partition("## What becomes of each key")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    told = {name.strip("`| "): row[1].removesuffix(" |") for row in rows for name in row[0].split(", ")}
    expected = {
        name: {Fate.HONOURED: "honoured", Fate.HVM: "ignored, as xl does for PV guests"}.get(
            key.fate, f"{key.fate.value}: {key.why}"
        )
        for name, key in KEYS.items()
    }
    assert told == expected


@pytest.mark.parametrize(
    ("more", "vfb"),
    [
        ("vfb=['']", Vfb()),
        ("vfb=['vnc=0, vncunused=1']", Vfb(vnc=False, vncunused=False)),
        ("vfb=['vnc=1,vnclisten=unix:/tmp/a b,keymap=en-us,sdl=0,display=:0']",
         Vfb(vnclisten="unix:/tmp/a b", keymap="en-us")),
        ("vfb=['vnclisten=[::1]:7,vncunused=0']", Vfb(vnclisten="[::1]:7", vncunused=False)),
        ("vnc=1\nvnclisten='0.0.0.0'\nvncdisplay=3\nvncunused=0\nvncpasswd='x y'\nopengl=0",
         Vfb(vnclisten="0.0.0.0", vncpasswd="x y", vncdisplay=3, vncunused=False)),
        ("vfb=['vncdisplay=4']\nvnc=1\nvncdisplay=3", Vfb(vncdisplay=4)),
        ("vnc=0\nvncdisplay=3", None),
    ],
)  # fmt: skip
def test_framebuffers_as_xl_reads_them(more: str, vfb: Vfb | None) -> None:
    config = _small(more).config
    assert (None if config.vfb is None else parse_vfb(config.vfb)) == vfb
    text = to_json(config)
    assert read_config("x.json", parse([], parse_json(Source("x.json", text)))).config == config
