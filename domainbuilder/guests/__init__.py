"""The sample guests that come with the package, built from samples/ (`make samples`).

    $ domainbuilder launch "$(python -m domainbuilder.guests hello)"

prints the path of the one called hello; without a name, `python -m domainbuilder.guests` lists them.
"""

from __future__ import annotations

from pathlib import Path

from domainbuilder.errors import BuildError

FOLDER = Path(__file__).resolve().parent


def names() -> list[str]:
    """The bundled guests, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.elf"))


def path(name: str) -> Path:
    """The kernel file of the bundled guest `name`.

    Raises BuildError where there is none of that name.
    """
    if name not in names():
        raise BuildError("no such bundled guest", found=name, expected=", ".join(names()))
    return FOLDER / f"{name}.elf"
