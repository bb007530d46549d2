from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from hvcore import abi as abi_module
from hvcore.backends.libxl_nodes import remove_domain
from hvcore.backends.xenstore_nodes import PERM_READ, Perm, XenstoreError
from hvcore.backends.xenstore_privileged import HANDLERS as PRIVILEGED
from hvcore.common.event_channel import evtchn_send
from hvcore.public import xs_wire as xs
from tests.hvcore.backends.store_client import ERROR, REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD, Client, ask
from tests.hvcore.conftest import Guest

if TYPE_CHECKING:
    pass


@pytest.fixture
def client(guest32: Guest) -> Client:
    return Client(guest32)


def test_a_domus_own_nodes(client: Client) -> None:
    assert ask(client, xs.XS_READ, b"domid\0") == b"1"
    assert ask(client, xs.XS_READ, b"/local/domain/1/memory/target\0") == b"256"
    assert ask(client, xs.XS_READ, b"name\0") == b"guest"
    vm = ask(client, xs.XS_READ, b"vm\0")
    assert isinstance(vm, bytes)
    assert ask(client, xs.XS_READ, vm + b"/uuid\0") == vm[4:]
    assert ask(client, xs.XS_READ, b"cpu/1/availability\0") == b"online"
    assert ask(client, xs.XS_DIRECTORY, b"memory\0") == b"static-max\0target\0videoram\0"
    assert ask(client, xs.XS_GET_PERMS, b"name\0") == b"n0\0r1\0"
    assert ask(client, xs.XS_GET_DOMAIN_PATH, b"1\0") == b"/local/domain/1\0"


def test_who_may_write_what(client: Client) -> None:
    assert ask(client, xs.XS_WRITE, b"name\0x") == "EACCES"
    assert ask(client, xs.XS_WRITE, b"new\0x") == "EACCES"
    assert ask(client, xs.XS_WRITE, b"/new\0x") == "EACCES"
    assert ask(client, xs.XS_WRITE, b"data/new/deep\0some\0value") == b"OK\0"
    assert ask(client, xs.XS_READ, b"data/new/deep\0") == b"some\0value"
    assert ask(client, xs.XS_READ, b"data/new\0") == b""
    assert ask(client, xs.XS_GET_PERMS, b"data/new/deep\0") == b"n1\0"
    assert ask(client, xs.XS_RM, b"name\0") == "EACCES"


def test_names_that_are_none(client: Client) -> None:
    long = b"data/" + b"a" * 2050
    for path in (b"data//x", b"data/", b"data/x y", b"data/\xff", b"", long):
        assert ask(client, xs.XS_READ, path + b"\0") == "EINVAL", path
    assert ask(client, xs.XS_READ, b"domid") == "EINVAL"
    assert ask(client, xs.XS_READ, b"domid\0more\0") == "EINVAL"
    assert ask(client, xs.XS_READ, b"memory/none\0") == "ENOENT"
    assert ask(client, xs.XS_READ, b"/local/domain/7/name\0") == "EACCES"  # it may not even know
    assert ask(client, xs.XS_WRITE, b"data") == "EINVAL"


def test_mkdir_and_rm(client: Client) -> None:
    assert ask(client, xs.XS_MKDIR, b"data/a/b\0") == b"OK\0"
    assert ask(client, xs.XS_MKDIR, b"data/a/b\0") == b"OK\0"
    assert ask(client, xs.XS_DIRECTORY, b"data/a\0") == b"b\0"
    assert ask(client, xs.XS_RM, b"data/a\0") == b"OK\0"
    assert ask(client, xs.XS_RM, b"data/a\0") == b"OK\0"
    assert ask(client, xs.XS_RM, b"data/a/b\0") == "ENOENT"
    assert ask(client, xs.XS_READ, b"data/a/b\0") == "ENOENT"
    assert ask(client, xs.XS_DIRECTORY, b"data\0") == b""


def test_permissions(client: Client) -> None:
    ask(client, xs.XS_WRITE, b"data/mine\0x")
    assert ask(client, xs.XS_SET_PERMS, b"data/mine\0n1\0r0\0b5\0") == b"OK\0"
    assert ask(client, xs.XS_GET_PERMS, b"data/mine\0") == b"n1\0r0\0b5\0"
    assert ask(client, xs.XS_SET_PERMS, b"data/mine\0n0\0") == "EPERM"
    assert ask(client, xs.XS_SET_PERMS, b"data/mine\0x1\0") == "EINVAL"
    assert ask(client, xs.XS_SET_PERMS, b"data/mine\0") == "EINVAL"
    assert ask(client, xs.XS_SET_PERMS, b"data/mine\0" + b"n1\0" * 6) == "ENOSPC"
    assert ask(client, xs.XS_SET_PERMS, b"name\0n1\0") == "EACCES"


def test_watches_fire_at_once_and_below(client: Client) -> None:
    assert client.ask(xs.XS_WATCH, b"data\0tok\0") == (b"OK\0", [(b"data", b"tok")])
    assert client.ask(xs.XS_WATCH, b"data\0tok\0") == ("EEXIST", [])
    assert client.ask(xs.XS_WRITE, b"data/x/y\x001") == (b"OK\0", [(b"data/x/y", b"tok")])
    assert client.ask(xs.XS_WATCH, b"/local/domain/1/data/x/y\0abs\0")[0] == b"OK\0"
    answer, events = client.ask(xs.XS_RM, b"data/x\0")
    assert (answer, sorted(events)) == (
        b"OK\0",
        [(b"/local/domain/1/data/x/y", b"abs"), (b"data/x", b"tok")],
    )
    assert client.ask(xs.XS_UNWATCH, b"data\0tok\0") == (b"OK\0", [])
    assert client.ask(xs.XS_UNWATCH, b"data\0tok\0") == ("ENOENT", [])
    assert client.ask(xs.XS_WRITE, b"data/x\x001") == (b"OK\0", [])
    assert client.ask(xs.XS_WATCH, b"@releaseDomain\0t\0") == (b"OK\0", [(b"@releaseDomain", b"t")])
    assert client.ask(xs.XS_RESET_WATCHES, b"\0") == (b"OK\0", [])


def test_domain_zero_asks_for_a_shutdown(client: Client) -> None:
    client.ask(xs.XS_WATCH, b"control/shutdown\0sd\0")
    client.store.write("control/shutdown", "poweroff")
    client.take()
    assert [data for _, _, _, data in client.messages()] == [b"control/shutdown\0sd\0"]
    assert ask(client, xs.XS_READ, b"control/shutdown\0") == b"poweroff"
    ask(client, xs.XS_WRITE, b"control/shutdown\0")
    assert client.store.read("control/shutdown") == ""
    assert client.store.read("control/none") is None


def test_transactions(client: Client) -> None:
    client.ask(xs.XS_WATCH, b"data\0w\0")
    tx = ask(client, xs.XS_TRANSACTION_START, b"\0")
    assert tx == b"1\0"
    assert client.ask(xs.XS_WRITE, b"data/t\x001", 1) == (b"OK\0", [])
    assert ask(client, xs.XS_READ, b"data/t\0", 1) == b"1"
    assert ask(client, xs.XS_READ, b"data/t\0") == "ENOENT"
    assert ask(client, xs.XS_TRANSACTION_START, b"\0", 1) == "EBUSY"
    answer, events = client.ask(xs.XS_TRANSACTION_END, b"T\0", 1)
    assert answer == b"OK\0"
    assert (b"data/t", b"w") in events
    assert ask(client, xs.XS_READ, b"data/t\0") == b"1"
    assert ask(client, xs.XS_READ, b"data/t\0", 1) == "ENOENT"
    assert ask(client, xs.XS_TRANSACTION_END, b"X\0", 1) == "ENOENT"
    assert ask(client, xs.XS_TRANSACTION_END, b"X\0") == "EINVAL"
    assert ask(client, xs.XS_TRANSACTION_END, b"T\0") == "ENOENT"


def test_a_conflict_is_told_and_an_abort_leaves_nothing(client: Client) -> None:
    ask(client, xs.XS_TRANSACTION_START, b"\0")
    ask(client, xs.XS_READ, b"control/shutdown\0", 1)
    ask(client, xs.XS_WRITE, b"data/t\x001", 1)
    client.store.write("control/shutdown", "halt")
    assert ask(client, xs.XS_TRANSACTION_END, b"T\0", 1) == "EAGAIN"
    ask(client, xs.XS_TRANSACTION_START, b"\0")
    ask(client, xs.XS_WRITE, b"data/t\x001", 2)
    client.store.write("control/sysrq", "h")  # not looked at: no conflict
    assert ask(client, xs.XS_TRANSACTION_END, b"F\0", 2) == b"OK\0"
    assert ask(client, xs.XS_READ, b"data/t\0") == "ENOENT"
    ask(client, xs.XS_TRANSACTION_START, b"\0")
    ask(client, xs.XS_WRITE, b"data/t\x001", 3)
    client.store.write("control/sysrq", "h")
    assert ask(client, xs.XS_TRANSACTION_END, b"T\0", 3) == b"OK\0"


def test_quotas(client: Client) -> None:
    for i in range(128):
        assert ask(client, xs.XS_WATCH, b"data\0%d\0" % i) == b"OK\0"
    assert ask(client, xs.XS_WATCH, b"data\0a\0") == b"OK\0"
    assert ask(client, xs.XS_WATCH, b"data\0b\0") == "E2BIG"
    ask(client, xs.XS_RESET_WATCHES, b"\0")
    started = [ask(client, xs.XS_TRANSACTION_START, b"\0") for _ in range(12)]
    assert started[-1] == "ENOSPC"
    assert started.count("ENOSPC") == 1
    assert ask(client, xs.XS_WRITE, b"data/big\0" + bytes(2048)) == "ENOSPC"
    ask(client, xs.XS_RESET_WATCHES, b"\0")
    made = [ask(client, xs.XS_MKDIR, b"data/%d/%d\0" % (i // 30, i)) for i in range(1001)]
    assert made[-1] == "ENOSPC"
    assert 900 < made.count(b"OK\0") < 1000
    assert client.daemon.tree.accounts[1].nbentry <= 1000
    for i in range(34):
        assert ask(client, xs.XS_RM, b"data/%d\0" % i) in (b"OK\0", "ENOENT")
    assert ask(client, xs.XS_MKDIR, b"data/again\0") == b"OK\0"


def test_a_long_directory_comes_in_parts(client: Client) -> None:
    names = [b"node-%03d" % i for i in range(100)]
    for name in names:
        assert ask(client, xs.XS_MKDIR, b"data/" + name + b"\0") == b"OK\0"
    part = ask(client, xs.XS_DIRECTORY_PART, b"data\x000\0")
    assert isinstance(part, bytes)
    generation, _, rest = part.partition(b"\0")
    assert int(generation) > 0
    assert rest == b"".join(name + b"\0" for name in names) + b"\0"
    assert ask(client, xs.XS_DIRECTORY_PART, b"data\x009\0") == generation + b"\0" + rest[9:]
    assert ask(client, xs.XS_DIRECTORY_PART, b"data\x0099999\0") == generation + b"\0\0"


def test_what_only_domain_zero_may(client: Client) -> None:
    for kind in (xs.XS_CONTROL, xs.XS_INTRODUCE, xs.XS_RELEASE, xs.XS_RESUME, xs.XS_SET_TARGET):
        assert ask(client, kind, b"1\0") == "EACCES"
    for kind in (xs.XS_WATCH_EVENT, xs.XS_ERROR, 20, 23, 0xFFFFFFFF):
        assert ask(client, kind, b"\0") == "ENOSYS"
    assert ask(client, xs.XS_READ, b"domid\0", 99) == "ENOENT"


def told(client: Client, *words: str) -> str:
    payload = "".join(f"{word}\0" for word in words).encode()
    return PRIVILEGED[xs.XS_CONTROL](client.daemon, payload).rstrip(b"\0").decode()


def test_a_domain_is_introduced_again(client: Client) -> None:
    """Its watches and transactions are gone, its ring begins anew, and its nodes stay."""
    assert ask(client, xs.XS_WRITE, b"data/mine\0here") == b"OK\0"
    assert ask(client, xs.XS_WATCH, b"data\0token\0") == b"OK\0"
    assert ask(client, xs.XS_TRANSACTION_START, b"\0") == b"1\0"
    intro = f"{client.guest.d.domain_id}\x006\x00{client.port}\0".encode()
    assert PRIVILEGED[xs.XS_INTRODUCE](client.daemon, intro) == b"OK\0"
    assert (client.store.watches, client.store.transactions) == ([], {})
    assert [client.index(at) for at in (2048, 2052, 2056, 2060)] == [0] * 4
    assert ask(client, xs.XS_READ, b"data/mine\0") == b"here"
    assert ask(client, xs.XS_READ, b"data/mine\0", 1) == "ENOENT"


def test_a_released_domain_is_heard_when_it_is_introduced_again(client: Client) -> None:
    assert ask(client, xs.XS_WRITE, b"data/mine\0gone") == b"OK\0"
    domid = client.guest.d.domain_id
    assert PRIVILEGED[xs.XS_RELEASE](client.daemon, f"{domid}\0".encode()) == b"OK\0"
    assert PRIVILEGED[xs.XS_IS_DOMAIN_INTRODUCED](client.daemon, f"{domid}\0".encode()) == b"F\0"
    client.post(struct.pack("<4I", xs.XS_READ, 5, 0, 5) + b"name\0")
    assert list(client.messages()) == []
    assert client.daemon.read(f"/local/domain/{domid}/data") is None  # what it owned went with it
    assert client.daemon.read(f"/local/domain/{domid}/name") == "guest"
    intro = f"{domid}\x006\x00{client.port}\0".encode()
    assert PRIVILEGED[xs.XS_INTRODUCE](client.daemon, intro) == b"OK\0"
    # Older nodes give it nothing, as xenstored has it of a number that is used again.
    assert ask(client, xs.XS_READ, b"name\0") == "EACCES"
    client.daemon.write(f"/local/domain/{domid}/new", "x", (Perm(0, 0), Perm(domid, 1)))
    assert ask(client, xs.XS_READ, b"new\0") == b"x"
    client.daemon.release(domid)
    with pytest.raises(XenstoreError):
        PRIVILEGED[xs.XS_INTRODUCE](client.daemon, intro)


def test_quotas_are_told_and_changed(client: Client) -> None:
    shown = told(client, "quota").splitlines()
    assert shown[:2] == ["Quota settings:", "nodes            :     1000 Nodes per domain"]
    assert ":  2097152 Total Xenstore memory per domain (warning level)\n" in told(client, "quota-soft")
    used = dict(line.split(":") for line in told(client, "quota", "1").splitlines()[1:])
    nodes = int(used["nodes           "])
    assert told(client, "quota", "set", "nodes", str(nodes + 1)) == "OK"
    assert ask(client, xs.XS_MKDIR, b"data/one\0") == b"OK\0"
    assert ask(client, xs.XS_MKDIR, b"data/two\0") == "ENOSPC"
    assert told(client, "quota", "set", "watches", "1") == "OK"
    answers = [ask(client, xs.XS_WATCH, b"data\0%d\0" % i) for i in range(3)]
    assert answers == [b"OK\0", b"OK\0", "E2BIG"]


def test_a_domain_has_the_rights_of_its_target(clients: tuple[Client, Client]) -> None:
    one, two = clients
    path = f"/local/domain/{one.guest.d.domain_id}/data/mine\0".encode()
    assert ask(one, xs.XS_WRITE, path + b"x") == b"OK\0"
    assert ask(two, xs.XS_READ, path) == "EACCES"
    target = f"{two.guest.d.domain_id}\0{one.guest.d.domain_id}\0".encode()
    assert PRIVILEGED[xs.XS_SET_TARGET](one.daemon, target) == b"OK\0"
    assert ask(two, xs.XS_READ, path) == b"x"


def test_requests_in_small_pieces(client: Client) -> None:
    for i in range(300):
        payload = b"data/piece\0" + b"v" * i
        for byte in struct.pack("<4I", xs.XS_WRITE, i, 0, len(payload)) + payload:
            client.post(bytes((byte,)))
    assert [m[:2] for m in client.messages()] == [(xs.XS_WRITE, i) for i in range(300)]


@pytest.mark.parametrize(
    ("at", "value", "error"), [(REQ_PROD, 5000, 2), (RSP_PROD, 5000, 2), (REQ_CONS, 7, 2)]
)
def test_bad_indices_end_the_connection(client: Client, at: int, value: int, error: int) -> None:
    struct.pack_into("<I", client.ring, at, value)
    client.store.write("control/shutdown", "x")
    message = struct.pack("<4I", xs.XS_READ, 1, 0, 6) + b"domid\0"
    client.ring[: len(message)] = message
    if at != REQ_PROD:
        struct.pack_into("<I", client.ring, REQ_PROD, len(message) if at != REQ_CONS else 0)
    evtchn_send(client.guest.d.evtchn, client.port)
    assert client.index(ERROR) == error
    evtchn_send(client.guest.d.evtchn, client.port)
    client.store.write("control/shutdown", "y")


def test_a_payload_too_long_ends_the_connection(client: Client) -> None:
    client.post(struct.pack("<4I", xs.XS_WRITE, 1, 0, 4097))
    assert client.index(ERROR) == xs.XENSTORE_ERROR_PROTO
    client.post(struct.pack("<4I", xs.XS_READ, 1, 0, 6) + b"domid\0") if client.index(REQ_CONS) < 16 else None
    assert client.received == b""


def test_answers_that_nobody_takes_hold_back_the_requests(client: Client) -> None:
    ask(client, xs.XS_WRITE, b"data/big\0" + bytes(2000))
    request = struct.pack("<4I", xs.XS_READ, 1, 0, 9) + b"data/big\0"
    for _ in range(5000):
        cons, prod = client.index(REQ_CONS), client.index(REQ_PROD)
        if 1024 - (prod - cons) < len(request):
            break
        for i, byte in enumerate(request):
            client.ring[(prod + i) % 1024] = byte
        struct.pack_into("<I", client.ring, REQ_PROD, prod + len(request))
        evtchn_send(client.guest.d.evtchn, client.port)
    assert client.index(REQ_PROD) > client.index(REQ_CONS)
    assert len(client.store.out) < 1 << 17
    client.take()
    assert client.index(REQ_PROD) == client.index(REQ_CONS)


def test_a_conflict_is_with_what_was_read_alone(client: Client) -> None:
    ask(client, xs.XS_WRITE, b"data/a\x001")
    ask(client, xs.XS_WRITE, b"data/b\x001")
    for tx in (1, 2, 3):
        ask(client, xs.XS_TRANSACTION_START, b"\0")
        assert tx in client.store.transactions
    assert ask(client, xs.XS_READ, b"data/a\0", 1) == b"1"
    assert ask(client, xs.XS_WRITE, b"data/b\x002", 1) == b"OK\0"
    assert ask(client, xs.XS_WRITE, b"data/a\x003") == b"OK\0"
    assert ask(client, xs.XS_READ, b"data/a\0", 1) == b"1"  # what it met stays
    assert ask(client, xs.XS_READ, b"data/a\0", 2) == b"3"  # what it has not met is as it is now
    assert ask(client, xs.XS_TRANSACTION_END, b"T\0", 1) == "EAGAIN"
    assert ask(client, xs.XS_READ, b"data/b\0") == b"1"
    assert ask(client, xs.XS_RM, b"data/b\0", 3) == b"OK\0"
    assert ask(client, xs.XS_READ, b"data/b\0", 3) == "ENOENT"
    assert ask(client, xs.XS_TRANSACTION_END, b"T\0", 3) == b"OK\0"
    assert ask(client, xs.XS_DIRECTORY, b"data\0") == b"a\0"
    assert ask(client, xs.XS_TRANSACTION_END, b"T\0", 2) == b"OK\0"  # a is as it read it


def test_a_node_made_by_others_is_a_conflict_too(client: Client) -> None:
    ask(client, xs.XS_TRANSACTION_START, b"\0")
    assert ask(client, xs.XS_READ, b"data/none\0", 1) == "ENOENT"
    ask(client, xs.XS_WRITE, b"data/none\x001")
    assert ask(client, xs.XS_TRANSACTION_END, b"T\0", 1) == "EAGAIN"


def test_a_transaction_may_meet_so_many_nodes(client: Client) -> None:
    ask(client, xs.XS_TRANSACTION_START, b"\0")
    answers = [ask(client, xs.XS_READ, b"data/%d\0" % i, 1) for i in range(1024)]
    assert answers.count("ENOENT") == 1023  # and data, which they were looked for under
    assert answers[-1] == "ENOSPC"
    assert ask(client, xs.XS_TRANSACTION_END, b"T\0", 1) == "ENOMEM"


def test_events_come_before_the_answer_to_what_caused_them_but_behind_that_to_a_watch(client: Client) -> None:
    def kinds(kind: int, payload: bytes) -> list[int]:
        client.post(struct.pack("<4I", kind, 5, 0, len(payload)) + payload)
        return [message[0] for message in client.messages()]

    assert kinds(xs.XS_WATCH, b"data\0w\0") == [xs.XS_WATCH, xs.XS_WATCH_EVENT]
    assert kinds(xs.XS_WRITE, b"data/x\0") == [xs.XS_WATCH_EVENT, xs.XS_WRITE]


def test_permissions_as_xenstored_reads_them(client: Client) -> None:
    ask(client, xs.XS_WRITE, b"data/p\0")
    for text, shown in ((b"r0x1", b"r1"), (b"b010", b"b8"), (b"w-1", b"w-1"), (b"n 7", b"n7")):
        assert ask(client, xs.XS_SET_PERMS, b"data/p\0n1\0" + text + b"\0") == b"OK\0"
        assert ask(client, xs.XS_GET_PERMS, b"data/p\0") == b"n1\0" + shown + b"\0"
    for text in (b"r", b"r08", b"r1x", b"q1", b""):
        assert ask(client, xs.XS_SET_PERMS, b"data/p\0n1\0" + text + b"\0") == "EINVAL"
    assert ask(client, xs.XS_SET_PERMS, b"data/p\0n9\0") == "ENOENT"  # there is no domain 9
    assert ask(client, xs.XS_SET_PERMS, b"@releaseDomain\0n1\0") == "EACCES"
    assert ask(client, xs.XS_SET_PERMS, b"@none\0n1\0") == "EINVAL"


# --- several domains ----------------------------------------------------------------------------------------


@pytest.fixture
def clients() -> tuple[Client, Client]:
    """Two domains of one store."""
    first = Guest(abi_module.PV64, 1, domains=2)
    one = Client(first)
    return one, Client(Guest(abi_module.PV32_PAE, 1, domains=2, beside=first), one.daemon)


def events(client: Client) -> list[bytes]:
    client.take()
    return [data for kind, _, _, data in client.messages() if kind == xs.XS_WATCH_EVENT]


def test_domains_see_of_each_other_what_they_let(clients: tuple[Client, Client]) -> None:
    one, two = clients
    path = b"/local/domain/1/data/shared\0"
    ask(one, xs.XS_WRITE, b"data/shared\x001")
    assert ask(two, xs.XS_READ, path) == "EACCES"
    assert ask(two, xs.XS_WATCH, path + b"t\0") == b"OK\0"
    assert ask(one, xs.XS_WRITE, b"data/shared\x002") == b"OK\0"
    assert events(two) == []
    assert ask(one, xs.XS_SET_PERMS, b"data/shared\0n1\0r2\0") == b"OK\0"
    assert events(two) == [path + b"t\0"]
    assert ask(two, xs.XS_READ, path) == b"2"
    assert ask(two, xs.XS_WRITE, path + b"3") == "EACCES"
    assert ask(one, xs.XS_RM, b"data/shared\0") == b"OK\0"
    assert events(two) == [path + b"t\0"]
    assert ask(two, xs.XS_GET_DOMAIN_PATH, b"2\0") == b"/local/domain/2\0"


def test_an_event_that_waits_is_not_repeated(clients: tuple[Client, Client]) -> None:
    one, two = clients
    ask(one, xs.XS_WRITE, b"data/s\0")
    ask(one, xs.XS_SET_PERMS, b"data/s\0r1\0")
    ask(two, xs.XS_WATCH, b"/local/domain/1/data/s\0t\0")
    struct.pack_into("<I", two.ring, RSP_PROD, two.index(RSP_CONS) + 1024 & 0xFFFFFFFF)  # it is full
    for _ in range(100):
        assert ask(one, xs.XS_WRITE, b"data/s\0x") == b"OK\0"
    assert len(two.store.out) == 1


def test_who_makes_others_wait_waits_himself(clients: tuple[Client, Client]) -> None:
    """At most 20 requests are outstanding: answered, and with events that others have not taken."""
    one, two = clients
    ask(two, xs.XS_WATCH, b"/local/domain/1/data\0t\0")
    ask(one, xs.XS_SET_PERMS, b"data\0r1\0")
    struct.pack_into("<I", two.ring, RSP_PROD, two.index(RSP_CONS) + 1024 & 0xFFFFFFFF)
    before = [ask(one, xs.XS_WRITE, b"data/%d\0" % i) for i in range(20)]
    assert before == [b"OK\0"] * 20
    message = struct.pack("<4I", xs.XS_READ, 5, 0, 6) + b"domid\0"
    one.post(message)
    assert list(one.messages()) == []
    struct.pack_into("<I", two.ring, RSP_CONS, two.index(RSP_PROD))
    evtchn_send(two.guest.d.evtchn, two.port)  # the other takes its events
    one.take()
    assert [data for _, _, _, data in one.messages()] == [b"1"]
    assert one.store.account.nboutstanding == 0


def test_an_event_that_nobody_takes_is_dropped_after_20_seconds(clients: tuple[Client, Client]) -> None:
    one, two = clients
    ask(two, xs.XS_WATCH, b"/local/domain/1/data\0t\0")
    ask(one, xs.XS_SET_PERMS, b"data\0r1\0")
    struct.pack_into("<I", two.ring, RSP_PROD, two.index(RSP_CONS) + 1024 & 0xFFFFFFFF)
    ask(one, xs.XS_WRITE, b"data/a\0")
    assert len(two.store.out) == 1
    two.guest.d.clock.advance_to(two.guest.d.clock.now() + 20_000_000_001)
    evtchn_send(two.guest.d.evtchn, two.port)
    assert two.store.out == []
    assert one.store.account.nboutstanding == 0


def test_what_a_domain_keeps_in_the_store_is_bounded(client: Client) -> None:
    """2.5 MB: nodes, the copies that transactions have of them, watches and messages."""
    before = client.store.account.memory
    for i in range(500):
        ask(client, xs.XS_WRITE, b"data/%d/%d\0" % (i // 25, i) + bytes(1990))
    big = client.store.account.memory
    assert big - before > 500 * 1990
    started = [ask(client, xs.XS_TRANSACTION_START, b"\0") for _ in range(2)]
    answers: list[tuple[int, bytes]] = []
    for tx in range(1, len(started) + 1):
        for i in range(500):
            payload = b"data/%d/%d\0" % (i // 25, i)
            if client.index(REQ_PROD) - client.index(REQ_CONS) > 1024 - 40:
                break
            client.post(struct.pack("<4I", xs.XS_READ, 5, tx, len(payload)) + payload)
            answers += [(kind, data) for kind, _, _, data in client.messages()]
    told = len(answers)
    assert answers[0] == (xs.XS_READ, bytes(1990))
    assert answers[-1] == (xs.XS_ERROR, b"ENOMEM\0")
    assert told < 1000  # and then nothing more is read
    assert 0 <= client.store.account.memory - (2560 << 10) < 4096


def test_memory_is_accounted_to_the_byte(client: Client) -> None:
    before = client.store.account.memory
    ask(client, xs.XS_WATCH, b"data\0w\0")
    ask(client, xs.XS_TRANSACTION_START, b"\0")
    for i in range(20):
        ask(client, xs.XS_WRITE, b"data/x/%d\0value" % i, i % 2)
    ask(client, xs.XS_READ, b"control/shutdown\0", 1)
    ask(client, xs.XS_RM, b"data/x\0", 1)
    ask(client, xs.XS_TRANSACTION_END, b"T\0", 1)
    ask(client, xs.XS_RM, b"data/x\0")
    assert client.store.account.memory == before + len("/local/domain/1/data") + 1
    ask(client, xs.XS_RESET_WATCHES, b"\0")
    assert client.store.account.memory == before


@pytest.mark.parametrize("allowed", [False, True])
def test_who_is_told_that_a_domain_goes_is_set_by_permissions(
    clients: tuple[Client, Client], allowed: bool
) -> None:
    """dom_release_perms: domain 0's alone, until it says otherwise; nobody else may."""
    one, two = clients
    assert one.ask(xs.XS_WATCH, b"@releaseDomain\0t\0") == (b"OK\0", [(b"@releaseDomain", b"t")])
    assert ask(one, xs.XS_SET_PERMS, b"@releaseDomain\0n0\0r1\0") == "EACCES"
    if allowed:
        one.daemon.tree.set_special("@releaseDomain", (Perm(0, 0), Perm(1, PERM_READ)), 0)
        assert (
            ask(one, xs.XS_SET_PERMS, b"@releaseDomain\0n1\0") == "EACCES"
        )  # to be told is no more than that
    one.daemon.release(2)
    remove_domain(one.daemon, two.guest.d)
    del two.guest.d.domain_list[2]
    assert one.ask(xs.XS_READ, b"name\0")[1] == [(b"@releaseDomain", b"t")] * allowed


def test_a_domain_that_goes_takes_its_nodes_along(clients: tuple[Client, Client]) -> None:
    one, two = clients
    told: list[str] = []
    one.daemon.watch("test", "@releaseDomain", told.append)
    ask(one, xs.XS_SET_PERMS, b"data\0b1\0")
    assert ask(two, xs.XS_WRITE, b"/local/domain/1/data/of-two\0x") == b"OK\0"
    assert ask(one, xs.XS_SET_PERMS, b"data/of-two\0n1\0") == "EACCES"
    one.daemon.release(2)
    remove_domain(one.daemon, two.guest.d)
    del two.guest.d.domain_list[2]
    assert told == ["@releaseDomain"]
    assert ask(one, xs.XS_DIRECTORY, b"data\0") == b""
    assert sorted(one.daemon.ls("/local/domain")) == ["0", "1"]
    assert not [path for path in one.daemon.tree.nodes if "/2" in path]
