"""The gate that compares what Triton kernels take with a table."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "packaging"))

import triton
import triton_resources as gate


def usages(registers: int = 40, local: int = 0) -> list[gate.Usage]:
    return [
        gate.Usage("a batch", "a_kernel", 80, registers, 0, 0),
        gate.Usage("a batch", "a_kernel", 90, 33, 128, local),
    ]


def test_table_round_trip_and_differences(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    assert gate.compare(gate.render(usages()), table) == []  # knows no triton yet
    table.write_text("# Title\n\n## triton 3.0.0\n\nkept\n")
    gate.write(gate.render(usages()), table)
    parts = gate.parts_of(table.read_text())
    assert parts["3.0.0"] == "## triton 3.0.0\n\nkept\n"
    assert "| `a_kernel` | 0 to 128 | 40 | 33 |" in parts[triton.__version__]
    assert gate.compare(gate.render(usages()), table) == []
    problems = gate.compare(gate.render(usages(41)), table)
    assert "+| `a_kernel` | 0 to 128 | 41 | 33 |" in problems


def test_a_spilled_register_is_a_fault() -> None:
    assert gate.local_memory(usages()) == []
    assert gate.local_memory(usages(local=8)) == [
        "a_kernel keeps 8 bytes in local memory on sm_90 (a batch)"
    ]


@pytest.mark.parametrize("case", gate.CASES, ids=lambda case: case.name)
def test_each_case_launches_all_kernels(case: gate.Case) -> None:
    names = [launch.kernel.__name__ for launch in gate.launches(case)]
    assert len(names) == (7 if case.masked else 6)
    assert len(set(names)) == len(names)


def test_committed_table_knows_the_versions_of_the_gates() -> None:
    root = Path(__file__).resolve().parent.parent
    parts = gate.parts_of((root / "docs" / "triton-resources.md").read_text())
    line = next(
        line for line in (root / "Makefile").read_text().splitlines() if line.startswith("TRITONS")
    )
    assert list(parts) == line.split(":=")[1].split()
