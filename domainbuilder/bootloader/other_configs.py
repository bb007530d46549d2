"""The other configurations: GRUB 1's menu.lst, extlinux and its kin, Boot Loader Specification.

Sources: the GRUB 0.97 manual; the syslinux wiki's page Config; the specification of uapi-group.org.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from domainbuilder.bootloader.disk import DiskError
from domainbuilder.bootloader.filesystems import FileSystem, read_text
from domainbuilder.bootloader.grub_script import environment_block, without_device
from domainbuilder.bootloader.menu import Boot, Entry, Menu

_MOST_ENTRIES = 256
_BLS_FOLDERS = ("/loader/entries", "/boot/loader/entries")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_GRUBENVS = ("/boot/grub2/grubenv", "/grub2/grubenv", "/boot/grub/grubenv", "/grub/grubenv")


def _entry(source: str, title: str, ident: str, kernel: str, ramdisks: tuple[str, ...], args: str) -> Entry:
    def boot() -> Boot:
        if not kernel:
            raise DiskError(f"{source}: the entry {title!r} boots no Linux kernel")
        return Boot(kernel, ramdisks, args)

    return Entry(title, ident, boot)


def _limited(source: str, entries: list[Entry]) -> list[Entry]:
    if len(entries) > _MOST_ENTRIES:
        raise DiskError(f"{source}: too many entries", found=len(entries), expected=_MOST_ENTRIES)
    return entries


# GRUB 1

_LINE = re.compile(r"\s*(\w+)[\s=]+(.*)")


def grub1(fs: FileSystem, path: str) -> Menu:
    """A menu.lst or grub.conf. Raises OSError where there is none."""
    default, timeout, entries = "0", None, []
    titles: list[tuple[str, dict[str, str]]] = []
    for line in read_text(fs, path).splitlines():
        if not (match := _LINE.match(line)) or line.lstrip().startswith("#"):
            continue
        word, rest = match[1].lower(), match[2].strip()
        if word == "title":
            titles.append((rest, {}))
        elif titles:
            titles[-1][1].setdefault(word, rest)
        elif word == "default":
            default = "0" if rest == "saved" else rest
        elif word == "timeout" and rest.isdigit():
            timeout = int(rest[:9])
    for title, words in titles:
        kernel, args = _first_word(words.get("kernel", ""))
        while kernel.startswith("--"):  # --type=linux
            kernel, args = _first_word(args)
        if kernel.rpartition("/")[2].startswith("xen") and "module" in words:
            kernel = ""  # Xen itself, with the kernel for domain 0
        ramdisk = without_device(words.get("initrd", ""))
        entries.append(_entry(path, title, "", without_device(kernel), (ramdisk,) if ramdisk else (), args))
    return Menu(path, tuple(_limited(path, entries)), default, timeout)


def _first_word(text: str) -> tuple[str, str]:
    first, *rest = text.split(None, 1) or [""]
    return first, rest[0] if rest else ""


# extlinux, isolinux, syslinux


def extlinux(fs: FileSystem, path: str) -> Menu:
    """An extlinux.conf or isolinux.cfg, with what it includes. Raises OSError where there is none."""
    default, timeout = "", None
    labels: list[dict[str, str]] = []
    shared: dict[str, str] = {}
    for line in _included(fs, path, 16):
        word, rest = _first_word(line)
        word = word.lower()
        if word == "menu":
            word, rest = _first_word(rest)
            word = f"menu {word.lower()}"
        if word == "label":
            labels.append({"label": rest})
        elif word in ("default", "ontimeout") and not default:
            default = rest
        elif word == "timeout" and rest.isdigit():
            timeout = int(rest[:9]) // 10 or None  # tenths of a second; 0 waits for ever
        elif word == "menu default" and labels:
            default = labels[-1]["label"]
        else:
            (labels[-1] if labels else shared).setdefault(word, rest)
    entries = [_labelled(path, words, words.get("append", shared.get("append", ""))) for words in labels]
    return Menu(path, tuple(_limited(path, entries)), default or "0", timeout)


def _labelled(path: str, words: dict[str, str], append: str) -> Entry:
    """The entry of a label with these words, whose files are beside the configuration at `path`."""
    folder = path.rpartition("/")[0]
    args = [] if append == "-" else append.split()
    inside = [word.removeprefix("initrd=") for word in args if word.startswith("initrd=")]
    ramdisks = words.get("initrd") or (inside[-1] if inside else "")
    kernel = words.get("kernel") or words.get("linux") or ""
    if kernel.endswith((".c32", ".com", ".cbt", ".bin", ".bs", ".0")):
        kernel = ""  # a program of syslinux's own
    return _entry(
        path,
        words.get("menu label", words["label"]).replace("^", ""),
        words["label"],
        _from(folder, kernel),
        tuple(_from(folder, one) for one in ramdisks.split(",") if one),
        " ".join(word for word in args if not word.startswith("initrd=")),
    )


def _included(fs: FileSystem, path: str, depth: int) -> list[str]:
    folder = path.rpartition("/")[0]
    lines = []
    for raw in read_text(fs, path).splitlines():
        line = raw.strip()
        word, rest = _first_word(line)
        if word.lower() == "menu" and rest.lower().startswith("include "):
            word, rest = "include", rest.split(None, 1)[1]
        if word.lower() == "include":
            if depth <= 0:
                raise DiskError(f"{path}: too many files are included")
            try:
                lines += _included(fs, _from(folder, rest.split()[0] if rest else ""), depth - 4)
            except OSError:
                continue
        elif line and not line.startswith("#"):
            lines.append(line)
    return lines


def _from(folder: str, path: str) -> str:
    return path if path.startswith("/") or not path else f"{folder}/{path}"


# The Boot Loader Specification


def boot_loader_entries(fs: FileSystem, variables: Mapping[str, str]) -> list[Entry]:
    """The entries in loader/entries, the newest version first; $kernelopts and others are put in."""
    for folder in _BLS_FOLDERS:
        try:
            names = sorted(name for name in fs.listdir(folder) if name.endswith(".conf"))
        except OSError:
            continue
        _limited(folder, [])
        found = []
        for name in names[:_MOST_ENTRIES]:
            pairs = (_first_word(line.strip()) for line in read_text(fs, f"{folder}/{name}").splitlines())
            words: dict[str, list[str]] = {}
            for word, rest in pairs:
                if word and not word.startswith("#"):
                    words.setdefault(word, []).append(rest)
            found.append((_version_key(words, name), name.removesuffix(".conf"), words))
        found.sort(key=lambda one: one[0], reverse=True)
        return [_bls_entry(f"{folder}/{name}.conf", name, words, variables) for _, name, words in found]
    return []


def _version_key(words: Mapping[str, list[str]], name: str) -> list[tuple[int, int, str]]:
    """Numbers compare as numbers, the rest as text, as rpm and strverscmp have it."""
    text = words.get("version", [name])[0]
    return [
        (1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.findall(r"\d{1,18}|\D+", text)
    ]


def _bls_entry(source: str, name: str, words: Mapping[str, list[str]], variables: Mapping[str, str]) -> Entry:
    def put_in(text: str) -> str:
        return _VARIABLE.sub(lambda name: variables.get(name[1] or name[2], ""), text).strip()

    options = " ".join(words.get("options", []))
    ramdisks = tuple(one for line in words.get("initrd", []) for one in put_in(line).split())
    kernel = words.get("linux", [""])[0]
    title = words.get("title", [name])[0]
    return _entry(source, title, name, kernel, ramdisks, put_in(options))


def bls(fs: FileSystem, _path: str) -> Menu:
    """The entries alone, as systemd-boot has them. Raises FileNotFoundError where there are none."""
    variables: dict[str, str] = {}
    for path in _GRUBENVS:
        try:
            variables.update(environment_block(read_text(fs, path)))
            break
        except OSError:
            continue
    if not (entries := boot_loader_entries(fs, variables)):
        raise FileNotFoundError(_BLS_FOLDERS[0])
    return Menu(_BLS_FOLDERS[0], tuple(entries), variables.get("saved_entry", "0"))
