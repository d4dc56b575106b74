"""Tests of the emulator, and of kernels in it under sanitizers; no torch involved.

Not collected by default: `make test-emulator` names this file.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from toolchain import (
    HERE,
    KERNEL_FLAGS,
    ROOT,
    SANITIZERS,
    compile_source,
    emulator_objects,
    link,
    run,
)

BUILDS = ("plain", "memory", "race")
REPORTS = {"memory": ("AddressSanitizer", "runtime error"), "race": ("data race",)}
TESTS = sorted(HERE.glob("test_simt*.cpp"))
ORDERS = 6


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("emulator")


@pytest.fixture(scope="session")
def emulator(folder: Path) -> list[Path]:
    return emulator_objects(folder)


@pytest.fixture(scope="session", params=BUILDS)
def build(request: pytest.FixtureRequest) -> str:
    return request.param


def built(folder: Path, emulator: list[Path], build: str, name: str, sources: list[Path]) -> Path:
    flags = ("-O1", *KERNEL_FLAGS, *SANITIZERS[build])
    objects = [compile_source(source, folder / build, flags) for source in sources]
    return link(folder / f"{name}-{build}", [*objects, *emulator], build)


@pytest.fixture(scope="session")
def simt_tests(folder: Path, emulator: list[Path], build: str) -> Path:
    return built(folder, emulator, build, "test_simt", TESTS)


@pytest.fixture(scope="session")
def ctc_loss(folder: Path, emulator: list[Path], build: str) -> Path:
    sources = [ROOT / "csrc" / "cuda" / "ctc_loss.cu", HERE / "run_ctc_loss.cpp"]
    return built(folder, emulator, build, "run_ctc_loss", sources)


@pytest.fixture(scope="session")
def beam_search(folder: Path, emulator: list[Path], build: str) -> Path:
    names = ("cuda/beam_search.cu", "cuda/forced_align.cu", "cpu/fusion.cpp", "cpu/trie_tables.cpp")
    sources = [*(ROOT / "csrc" / name for name in names), HERE / "run_beam_search.cpp"]
    return built(folder, emulator, build, "run_beam_search", sources)


def test_the_emulator(simt_tests: Path, build: str) -> None:
    names = run(simt_tests).output.split()
    assert len(names) > 40
    failures = []
    for name in names:
        if name.startswith("plain_") and build != "plain":
            continue
        planted = name.startswith("bug_")
        if planted and not name.startswith(f"bug_{build}_"):
            continue
        result = run(simt_tests, name)
        if planted:
            good = result.status != 0 and any(word in result.output for word in REPORTS[build])
        else:
            good = result.passed
        if not good:
            failures.append(f"{name}: exit status {result.status}\n{result.output[:2000]}")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("order", range(ORDERS))
def test_the_loss(ctc_loss: Path, build: str, order: int) -> None:
    if build == "race" and order > 0:
        pytest.skip("ThreadSanitizer sees a race in whatever order the threads run")
    # Half a minute there, and its kernels' threads meet in shorter cases too.
    result = run(ctc_loss, *["-long_and_short"] * (build == "race"), order=order)
    assert result.passed, result.output[-4000:]
    assert result.output.count(": agrees") > 15


@pytest.mark.parametrize("order", range(4))
def test_the_beam_search(beam_search: Path, build: str, order: int) -> None:
    if build == "race" and order > 0:
        pytest.skip("ThreadSanitizer sees a race in whatever order the threads run")
    result = run(beam_search, order=order)
    assert result.passed, result.output[-4000:]
    assert result.output.count(": agrees") > 15


def test_the_other_way_to_switch_fibers(folder: Path) -> None:
    """Processors other than x86-64 take ucontext's functions."""
    flags = ("-O1", "-DFASTCTC_SIMT_UCONTEXT=1")
    objects = [compile_source(s, folder / "ucontext", flags) for s in HERE.glob("simt*.cpp")]
    program = built(folder, objects, "plain", "test_simt_ucontext", TESTS)
    for name in (
        "block_barriers_order_a_scan",
        "half_warps_on_their_own",
        "a_launch_after_an_error",
    ):
        result = run(program, name)
        assert result.passed, result.output
