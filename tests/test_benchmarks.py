"""The benchmarks run; what they measure is nobody's to judge."""

from __future__ import annotations

import json

import pytest

from benchmarks import bench_hypervisor


@pytest.mark.parametrize("name", bench_hypervisor.CASES)
def test_every_operation_is_measured(name: str) -> None:
    figure = bench_hypervisor.measure(name, operations=640, repeat=2)
    assert figure.name == name
    assert 0 < figure.best_us <= figure.median_us


def test_figures_as_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    measured = bench_hypervisor.Figure("empty hypercall", 1.0, 2.0, 1.4)
    monkeypatch.setattr(bench_hypervisor, "measure", lambda _name: measured)
    bench_hypervisor.main(["--json", "--only", "empty"])
    assert json.loads(capsys.readouterr().out) == {
        "empty hypercall": {"best_us": 1.0, "median_us": 2.0, "real_xen_us": 1.4}
    }
