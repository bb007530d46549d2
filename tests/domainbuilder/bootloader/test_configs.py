"""Configurations of boot loaders, and what they boot."""

from __future__ import annotations

import pytest

from domainbuilder.bootloader.disk import DiskError
from domainbuilder.bootloader.grub_config import Grub2
from domainbuilder.bootloader.menu import Boot, Menu
from domainbuilder.bootloader.other_configs import bls, extlinux, grub1
from tests.domainbuilder.bootloader.memory import Files

CFG = "/boot/grub/grub.cfg"


def _grub2(text: str, **files: str) -> Menu:
    return Grub2(Files({CFG: text, **files}), CFG).menu()


def _booted(menu: Menu, entry: str | None = None) -> Boot:
    return menu.chosen(entry).boot()


MENU = """
set default="{default}"
set timeout=5
menuentry 'One' --id one {{
    search --no-floppy --fs-uuid --set=root 1234
    linux /vmlinuz-1 root=UUID=1234 ro quiet
    initrd /ucode.img /initrd-1
}}
submenu 'More' --id more {{
    menuentry 'Two' --id two {{
        linux ($root)/vmlinuz-2 'a b' c
    }}
    menuentry 'Three' --id three {{
        linux (xen/xvda,gpt1)/vmlinuz-3
    }}
}}
menuentry 'Xen' {{
    multiboot2 /xen.gz
    module2 /vmlinuz-1
}}
"""


@pytest.mark.parametrize(
    ("default", "kernel"),
    [
        ("0", "/vmlinuz-1"),
        ("One", "/vmlinuz-1"),
        ("one", "/vmlinuz-1"),
        ("1", "/vmlinuz-2"),
        ("1>1", "/vmlinuz-3"),
        ("more>three", "/vmlinuz-3"),
        ("More>Two", "/vmlinuz-2"),
        ("99", "/vmlinuz-1"),
        ("", "/vmlinuz-1"),
    ],
)
def test_the_default_by_number_title_and_id(default: str, kernel: str) -> None:
    menu = _grub2(MENU.format(default=default))
    assert _booted(menu).kernel == kernel
    assert menu.timeout == 5
    assert [number for number, _ in menu.every()] == ["0", "1>0", "1>1", "2"]


def test_what_an_entry_boots() -> None:
    menu = _grub2(MENU.format(default="0"))
    assert _booted(menu) == Boot("/vmlinuz-1", ("/ucode.img", "/initrd-1"), "root=UUID=1234 ro quiet")
    assert _booted(menu, "two") == Boot("/vmlinuz-2", (), '"a b" c')
    with pytest.raises(DiskError, match="'Xen' boots Xen itself"):
        _booted(menu, "Xen")
    with pytest.raises(DiskError, match=r"there is no entry 'Four'; expected 0 'One', 1>0 'Two'"):
        _booted(menu, "Four")


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("true", True),
        ("false", False),
        ("[ a = a ]", True),
        ("[ a != a ]", False),
        ("[ x$nothing = x ]", True),
        ("[ -z $nothing ]", True),
        ('[ -n "$nothing" ]', False),
        ('[ "$nothing" ]', False),
        ('[ ! "$nothing" ]', True),
        ("[ 10 -gt 9 ]", True),
        ("[ 10 -lt 9 ]", False),
        ("[ -s $prefix/grubenv ]", True),
        ("[ -f /nowhere ]", False),
        ("test -e ($root)/boot/grub/grubenv", True),
        ("[ a = b -o c = c ]", True),
        ("[ a = a -a c = d ]", False),
        ("[ a = b -a c = d -o e = e ]", True),
        ("[ x$grub_platform = xxen ]", True),
        ('[ "$grub_platform" = "efi" ]', False),
        ("unknown_command", False),
        ("keystatus --shift", False),
        ("search --file /x --set=root", True),
    ],
)
def test_conditions(condition: str, *, holds: bool) -> None:
    text = f"if {condition}; then k=yes; else k=no; fi\nmenuentry a {{\n linux /$k\n}}\n"
    menu = _grub2(text, **{"/boot/grub/grubenv": "# GRUB Environment Block\n"})
    assert _booted(menu).kernel == ("/yes" if holds else "/no")


def test_the_environment_block_and_what_is_to_be_booted_once() -> None:
    head = (
        "load_env\n"
        'if [ "$next_entry" ]; then set default="$next_entry"; else set default="$saved_entry"; fi\n'
    )
    blocks = {"saved_entry=more>three": "/vmlinuz-3", "saved_entry=1\nnext_entry=one": "/vmlinuz-1"}
    for block, kernel in blocks.items():
        environment = f"# GRUB Environment Block\n{block}\n{'#' * 900}"
        text = MENU.format(default="0").replace('set default="0"\n', head)
        assert _booted(_grub2(text, **{"/boot/grub/grubenv": environment})).kernel == kernel
    assert _booted(_grub2(text, **{"/boot/grub/grubenv": "saved_entry=1\n"})).kernel == "/vmlinuz-1"


def test_functions_and_included_files() -> None:
    text = """
function entry {
    menuentry "$1" {
        linux $2 $options
    }
}
options="a=1"
source $prefix/custom.cfg
options="a=2"
entry Last /last
"""
    menu = _grub2(text, **{"/boot/grub/custom.cfg": "entry First /first\n"})
    assert [entry.title for _, entry in menu.every()] == ["First", "Last"]
    # The variables of an entry are those of the time when it was made; a function's arguments are gone.
    assert _booted(menu, "Last").args == "a=2"


def test_what_runs_for_ever_is_refused() -> None:
    with pytest.raises(DiskError, match=r"deeply nested|too many|more than"):
        _grub2("function f {\n f\n}\nf\n")
    with pytest.raises(DiskError, match="too many files"):
        _grub2(f"source {CFG}\n")
    doubling = "a=xxxxxxxxxxxxxxxx\n" + "a=$a$a\n" * 40
    with pytest.raises(DiskError, match="too long"):
        _grub2(doubling)


BLS = {
    "/loader/entries/f-6.1.9.conf": "title Fedora (6.1.9)\nversion 6.1.9\nlinux /vmlinuz-6.1.9\n"
    "initrd /initrd-6.1.9 $tuned\noptions root=x $kernelopts\n",
    "/loader/entries/f-6.1.10.conf": "title Fedora (6.1.10)\nversion 6.1.10\nlinux /vmlinuz-6.1.10\n"
    "options root=x\noptions ${kernelopts} rw\n",
    "/boot/grub/grubenv": "# GRUB Environment Block\nkernelopts=ro quiet\nsaved_entry=f-6.1.9\n",
}


def test_boot_loader_specification() -> None:
    menu = bls(Files(BLS), "")
    assert [entry.title for _, entry in menu.every()] == ["Fedora (6.1.10)", "Fedora (6.1.9)"]
    assert _booted(menu) == Boot("/vmlinuz-6.1.9", ("/initrd-6.1.9",), "root=x ro quiet")
    assert _booted(menu, "0") == Boot("/vmlinuz-6.1.10", (), "root=x ro quiet rw")
    by_grub = _grub2('load_env\nset default="$saved_entry"\nblscfg\n', **BLS)
    assert _booted(by_grub) == _booted(menu)


def test_grub_1() -> None:
    text = """
# a comment
default=1
timeout 3
color cyan/blue
title  Old
  root (hd0,0)
  kernel /vmlinuz-2.6.18 root=/dev/sda1 ro
  initrd /initrd-2.6.18.img
title New
  kernel --type=linux (hd0,0)/vmlinuz-2.6.32 root=/dev/xvda1
title Xen
  kernel /xen.gz dom0_mem=512M
  module /vmlinuz-2.6.18
"""
    menu = grub1(Files({"/boot/grub/menu.lst": text}), "/boot/grub/menu.lst")
    assert menu.timeout == 3
    assert _booted(menu) == Boot("/vmlinuz-2.6.32", (), "root=/dev/xvda1")
    assert _booted(menu, "Old") == Boot("/vmlinuz-2.6.18", ("/initrd-2.6.18.img",), "root=/dev/sda1 ro")
    with pytest.raises(DiskError, match="'Xen' boots no Linux kernel"):
        _booted(menu, "2")


def test_extlinux_and_what_it_includes() -> None:
    files = {
        "/isolinux/isolinux.cfg": "# top\nDEFAULT vesamenu.c32\nPROMPT 0\nTIMEOUT 50\ninclude txt.cfg\n",
        "/isolinux/txt.cfg": "default install\nlabel install\n\tmenu label ^Install\n"
        "\tkernel /install/vmlinuz\n"
        "\tappend vga=788 initrd=/install/initrd.gz --- quiet\nlabel back\n\tcom32 vesamenu.c32\n",
    }
    menu = extlinux(Files(files), "/isolinux/isolinux.cfg")
    assert menu.timeout == 5
    assert _booted(menu, "install") == Boot("/install/vmlinuz", ("/install/initrd.gz",), "vga=788 --- quiet")
    assert [entry.title for _, entry in menu.every()] == ["Install", "back"]
    alone = "label linux\n linux vmlinuz\n initrd a.img,b.img\n append root=x\n"
    folder = extlinux(Files({"/boot/extlinux/extlinux.conf": alone}), "/boot/extlinux/extlinux.conf")
    assert _booted(folder) == Boot(
        "/boot/extlinux/vmlinuz", ("/boot/extlinux/a.img", "/boot/extlinux/b.img"), "root=x"
    )
