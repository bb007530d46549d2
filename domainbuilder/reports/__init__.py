"""The JSON that the commands print, as pydantic models, and what all of it shares."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

Text = Annotated[
    str,  # what the user called a file may have bytes that are no UTF-8
    BeforeValidator(lambda text: text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")),
]
