"""Virtual time: budget, jumps, timers in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hvcore.clock import NEVER, NS_PER_BYTE, Clock


def clock(budget: int = 1000, start: int = 0) -> Clock:
    cell = memoryview(bytearray(16)).cast("q")
    cell[0] = budget
    return Clock(cell, start)


def test_time_is_the_budget_used() -> None:
    c = clock(start=5000)
    assert c.now() == 5000
    c.cell[0] -= 10
    assert c.now() == 5000 + 10 * NS_PER_BYTE
    c.spend(100)
    assert c.now() == 5110
    assert c.cell[1] == 100 // NS_PER_BYTE  # of which not code


def test_a_new_budget_takes_no_time() -> None:
    c = clock(start=7)
    c.cell[0] -= 300
    for budget in (0, 1, 1 << 40):
        c.set_budget(budget)
        assert c.now() == 307
        assert c.cell[0] == budget
    assert not c.turn_is_over()
    c.set_budget(5)
    c.spend(6 * NS_PER_BYTE)
    assert c.turn_is_over()


def test_jumps_go_forward_only() -> None:
    c = clock()
    c.advance_to(500)
    assert (c.now(), c.cell[0]) == (500, 1000)
    c.advance_to(100)
    assert c.now() == 500


def test_a_timer_shortens_the_turn() -> None:
    c = clock(1000)
    c.set_timer("a", 5000, lambda: None)
    assert c.cell[0] == 1000
    c.set_timer("b", 40, lambda: None)
    assert (c.cell[0], c.now()) == (40 // NS_PER_BYTE, 0)
    c.set_timer("c", -1, lambda: None)
    assert c.cell[0] == 0


def test_timers_move_stop_and_may_arm_others() -> None:
    c = clock(1 << 30)
    fired: list[str] = []

    def again() -> None:
        fired.append("again")
        if len(fired) < 3:
            c.set_timer("again", c.now(), again)

    c.set_timer("moved", 10, lambda: fired.append("wrong"))
    c.set_timer("moved", 90, lambda: fired.append("moved"))
    c.set_timer("stopped", 20, lambda: fired.append("wrong"))
    c.stop_timer("stopped")
    c.stop_timer("unknown")
    c.set_timer("again", 30, again)
    assert (c.expires("moved"), c.expires("stopped"), c.next_deadline()) == (90, None, 30)
    c.advance_to(50)
    assert c.run_due() == 3
    assert fired == ["again"] * 3
    c.advance_to(90)
    assert c.run_due() == 1
    assert (fired[-1], c.next_deadline()) == ("moved", NEVER)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1000), st.booleans()), max_size=300))
def test_what_fires_is_what_was_armed_last_in_order(steps: list[tuple[int, int, bool]]) -> None:
    c = clock(1 << 30)
    fired: list[tuple[int, int]] = []
    wanted: dict[int, tuple[int, int]] = {}
    for order, (key, when, stop) in enumerate(steps):
        if stop:
            c.stop_timer(key)
            wanted.pop(key, None)
        else:
            c.set_timer(key, when, lambda key=key, when=when: fired.append((when, key)))  # type: ignore[misc]
            wanted[key] = (when, order)
    assert c.next_deadline() == min((when for when, _ in wanted.values()), default=NEVER)
    c.advance_to(2000)
    assert c.run_due() == len(wanted)
    assert fired == [(when, key) for key, (when, _) in sorted(wanted.items(), key=lambda item: item[1])]


def test_the_heap_stays_small() -> None:
    c = clock(1 << 30)
    for when in range(100_000):
        c.set_timer("one", 1_000_000 - when, lambda: None)
    assert len(c._heap) < 1000
    assert c.next_deadline() == 1_000_000 - 99_999
