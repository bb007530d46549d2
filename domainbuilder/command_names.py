"""Which subcommands there are: the name of each, where it is, and the line that `--help` has of it.

A subcommand is a function in domainbuilder/commands/NAME.py. Its module is imported when it is run or its own
help is asked for, never before: COMMANDS holds the one-line help, so that `domainbuilder --help` costs what
Python costs and no more (a test holds the table to the docstrings).
"""

from __future__ import annotations

import os
from typing import NamedTuple


class Command(NamedTuple):
    """Where a subcommand lives, and the first line of its docstring."""

    module: str
    function: str
    help: str


# A name of two words is a verb of the first: `domainbuilder notes fix FILE` runs `notes fix`, and a kernel
# that is called "fix" is written ./fix.
COMMANDS: dict[str, Command] = {
    "notes": Command("notes", "notes", "Show what kernels ask of Xen, and whether Xen would accept them."),
    "notes fix": Command("notes", "fix", "Repair what can be repaired in a kernel's notes."),
    "plan": Command("plan", "plan", "Show the domain a kernel would get, without building it."),
    "build": Command("build", "build", "Build a kernel's domain into a dump-core ELF file."),
    "launch": Command("launch", "launch", "Run a kernel, or a built domain, with a console."),
    "gdb": Command("gdb", "gdb", "Run a kernel in gdb, from its first instruction on."),
    "restore": Command(
        "restore", "restore", "Go on with a domain that `launch --save-at` saved, with a console."
    ),
    "trace": Command("trace", "trace", "Sum up a trace of `launch --trace`: calls, time, latencies."),
    "compare": Command(
        "compare", "compare", "Show where two traced runs part first, in hypercalls and console."
    ),
    "matrix": Command(
        "matrix",
        "matrix",
        "Run kernels, each in several configurations, by several scripts, with several seeds.",
    ),
    "cache": Command("cache", "cache", "List what is kept to be found again: unpacked kernels, domains."),
    "cache clear": Command("cache", "clear", "Remove what is kept, or what is named of it."),
    "inspect": Command("inspect", "inspect", "Show a dump of a PV domain: registers, backtraces, mappings."),
    "create": Command("create", "create", "Run a domain as an xl.cfg(5) describes it, with its console."),
    "xl": Command(
        "xl", "xl", "Run domains in the background: xl's verbs, which `domainbuilder --help` lists."
    ),
    "xl create": Command("xl", "create", "Run a domain in the background, as an xl.cfg(5) describes it."),
    "xl list": Command(
        "xl",
        "list_domains",
        "List the domains in the background: number, memory in MB, vCPUs, state, processor time.",
    ),
    "xl vm-list": Command("xl", "vm_list", "List the domains in the background with their UUIDs."),
    "xl console": Command("xl", "console", "Be the console of a domain in the background; Ctrl-] leaves it."),
    "xl domid": Command("xl", "domid", "Print the number of a domain in the background."),
    "xl domname": Command("xl", "domname", "Print the name of a domain in the background."),
    "xl rename": Command("xl", "rename", "Give a domain in the background another name."),
    "xl uptime": Command("xl", "uptime", "Print for how long domains have been in the background."),
    "xl pause": Command("xl", "pause", "Have a domain in the background stand still; its clock does, too."),
    "xl unpause": Command("xl", "unpause", "Have a paused domain go on."),
    "xl shutdown": Command(
        "xl", "shutdown", "Ask a domain in the background to power off; it may take its time."
    ),
    "xl reboot": Command("xl", "reboot", "Ask a domain in the background to reboot; it may take its time."),
    "xl destroy": Command("xl", "destroy", "End a domain in the background at once."),
    "xl dump-core": Command(
        "xl",
        "dump_core",
        "Dump the memory of a domain in the background, for `domainbuilder inspect`; it goes on.",
    ),
    "xl vncviewer": Command(
        "xl", "vncviewer", "Print where the framebuffer of a domain in the background is seen by VNC."
    ),
    "xl screenshot": Command(
        "xl", "screenshot", "Write what the framebuffer of a domain in the background shows, as PNG."
    ),
    "xl save": Command("xl", "save", "Save a domain in the background to a file, and end it."),
    "xl restore": Command(
        "xl", "restore", "Go on in the background with a domain that was saved, here or by Xen's xl."
    ),
    "xl migrate": Command(
        "xl", "migrate", "Move a domain in the background, while it runs, to who awaits it."
    ),
    "xl block-list": Command("xl_devices", "block_list", "List the disks of a domain in the background."),
    "xl block-attach": Command(
        "xl_devices",
        "block_attach",
        "Give a domain in the background one more disk, which its guest finds while it runs.",
    ),
    "xl block-detach": Command(
        "xl_devices",
        "block_detach",
        "Take a disk from a domain in the background, when its guest has let go of it.",
    ),
    "xl network-list": Command(
        "xl_devices", "network_list", "List the network interfaces of a domain in the background."
    ),
    "xl network-attach": Command(
        "xl_devices",
        "network_attach",
        "Give a domain in the background one more network interface, which its guest finds while it runs.",
    ),
    "xl network-detach": Command(
        "xl_devices", "network_detach", "Take a network interface from a domain in the background."
    ),
    "xl vcpu-list": Command(
        "xl_devices",
        "vcpu_list",
        "List the vCPUs of domains in the background: state and the time that each has run.",
    ),
    "xl trigger": Command(
        "xl_devices", "trigger", "Send a non-maskable interrupt to a vCPU of a domain in the background."
    ),
    "xl dmesg": Command(
        "xl_devices", "dmesg", "Print what Xen's console would say of domains in the background."
    ),
    "xl info": Command("xl_devices", "info", "Print which machine this is, and which Xen its domains meet."),
    "xl sysrq": Command("xl", "sysrq", "Send a magic SysRq letter to a Linux in the background."),
    "xl xenstore-ls": Command(
        "xl",
        "xenstore_ls",
        "List the store of a domain's host, as xenstore-ls does. There the domain's number is 1.",
    ),
    "xl xenstore-read": Command(
        "xl", "xenstore_read", "Print a node of the store of a domain's host. There the domain's number is 1."
    ),
    "xl mem-set": Command(
        "xl_devices",
        "mem_set",
        "Ask a domain in the background to have so much memory, by its balloon driver.",
    ),
    "xl vcpu-set": Command(
        "xl_devices", "vcpu_set", "Ask a domain in the background to use so many of its vCPUs."
    ),
    "xl xenstore-write": Command(
        "xl",
        "xenstore_write",
        "Write a node of the store of a domain's host, as domain 0; its watches are told.",
    ),
    "xl xenstore-rm": Command(
        "xl",
        "xenstore_rm",
        "Remove a node of the store of a domain's host, and what is below it, as domain 0.",
    ),
    "tour": Command("tour", "tour", "Tell a kernel's boot step by step: what it asks, what Xen checks."),
    "initramfs": Command(
        "initramfs", "initramfs", "Make an initramfs of a busybox, for a Linux guest to boot into."
    ),
    "pygrub": Command(
        "pygrub", "pygrub", "Find the kernel, the ramdisk and the command line that a disk would boot."
    ),
    "conform": Command(
        "conform",
        "conform",
        "Run the bundled conformance guests: is everything done and refused as Xen does?",
    ),
    "lint": Command(
        "lint", "lint", "Find layout defects in a linker script, its link map and the linked kernel."
    ),
    "lint diff": Command(
        "lint", "diff", "Show what moved, grew or lost alignment between two linked kernels."
    ),
    "lint regions": Command(
        "lint", "regions", "Show how full the memory regions are, and who takes the most."
    ),
    "lint format": Command("lint", "format_script", "Print linker scripts in one style, comments kept."),
}

ABOUT = "Inspect, plan, build and run Xen PV kernels, on a machine without Xen."


def completing() -> bool:
    """Whether the shell asks for completions, instead of a person for a command."""
    return "_DOMAINBUILDER_COMPLETE" in os.environ


def verbs_and_files(command: str, incomplete: str) -> list[str]:
    """What may follow a command that takes files and has verbs, for the shell to complete."""
    from glob import escape, glob

    verbs = [name.split()[1] for name in COMMANDS if name.startswith(f"{command} ")]
    files = [f"{name}/" if os.path.isdir(name) else name for name in glob(f"{escape(incomplete)}*")]  # noqa: PTH112, PTH207
    return [verb for verb in verbs if verb.startswith(incomplete)] + sorted(files)
