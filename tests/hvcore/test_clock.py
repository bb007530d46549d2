"""Virtual time: the horizon, turns, jumps, timers in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hvcore.clock import CELL_IDLE, CELL_LEFT, CELL_SPENT, CELL_WORDS, NEVER, Clock, Timers


def clock(left: int = 1000, start: int = 0) -> Clock:
    cell = memoryview(bytearray(8 * CELL_WORDS)).cast("q")
    cell[CELL_LEFT] = left
    return Clock(cell, start)


def test_time_is_what_was_taken() -> None:
    c = clock(start=5000)
    assert c.now() == 5000
    c.cell[CELL_LEFT] -= 10
    assert (c.now(), c.code_bytes) == (5010, 10)
    c.spend(100)
    assert (c.now(), c.code_bytes) == (5110, 10)
    assert c.cell[CELL_SPENT] == 100  # of which not code
    c.leave_out(7)
    assert (c.now(), c.code_bytes) == (5117, 17)
    c.restart()
    assert (c.now(), c.code_bytes, c.turn_is_over()) == (5000, 0, True)


@given(st.lists(st.integers(0, 1 << 40), max_size=20))
def test_a_new_horizon_takes_no_time(horizons: list[int]) -> None:
    c = clock(start=7)
    c.cell[CELL_LEFT] -= 300
    c.begin_turn(1000)
    for when in horizons:
        c.set_horizon(when)
        assert c.now() == 307
        assert c.cell[CELL_LEFT] == when - 307
        assert not c.turn_is_over()  # the guest does not see it


def test_a_turn_ends_at_its_time_or_when_it_is_given_up() -> None:
    c = clock()
    c.begin_turn(1005)
    c.set_horizon(2000)
    c.spend(1004)
    assert not c.turn_is_over()
    c.spend(1)
    assert c.turn_is_over()
    c.begin_turn(1500)
    assert not c.turn_is_over()
    c.end_turn()
    assert c.turn_is_over()
    assert (c.now(), c.cell[CELL_LEFT], c.turn_end) == (1005, 0, 1005)


def test_jumps_go_forward_only_and_are_no_code() -> None:
    c = clock()
    c.advance_to(500)
    assert (c.now(), c.cell[CELL_LEFT], c.cell[CELL_IDLE], c.code_bytes) == (500, 500, 500, 0)
    c.advance_to(100)
    assert c.now() == 500


def test_time_goes_to_the_latest_timer_that_a_guest_can_arm() -> None:
    c = clock(start=1_000_000_000)
    c.advance_to((1 << 63) - 1)
    c.set_horizon(c.now() + 1_000_000)
    c.spend(2_000_000)
    assert c.now() == (1 << 63) - 1 + 2_000_000


def test_a_timer_of_the_guest_shortens_the_turn() -> None:
    c = clock(1000)
    c.begin_turn(2000)
    c.set_timer("a", 5000, lambda: None)
    assert (c.turn_end, c.cell[CELL_LEFT]) == (2000, 1000)
    c.set_timer("b", 1400, lambda: None)
    assert (c.turn_end, c.cell[CELL_LEFT]) == (1400, 1000)
    c.set_timer("c", 40, lambda: None)
    assert (c.turn_end, c.cell[CELL_LEFT], c.now()) == (40, 40, 0)
    c.set_timer("d", -1, lambda: None)
    assert (c.turn_end, c.cell[CELL_LEFT], c.now()) == (0, 0, 0)


def test_a_timer_of_the_host_is_no_part_of_the_turn() -> None:
    c = clock(1000)
    c.begin_turn(2000)
    fired: list[int] = []
    host = Timers()
    host.set("a", 40, lambda: fired.append(c.now()))
    c.look_at(40)
    assert (c.turn_end, c.cell[CELL_LEFT], c.next_deadline()) == (2000, 40, NEVER)
    c.spend(50)
    assert (c.turn_is_over(), c.run_due(), host.run_due(c.now), fired) == (False, 0, 1, [50])


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
    assert len(c.timers._heap) < 1000
    assert c.next_deadline() == 1_000_000 - 99_999
