"""What a guest can do wrong with event channels of the FIFO ABI: the words and queues are its own memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.common.event_fifo import EVENT_WORDS_PER_PAGE, EvtchnFifo
from hvcore.public import event_channel as ec
from hvcore.public.event_channel import EVTCHN_FIFO_MAX_QUEUES
from hvcore.public.xen import DOMID_SELF, Hypercall
from tests.hvcore.hostile.world import words

if TYPE_CHECKING:
    from hvcore.domain import Domain
    from tests.hvcore.hostile.fuzz import Fuzzer

_FLAGS = (0, 0, 0, 1 << 31, 1 << 30, 1 << 29, 1 << 28, 3 << 29, 5 << 29, 0xF << 28)
_PORTS = 12  # of the ports that exist, those that get the attention


def fifo(fuzzer: Fuzzer) -> None:
    """One of: begin, add a page of words, ruin a word or a queue, bind, send, unmask, move, close, end."""
    random, pick = fuzzer.random, fuzzer.pick
    port = int(random() * _PORTS) if random() < 0.97 else fuzzer.word() & 0xFFFFFFFF
    r = random()
    ops = fuzzer.w.d.evtchn.port_ops
    if r < 0.03 or not isinstance(ops, EvtchnFifo):
        offset = pick((0, 0, 0, 72, 2048, 4096 - 72, 4096 - 64, 4))
        argument = _frame(fuzzer) + words(offset, pick((0, 0, 0, 1, 1, 2))) + bytes(8)
        _call(fuzzer, ec.EVTCHNOP_init_control, argument)
    elif r < 0.06 or not ops.event_array:
        _call(fuzzer, ec.EVTCHNOP_expand_array, _frame(fuzzer))
    elif r < 0.4:
        _ruin(fuzzer)
    elif r < 0.5:
        _call(fuzzer, ec.EVTCHNOP_bind_ipi, words(pick((0, 1)), 0))
    elif r < 0.7:
        _call(fuzzer, ec.EVTCHNOP_send, words(port))
    elif r < 0.8:
        _call(fuzzer, ec.EVTCHNOP_unmask, words(port))
    elif r < 0.85:
        _call(fuzzer, ec.EVTCHNOP_bind_vcpu, words(port, pick((0, 1))))
    elif r < 0.9:
        _call(fuzzer, ec.EVTCHNOP_set_priority, words(port, int(random() * 17)))
    elif r < 0.99:
        _call(fuzzer, ec.EVTCHNOP_close, words(port))
    else:
        _call(fuzzer, ec.EVTCHNOP_reset, words(DOMID_SELF))


def _frame(fuzzer: Fuzzer) -> bytes:
    """A frame that may well be a writable one, or any."""
    hot = fuzzer.hot
    mfn = hot[int(fuzzer.random() * len(hot))].mfn if fuzzer.random() < 0.9 else fuzzer.frame()
    return mfn.to_bytes(8, "little")


def _call(fuzzer: Fuzzer, command: int, argument: bytes) -> None:
    """With the argument in a page that still takes it, if there is one."""
    mm, root = fuzzer.w.mm, fuzzer.w.v.cr3_mfn
    at = next((m.va + 64 for m in fuzzer.hot if mm.walk(root, m.va, True) >= 0), fuzzer.args)
    fuzzer.w.store(at, argument)
    fuzzer.call(Hypercall.event_channel_op, command, at)


def _ruin(fuzzer: Fuzzer) -> None:
    """Any word where the event words, the heads or the ready bits may be, to look like one of them or not."""
    random = fuzzer.random
    m = fuzzer.hot[int(random() * len(fuzzer.hot))]
    value = fuzzer.pick(_FLAGS) | int(random() * (_PORTS if random() < 0.9 else 1 << 17))
    fuzzer.w.store(m.va + int(random() * 24) * 4, words(value))
    fuzzer.counts["stores"] += 1


def event_channel_problems(d: Domain) -> list[str]:
    """What is wrong with the domain's event channels; empty if nothing is."""
    t = d.evtchn
    found = []
    in_use = sum(state > 1 for state in t.state)
    if t.active_evtchns != in_use:
        found.append(f"{t.active_evtchns} active event channels, {in_use} found")
    fields = (t.notify_vcpu_id, t.remote_dom, t.remote_port, t.virq, t.pending, t.priority, t.fifo_lastq)
    if {len(field) for field in fields} != {t.valid_evtchns}:
        found.append("the ports' fields differ in length")
    queues = EVTCHN_FIFO_MAX_QUEUES * d.max_vcpus
    if max(t.fifo_lastq) >= queues or max(t.notify_vcpu_id) >= d.max_vcpus:
        found.append("a port is on a queue or a vCPU that there is none of")
    if isinstance(t.port_ops, EvtchnFifo):
        words_there = len(t.port_ops.event_array) * EVENT_WORDS_PER_PAGE
        if max(t.port_ops.tails) >= max(words_there, 1):
            found.append("the last port of a queue has no event word")
    return found
