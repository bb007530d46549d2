"""What pyproject.toml cannot say: the compiled core is built by scripts/backend.py."""

from backend import EXTENSIONS, BuildCore, CoreDistribution, CoreWheel
from setuptools import setup

setup(
    distclass=CoreDistribution,
    ext_modules=EXTENSIONS,
    cmdclass={"build_ext": BuildCore, "bdist_wheel": CoreWheel},
)
