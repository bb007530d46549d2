"""Runs the machine's C preprocessor over a `.lds.S`, as the build of the kernel does."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence

from .errors import LayoutInputError
from .source import MAX_SCRIPT, Source, decode_script

TIMEOUT = 60.0
SUFFIXES = (".S", ".lds.in", ".lds.h", ".cpp", ".ldp")

# What is tried when neither --cpp nor $CPP says: the first of them that exists.
_CANDIDATES = (("cpp",), ("cc", "-E"), ("gcc", "-E"), ("clang", "-E"))

# Linux's own scripts/Makefile.build defines the first two. The others are names of the C dialect that
# would turn OUTPUT_ARCH(i386) into OUTPUT_ARCH(1).
_DEFAULTS = ("-D__ASSEMBLY__", "-DLINKER_SCRIPT", "-Ui386", "-Ulinux", "-Uunix")


def needs_preprocessing(path: str) -> bool:
    """Tell whether the name is one of a script before preprocessing."""
    return path.endswith(SUFFIXES)


def command(cpp: str = "") -> list[str]:
    """Return the preprocessor's command; raises LayoutInputError when there is none."""
    wanted = cpp or os.environ.get("CPP", "")
    if wanted:
        try:
            words = shlex.split(wanted)
        except ValueError as error:
            raise LayoutInputError(f"the preprocessor's command cannot be split: {error}") from error
        if not words or shutil.which(words[0]) is None:
            raise LayoutInputError(
                "the C preprocessor is not on this machine", found=wanted, expected="a program in PATH"
            )
        return words
    for candidate in _CANDIDATES:
        if shutil.which(candidate[0]):
            return list(candidate)
    tried = ", ".join(" ".join(words) for words in _CANDIDATES)
    raise LayoutInputError(
        "the script needs a C preprocessor and this machine has none (tried " + tried + ")",
        expected="one of them, or --cpp COMMAND",
    )


def preprocess(
    path: str, *, cpp: str = "", include: Sequence[str] = (), define: Sequence[str] = (),
    text: str | None = None,
) -> Source:  # fmt: skip
    """Return the preprocessed script; its line markers lead back to `path` and its includes.

    `include` and `define` are what follows -I and -D. `text` is what `path` holds, when that is not on the
    disk. Raises LayoutInputError.
    """
    words = command(cpp)
    words += ["-x", "assembler-with-cpp", *_DEFAULTS]
    words += [f"-I{directory}" for directory in include] + [f"-D{name}" for name in define]
    given = b""
    if text is not None:
        # Files beside the script are found as if it had been read from its place.
        words += ["-iquote", os.path.dirname(path) or ".", "-"]  # noqa: PTH120
        quoted = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "?")
        given = f'# 1 "{quoted}"\n{text}'.encode("utf-8", errors="surrogateescape")
    else:
        words += ["--", path] if path.startswith("-") else [path]
    try:
        done = subprocess.run(words, capture_output=True, timeout=TIMEOUT, check=False, input=given)
    except subprocess.TimeoutExpired as error:
        raise LayoutInputError(f"the C preprocessor did not end in {TIMEOUT:.0f} s", file=path) from error
    except OSError as error:
        raise LayoutInputError(
            f"the C preprocessor cannot be run: {error.strerror}", file=path, found=words[0]
        ) from error
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", errors="replace").strip().splitlines()
        first = next((line for line in lines if "error" in line), lines[0] if lines else "no message")
        raise LayoutInputError(f"the C preprocessor refused it: {first}", file=path)
    if len(done.stdout) > MAX_SCRIPT:
        raise LayoutInputError("the preprocessed script is too large", file=path)
    source = decode_script(path, done.stdout)
    return source if text is None else Source(path, source.text, {path: text.split("\n")})
