"""What pyproject.toml cannot say: scripts/backend.py builds the compiled core, manpages.py the man pages."""

from pathlib import Path

from backend import EXTENSIONS, BuildCore, CoreDistribution, CoreWheel
from setuptools import setup


def man_pages() -> list[str]:
    """The man pages, made now; none where Typer is missing, which a build of a wheel asks for."""
    try:
        from manpages import write_pages
    except ImportError:
        return []
    return [str(path) for path in write_pages(Path("build", "man"))]


setup(
    distclass=CoreDistribution,
    ext_modules=EXTENSIONS,
    cmdclass={"build_ext": BuildCore, "bdist_wheel": CoreWheel},
    data_files=[("share/man/man1", man_pages())],
)
