"""The store of a fresh domain beside a domU's of the real xl 4.17: names, order, values, permissions.

tests/data/xenstore-domu.txt is what `xenstore ls -p` printed there, of a paused domain of this configuration.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import domainbuilder
from hvcore.backends.xenstore_nodes import format_perm
from hvcore.backends.xenstore_tree import Tree

REAL = Path(__file__).parents[2] / "data" / "xenstore-domu.txt"
# What is of the machine and the day, and the path of the kernel, which is left out here.
OTHERWISE = re.compile(r'(ring-ref|tty|start_time) = "[^"]*"')


def listed(tree: Tree, path: str = "", depth: int = 0) -> Iterator[str]:
    """The nodes as xenstore-ls prints them."""
    for name in tree.nodes[path or "/"].children:
        node = tree.nodes[f"{path}/{name}"]
        perms = ",".join(map(format_perm, node.perms))
        yield f'{" " * depth}{name} = "{node.value.decode()}"   ({perms})'
        yield from listed(tree, f"{path}/{name}", depth + 1)


def test_a_fresh_domains_nodes_are_libxls(sample_guest: Callable[[str], Path]) -> None:
    with domainbuilder.launch(
        sample_guest("hello"), memory_mib=32, maxmem_mib=48, max_vcpus=2, name="hello",
        uuid="12345678-1234-1234-1234-123456789abc",
    ) as dom:  # fmt: skip
        ours = [OTHERWISE.sub(r"\1", line) for line in listed(dom.machine.host.xenstored.tree)]
    lines = [line for line in REAL.read_text().splitlines() if "kernel = " not in line]
    assert ours == [OTHERWISE.sub(r"\1", line) for line in lines]
