"""The tour in a terminal: a list of steps, what each is about, and the domain as it was then.

Of textual (MIT), which is the extra `tour`; imported where it is run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import ClassVar

from rich.syntax import Syntax
from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Header, Input, OptionList, Static, TabbedContent, TabPane
from textual.widgets.option_list import Option

from domainbuilder.tour import panes
from domainbuilder.tour.steps import Named, Step
from domainbuilder.tour.text import XEN_FILE, xen_url

_TABS = {"space": "Address space", "frames": "Frames", "console": "Console", "again": "Meanwhile"}


class SourceScreen(ModalScreen[None]):
    """A file of ours, to be read."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,o", "dismiss", "Back"),
        Binding("j,space", "scroll(10)", "Down", show=False),
        Binding("k", "scroll(-10)", "Up", show=False),
    ]

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name_of_file = name

    def compose(self) -> ComposeResult:
        """The file's text, highlighted."""
        package, *rest = self._name_of_file.split("/")
        text = files(package).joinpath(*rest).read_text(encoding="utf-8")
        with VerticalScroll(id="source") as scroll:
            scroll.border_title = f"{self._name_of_file}   (q: back)"
            yield Static(Syntax(text, "python", line_numbers=True, theme="ansi_dark"))

    def action_scroll(self, lines: int) -> None:
        """Some lines on."""
        self.query_one("#source").scroll_relative(y=lines, animate=False)


class TourApp(App[None]):
    """`steps` are of a run that is over; `named` are the parts of the address space that have names."""

    TITLE = "tour"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #left { width: 40%; min-width: 34; }
    #steps { height: 1fr; border: round $primary; text-wrap: nowrap; text-overflow: ellipsis; }
    #search { display: none; height: 3; }
    #search.shown { display: block; }
    #step { height: 1fr; border: round $primary; padding: 0 1; }
    TabbedContent { height: 45%; }
    TabPane VerticalScroll { padding: 0 1; }
    #source { border: round $accent; margin: 1 2; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n,space,right", "move(1)", "Next"),
        Binding("p,left", "move(-1)", "Back"),
        Binding("slash", "search", "Search"),
        Binding("t", "tables", "Tables"),
        Binding("r", "refused", "Refusal"),
        Binding("a", "tab('space')", "Address space", show=False),
        Binding("f", "tab('frames')", "Frames", show=False),
        Binding("c", "tab('console')", "Console", show=False),
        Binding("m", "tab('again')", "Meanwhile", show=False),
        Binding("o", "ours", "Our source"),
        Binding("x", "xen", "Xen's source"),
        Binding("question_mark", "keys", "Keys"),
        Binding("j", "move(1)", show=False),
        Binding("k", "move(-1)", show=False),
        Binding("g", "ends(0)", show=False),
        Binding("G", "ends(-1)", show=False),
        Binding("escape", "clear", show=False),
        Binding("q", "quit", "Leave"),
    ]

    def __init__(self, name: str, steps: Sequence[Step], named: Sequence[Named]) -> None:
        super().__init__()
        self.sub_title = name
        self.steps, self.named = steps, named
        self._shown = list(range(len(steps)))  # which steps are in the list

    def compose(self) -> ComposeResult:
        """The list at the left; at the right the step, and the domain as it was then."""
        yield Header()
        with Horizontal():
            with Vertical(id="left"):
                yield OptionList(id="steps")
                yield Input(placeholder="words that a step has to have", id="search")
            with Vertical():
                with VerticalScroll(id="step"):
                    yield Static(id="detail")
                with TabbedContent(id="tabs"):
                    for key, title in _TABS.items():
                        with TabPane(title, id=key), VerticalScroll():
                            yield Static(id=f"{key}-text")
        yield Footer()

    def on_mount(self) -> None:
        """Begin with the first step."""
        self._fill("")
        self.query_one("#steps").focus()

    @property
    def step(self) -> int | None:
        """Which step is shown; None where the search has none."""
        at = self.query_one("#steps", OptionList).highlighted
        return None if at is None else self._shown[at]

    def _fill(self, words: str) -> None:
        """The list has the steps with these words; the one that was shown stays, where it is among them."""
        was = self.step if self._shown else None
        self._shown = [i for i, step in enumerate(self.steps) if panes.matches(step, words)]
        steps = self.query_one("#steps", OptionList)
        steps.clear_options()
        steps.add_options([Option(panes.row(i + 1, self.steps[i])) for i in self._shown])
        steps.border_title = f"{len(self._shown)} of {len(self.steps)} steps" if words else "steps"
        if self._shown:
            steps.highlighted = self._shown.index(was) if was in self._shown else 0
        self._show()

    @on(OptionList.OptionHighlighted)
    def _show(self) -> None:
        at = self.step
        if at is None:
            self.query_one("#detail", Static).update("no step has all of these words")
            return
        step, before = self.steps[at], self.steps[at - 1] if at else None
        self.query_one("#detail", Static).update(panes.detail(at + 1, len(self.steps), step))
        self.query_one("#step").scroll_home(animate=False)
        for key, shown in (
            ("space", panes.address_space(step, before, self.named)), ("frames", panes.frames(step)),
            ("console", panes.console(self.steps[: at + 1])), ("again", panes.meanwhile(step)),
        ):  # fmt: skip
            self.query_one(f"#{key}-text", Static).update(shown)
        self.query_one("#console VerticalScroll").scroll_end(animate=False)

    # -- what keys do

    def action_move(self, by: int) -> None:
        """A step on, or back."""
        steps = self.query_one("#steps", OptionList)
        if self._shown:
            steps.highlighted = min(max((steps.highlighted or 0) + by, 0), len(self._shown) - 1)

    def action_ends(self, which: int) -> None:
        """The first step, or the last."""
        if self._shown:
            self.query_one("#steps", OptionList).highlighted = range(len(self._shown))[which]

    def action_tables(self) -> None:
        """The next step at which frames have other types, or something else is mapped."""
        self._next(
            lambda i: bool(self.steps[i].frames) or (i > 0 and self.steps[i].spans != self.steps[i - 1].spans)
        )

    def action_refused(self) -> None:
        """The next step at which something is refused."""
        self._next(lambda i: self.steps[i].is_refused)

    def _next(self, wanted: Callable[[int], bool]) -> None:
        steps = self.query_one("#steps", OptionList)
        first = -1 if steps.highlighted is None else steps.highlighted
        for at in range(first + 1, len(self._shown)):
            if wanted(self._shown[at]):
                steps.highlighted = at
                return
        self.notify("there is none behind this step")

    def action_tab(self, which: str) -> None:
        """What is shown below the step."""
        self.query_one("#tabs", TabbedContent).active = which

    def action_search(self) -> None:
        """Ask for words."""
        search = self.query_one("#search", Input)
        search.add_class("shown")
        search.focus()

    @on(Input.Changed, "#search")
    def _searched(self, event: Input.Changed) -> None:
        self._fill(event.value)

    @on(Input.Submitted, "#search")
    def _found(self) -> None:
        self.query_one("#steps").focus()

    def action_clear(self) -> None:
        """All steps again."""
        search = self.query_one("#search", Input)
        search.value = ""
        search.remove_class("shown")
        self.query_one("#steps").focus()

    def action_keys(self) -> None:
        """All keys, at the side."""
        if self.screen.query("HelpPanel"):
            self.action_hide_help_panel()
        else:
            self.action_show_help_panel()

    def action_ours(self) -> None:
        """The file of ours that the step is about."""
        names = panes.our_files(self.steps[self.step]) if self.step is not None else []
        if names:
            self.push_screen(SourceScreen(names[0]))

    def action_xen(self) -> None:
        """Xen's file in a browser."""
        match = XEN_FILE.search(self.steps[self.step].lesson.xen) if self.step is not None else None
        if match is not None:
            self.open_url(xen_url(match[0]))
            self.notify(match[0], title="opened in a browser")
