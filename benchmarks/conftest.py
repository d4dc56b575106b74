"""Options of the suite, the rows it runs, and the description of the machine it runs on."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks import rows
from benchmarks.machine import describe_cpu, fastctc_build, usable_cpus, versions
from benchmarks.peers import PEERS


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastctc benchmarks")
    group.addoption("--quick", action="store_true", help="tiny shapes, few rounds: a smoke test")
    group.addoption(
        "--cpu-targets",
        default=",".join(rows.DEFAULT_CPU_TARGETS),
        help="comma-separated CPU targets, or 'all' (default: %(default)s)",
    )
    group.addoption(
        "--peers",
        default=",".join(rows.DEFAULT_PEERS),
        help=f"comma-separated peers from {', '.join(PEERS)} (default: %(default)s)",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "row" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption
    kind = metafunc.function.__name__.removeprefix("test_")
    chosen = metafunc.module.rows_of(
        kind,
        cpu_targets=rows.parse_cpu_targets(option("--cpu-targets")),
        peers=rows.parse_peers(option("--peers")),
    )
    metafunc.parametrize("row", chosen, ids=[row.id for row in chosen])


@pytest.fixture
def quick(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--quick"))


@pytest.fixture
def threads(row: Any) -> Iterator[int]:
    """Hold torch, and with it fastctc, to the row's number of threads."""
    wanted: int = row.threads
    if wanted > usable_cpus():
        pytest.skip(f"{wanted} threads need as many CPUs, and this process may use {usable_cpus()}")
    before = torch.get_num_threads()
    torch.set_num_threads(wanted)
    yield wanted
    torch.set_num_threads(before)


@pytest.fixture
def cpu_target(row: Any, quick: bool) -> Iterator[str]:
    """Force the row's CPU target; gives the one in use."""
    from fastctc._native import _C

    if _C is None:
        if not quick:
            pytest.skip("fastctc was built without its compiled library: there is nothing to time")
        if row.cpu_target != "auto":
            pytest.skip("CPU targets are the compiled library's, which is not there")
        yield "reference"
        return
    if row.cpu_target not in ("auto", *_C.cpu_targets()):
        pytest.skip(f"this machine cannot run the CPU target {row.cpu_target}")
    before = _C.cpu_target()
    if row.cpu_target != "auto":
        _C.set_cpu_target(row.cpu_target)
    yield _C.cpu_target()
    _C.set_cpu_target(before)


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    """What a reader needs to judge the figures by; not the machine's name in its network."""
    return {
        "cpu": describe_cpu(),
        "system": f"{platform.system()} {platform.release()}",
        "python_version": platform.python_version(),
        "versions": versions(rows.parse_peers(config.getoption("--peers"))),
        "fastctc": fastctc_build(),
    }
