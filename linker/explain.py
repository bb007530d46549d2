"""The text of `lint --explain RULE`."""

from __future__ import annotations

from .findings import Example, Rule

_NEEDS = {"S": "the script", "M": "the link map", "E": "the linked ELF"}


def _example(example: Example) -> list[str]:
    out: list[str] = []
    for what, text in (
        ("script", example.script),
        ("layout.toml", example.config),
        ("link map", example.map),
        ("linked ELF, in short", example.elf),
    ):
        if text:
            out.append(f"  {what}:")
            out.extend(f"    {line}".rstrip() for line in text.splitlines())
    return out


def explain(rule: Rule) -> str:
    """Return what a rule finds, why, how to fix it, and its examples."""
    needs = " or ".join(" and ".join(_NEEDS[letter] for letter in need) for need in rule.needs)
    lines = [
        f"{rule.id} ({rule.severity}): {rule.summary}",
        "",
        rule.why,
        "",
        f"Looks at: {needs}.",
        f"To fix it: {rule.fix}",
        "",
        "Found in:",
        *_example(rule.bad),
        "",
        "Not found in:",
        *_example(rule.good),
    ]
    return "\n".join(lines) + "\n"
