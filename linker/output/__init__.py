"""How a report is written: text, json, sarif, github, junit; and the drawing of sections."""

from __future__ import annotations
