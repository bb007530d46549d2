"""What pyproject.toml cannot say: scripts/backend.py builds the compiled core, manpages.py the man pages."""

from pathlib import Path

from backend import EXTENSIONS, BuildCore, CoreDistribution, CoreWheel
from setuptools import setup


def man_pages(section: int) -> list[str]:
    """The man pages of a section, made now; none where Typer is missing, which a wheel's build asks for."""
    try:
        from manpages import write_pages
    except ImportError:
        return []
    return [str(path) for path in write_pages(Path("build", "man")) if path.suffix == f".{section}"]


setup(
    distclass=CoreDistribution,
    ext_modules=EXTENSIONS,
    cmdclass={"build_ext": BuildCore, "bdist_wheel": CoreWheel},
    data_files=[(f"share/man/man{section}", man_pages(section)) for section in (1, 5)],
)
