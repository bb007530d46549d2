"""GRUB's language: taken is what Debian's grub-script-check takes, and words become GRUB's."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from domainbuilder.bootloader.disk import DiskError
from domainbuilder.bootloader.grub_script import Command, expand, parse
from tests.needs import find_tool

ACCEPTED = (
    "echo a b 'c d' \"e f\"; echo g # h\n",
    "if [ a = b ]; then\n echo c\nelif true\nthen echo d; else echo e; fi\n",
    "function f {\n echo ${1}\n}\nf x\n",
    "menuentry 'a' --class b $c 'd' {\n linux /x\n}\n",
    "submenu 'a' {\n menuentry 'b' {\n linux /x\n }\n}\n",
    "for i in a b c; do\n echo $i\ndone\n",
    "while true; do\n echo\ndone\n",
    "until false; do\n echo\ndone\n",
    "set a='b'\\''c'\n",
    "echo a \\\n b\n",
    'echo "a\\"b\\$c\\\\d"\n',
    "echo 'if' then\n",
    "set root=(hd0,gpt1)\nlinux ($root)/vmlinuz root=UUID=x quiet\n",
)
REFUSED = (
    "if true; then echo a\n",
    "fi\n",
    "menuentry 'a' {\n linux /x\n",
    "}\n",
    "echo 'a\n",
    'echo "a\n',
    "if true; echo a; fi\n",
    "for i in a; echo; done\n",
    "function f {\n",
)


@pytest.mark.parametrize("text", ACCEPTED)
def test_what_grub_takes_is_taken(text: str, tmp_path: Path) -> None:
    assert _grub_takes(text, tmp_path / "grub.cfg")
    parse(text, "grub.cfg")


@pytest.mark.parametrize("text", REFUSED)
def test_what_grub_refuses_is_refused_with_its_line(text: str, tmp_path: Path) -> None:
    assert not _grub_takes(text, tmp_path / "grub.cfg")
    with pytest.raises(DiskError, match=r"grub.cfg, line \d+: "):
        parse(text, "grub.cfg")


def _grub_takes(text: str, path: Path) -> bool:
    path.write_text(text)
    return (
        subprocess.run([find_tool("grub-script-check"), path], capture_output=True, check=False).returncode
        == 0
    )


def test_debians_own_example(tmp_path: Path) -> None:
    example = Path("/usr/share/doc/grub-common/examples/grub.cfg")
    if example.exists():  # Debian's images for containers leave documentation out
        parse(example.read_text(), str(example))
    text = "".join(ACCEPTED)
    assert _grub_takes(text, tmp_path / "grub.cfg")
    assert len(parse(text, "all of them")) > len(ACCEPTED)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("echo a b", ["echo", "a", "b"]),
        ("echo 'a b'c", ["echo", "a bc"]),
        ("echo $empty x", ["echo", "x"]),
        ('echo "$empty" x', ["echo", "", "x"]),
        ("echo $two", ["echo", "one", "two"]),
        ('echo "$two"', ["echo", "one two"]),
        ("echo a${two}b", ["echo", "aone", "twob"]),
        ('echo "a${two}b"', ["echo", "aone twob"]),
        ("echo '$two'", ["echo", "$two"]),
        ("echo \\$two", ["echo", "$two"]),
        ('echo "\\$two \\n"', ["echo", "$two \\n"]),
        ("set x=$two", ["set", "x=one", "two"]),
    ],
)
def test_words(text: str, expanded: list[str]) -> None:
    (command,) = parse(text, "words")
    assert isinstance(command, Command)
    assert expand(command.words, {"two": "one two"}) == expanded


@pytest.mark.parametrize(
    "text",
    [
        "if true; then " * 5000,
        "menuentry a { " * 5000,
        "echo a\n" * 50_000,
        "echo " + "a" * 100_000,
        "$" * 70_000,
    ],
    ids=["ifs", "menus", "commands", "a word", "dollars"],
)
def test_what_is_endless_is_refused(text: str) -> None:
    with pytest.raises(DiskError, match=r"too (deeply|many|long)"):
        parse(text, "grub.cfg")


def test_random_text_is_read_or_refused() -> None:
    randomly = random.Random(7)
    pieces = (
        "if ",
        "then ",
        "fi ",
        "menuentry ",
        "{ ",
        "} ",
        "'",
        '"',
        "$a ",
        "${",
        "\n",
        ";",
        "\\",
        "x ",
        "#",
        "do ",
    )
    for _ in range(3000):
        text = "".join(randomly.choice(pieces) for _ in range(randomly.randrange(30)))
        try:
            parse(text, "grub.cfg")
        except DiskError as error:
            assert "\n" not in str(error).replace("\\n", "")  # noqa: PT017
