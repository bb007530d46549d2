"""The keys of xl.cfg(5): what kind of value each has, and what becomes of it here.

Sources: docs/man/xl.cfg.5.pod.in and tools/xl/xl_parse.c of Xen 4.17. A key is honoured; or it changes
nothing for a PV guest on this machine, and why; or what it asks for cannot be had, and why.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Kind(Enum):
    """How a value is written."""

    STRING = "a string"
    NUMBER = "a number"
    BOOLEAN = "0 or 1"
    LIST = "a list of strings"
    WORDS = "a string or a list of strings"


class Fate(Enum):
    """What becomes of a key."""

    HONOURED = "honoured"
    IDLE = "no effect"
    REFUSED = "refused"
    HVM = "for HVM and PVH guests alone"


class Key(NamedTuple):
    """One key: `why` its fate is that; of a key that is honoured, what it says.

    `idle` are the values that ask for nothing.
    """

    kind: Kind
    fate: Fate
    why: str = ""
    idle: tuple[str, ...] = ()


_S, _N, _B, _L, _W = Kind.STRING, Kind.NUMBER, Kind.BOOLEAN, Kind.LIST, Kind.WORDS


def _honoured(kind: Kind, texts: dict[str, str]) -> dict[str, Key]:
    return {name: Key(kind, Fate.HONOURED, text) for name, text in texts.items()}


def _idle(kind: Kind, names: str, why: str) -> dict[str, Key]:
    return {name: Key(kind, Fate.IDLE, why) for name in names.split()}


def _refused(kind: Kind, names: str, why: str, *idle: str) -> dict[str, Key]:
    return {name: Key(kind, Fate.REFUSED, why, idle) for name in names.split()}


def _hvm(kind: Kind, names: str) -> dict[str, Key]:
    return {name: Key(kind, Fate.HVM) for name in names.split()}


_NO_SUCH_DEVICE = "there is no such device here"
_NO_HARDWARE = "there is no hardware to hand over"
_NO_PROCESSORS = "there are no physical processors to choose from"

_ACTION = "One of destroy, restart, rename-restart, preserve, coredump-destroy, coredump-restart, soft-reset"
_STRINGS = {
    "name": "The domain's name; every configuration has one.",
    "type": "pv, which is what there is without it, too; hvm and pvh are refused.",
    "builder": "generic, the older word for a PV guest; hvm is refused.",
    "uuid": "The domain's UUID, for the guest to see; without it, one that is made of the name.",
    "kernel": "The kernel's file; with bootloader=, the file within the disk.",
    "ramdisk": "The ramdisk's file; with bootloader=, the file within the disk.",
    "cmdline": "The kernel's command line, in place of root= and extra=.",
    "root": "What the command line begins with, as root=VALUE.",
    "extra": "What follows root= in the command line.",
    "firmware": "pvgrub32 and pvgrub64 are known and refused: kernel= names a PV-GRUB.",
    "bootloader": "pygrub, which finds kernel, ramdisk and command line on the first disk.",
    "on_poweroff": f"{_ACTION}: what follows a poweroff. Without it, destroy.",
    "on_reboot": "The same for a reboot. Without it, restart.",
    "on_watchdog": "The same for a watchdog that was not patted in time. Without it, destroy.",
    "on_crash": "The same for a crash. Without it, destroy.",
    "on_soft_reset": "The same for a soft reset, which ends the domain here all the same.",
}
_NUMBERS = {
    "memory": "MB that the domain begins with; without it, maxmem, or what the kernel needs.",
    "maxmem": "MB that it may come to have by its balloon; without it, memory.",
    "vcpus": "How many vCPUs it begins with; without it, 1.",
    "maxvcpus": "How many vCPUs it may come to have; without it, vcpus.",
    "rtc_timeoffset": "How many seconds the guest's wall clock is ahead; it begins at --date. Without it, 0.",
    "cap": "How much of a processor it has at most, in percent; 0 for any, and above 100 as good as none.",
}
# What makes a framebuffer of vnc=1, where there is no vfb=.
_VFB_BOOLEANS = {
    "vnc": "1: a framebuffer, as vfb= would make it of this and the next keys.",
    "vncunused": "Whether VNC's display is the first one from vncdisplay= on that is free. Without it, 1.",
    "sdl": "1 is refused: no window is opened here.",
    "opengl": "1 is refused, as sdl= is.",
}
_VFB_STRINGS = {
    "vnclisten": "Where VNC's viewers come: ADDRESS, ADDRESS:DISPLAY, or unix:PATH. Without it, 127.0.0.1.",
    "vncpasswd": "What viewers have to know.",
    "keymap": "en-us, which is what there is.",
    "display": "For sdl=, and without effect.",
    "xauthority": "For sdl=, and without effect.",
}
_VFB_NUMBERS = {"vncdisplay": "VNC's display: port 5900 and so many. Without it, 0."}
_WORDS = {"bootloader_args": "Options of pygrub: --entry=, --kernel=, --ramdisk=, --args=, --offset=, -q."}
_LISTS = {
    "disk": "Disks, each as in xl-disk-configuration(5): TARGET,FORMAT,VDEV,ACCESS, or all by name.",
    "vfb": "A framebuffer with keyboard and pointer: vnc=, vnclisten=, vncdisplay=, vncunused=, vncpasswd=.",
    "vif": "Network interfaces, each as in xl-network-configuration(5): NAME=VALUE, with commas between.",
}

KEYS: dict[str, Key] = {
    **_honoured(_S, _STRINGS),
    **_honoured(_N, _NUMBERS),
    **_honoured(_W, _WORDS),
    **_honoured(_L, _LISTS),
    **_honoured(_B, _VFB_BOOLEANS),
    **_honoured(_S, _VFB_STRINGS),
    **_honoured(_N, _VFB_NUMBERS),
    # No effect, and why.
    **_idle(_N, "cpu_weight period slice latency extratime", "the domain shares its processor with no other"),
    **_idle(_W, "cpus cpus_soft", _NO_PROCESSORS),
    **_idle(_S, "pool", _NO_PROCESSORS),
    **_idle(_S, "seclabel init_seclabel device_model_stubdomain_seclabel", "there is no XSM policy here"),
    **_idle(_B, "nomigrate", "whoever runs the domain decides whether it is moved"),
    **_idle(_B, "driver_domain xend_suspend_evtchn_compat", "it tells the toolstack of other domains"),
    **_idle(_N, "shadow_memory", "PV guests run without shadow page tables"),
    **_idle(_B, "oos hap nestedhvm acpi msr_relaxed", "it is for guests with hardware support"),
    **_idle(_N, "vncviewer", "xl ignores it, too"),
    **_idle(_L, "vif2", "netchannel2 is deprecated and not supported by xl"),
    **_idle(
        _S,
        "device_model device_model_version device_model_override device_model_user",
        "no device model is needed",
    ),
    **_idle(_B, "dm_restrict device_model_stubdomain_override", "no device model is needed"),
    **_idle(_L, "device_model_args device_model_args_pv device_model_args_hvm", "no device model is needed"),
    **_idle(_S, "stubdomain_kernel stubdomain_cmdline stubdomain_ramdisk", "no device model is needed"),
    **_idle(_N, "stubdomain_memory", "no device model is needed"),
    **_idle(_N, "pci_power_mgmt pci_msitranslate pci_permissive pci_seize", "it is about `pci`"),
    **_idle(_S, "device_tree gic_version vuart tee", "it is for Arm"),
    **_idle(_N, "videoram", "it is for guests with a graphics card"),
    **_idle(_W, "cpuid", "cpuid shows the processor that the guest runs on"),
    # Refused, and why; not where the value asks for nothing.
    **_refused(_L, "pci dtdev ioports irqs iomem", _NO_HARDWARE),
    **_refused(_L, "usbctrl usbdev", _NO_HARDWARE),
    **_refused(_L, "vtpm p9 pvcalls vdispl vsnd vkb channel", _NO_SUCH_DEVICE),
    **_refused(_L, "vnuma", "memory has one node here"),
    **_refused(_B, "vpmu", "there are no performance counters here", "0"),
    **_refused(_B, "e820_host", _NO_HARDWARE, "0"),
    **_refused(_S, "passthrough", _NO_HARDWARE, "disabled", "default"),
    **_refused(_S, "rdm", _NO_HARDWARE),
    **_refused(_S, "tsc_mode", "the TSC is emulated at 1 GHz", "default", "always_emulate", "0", "1"),
    **_refused(_B, "localtime", "this host's time zone is not the guest's to know; see rtc_timeoffset", "0"),
    **_refused(_N, "max_grant_frames max_maptrack_frames max_grant_version", "Xen's default is all there is"),
    **_refused(_N, "max_event_channels", "Xen's default is all there is"),
    **_refused(_N, "vmtrace_buf_kb", "there is no processor trace here", "0"),
    **_refused(_S, "timer_mode", "xl: not supported for PV guests"),
    **_refused(_W, "altp2m", "it is for guests with hardware support", "disabled", "0"),
    # What xl reads for HVM and PVH guests alone.
    **_hvm(_B, "pae apic acpi_s3 acpi_s4 acpi_laptop_slate nx hpet vpt_align altp2mhvm xen_platform_pci"),
    **_hvm(_B, "pvshim nographic spice spicedisable_ticketing spiceagent_mouse spicevdagent"),
    **_hvm(_B, "spice_clipboard_sharing usb vkb_device"),
    **_hvm(_S, "bios bios_path_override firmware_override hdtype boot vga"),
    **_hvm(_S, "spicehost spicepasswd spice_image_compression spice_streaming_video soundhw vendor_device"),
    **_hvm(_S, "acpi_firmware smbios_firmware ms_vm_genid pvshim_path pvshim_cmdline pvshim_extra"),
    **_hvm(_S, "gfx_passthru"),
    **_hvm(_N, "mmio_hole rdm_mem_boundary stdvga spiceport spicetls_port spiceusbredirection usbversion"),
    **_hvm(_W, "viridian serial usbdevice mca_caps"),
}

ACTIONS = (
    "destroy",
    "restart",
    "rename-restart",
    "preserve",
    "coredump-destroy",
    "coredump-restart",
    "soft-reset",
)
