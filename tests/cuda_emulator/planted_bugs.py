"""Plants bugs into copies of CUDA kernels, one at a time, and expects each to be caught.

Every barrier is taken out, wherever the sources have one; PLANTED lists mistakes of other kinds.
A bug is caught when `run_ctc_loss` or `run_beam_search` in the emulator finds a wrong number, the
emulator stops a kernel, or a sanitizer reports an error. Those that can change nothing are in
EQUIVALENT, with why. All bugs of a program are compiled into it together, and a process turns one
of them on.

    python tests/cuda_emulator/planted_bugs.py [--only TEXT]
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
import tempfile
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from planted_sources import PROGRAMS, SOURCES, SWITCH, Bug, all_bugs, write_switched
from toolchain import (
    HERE,
    KERNEL_FLAGS,
    SANITIZERS,
    Result,
    compile_source,
    emulator_objects,
    link,
    run,
)

BUILDS = ("address", "race")
LIMIT = 120.0  # seconds for one run; the sources as they are need a few

# The cases of run_ctc_loss that reach a file's kernels, those that show most first.
GENERAL = ("general", "general_loss_only", "general_in_global_memory", "general_segments")
ROWS = (
    "few_classes",
    "classes_for_a_warp",
    "classes_for_a_block",
    "class_after_a_warps_part",
)
LATTICE = ("two_warps", "one_warp", "two_warps_tight", "one_warp_tight", "three_warps_loss_only")
OTHERS = (
    "four_pairs_per_lane",
    "one_label_few_classes",
    "log_probabilities",
    "mean",
    "wide_scores",
    "faults",
    "far_scores",
    "rows_take_turns",
    "rows_take_turns_loss_only",
    "more_warps_than_a_row_needs",
    "many_frames",
    "nearly_uniform_scores",
)
INFINITE = (
    "all_scores_infinite",
    "infinite_scores",
    "infinite_scores_of_the_blank",
    "infinite_log_probabilities",
)
# Likewise of run_beam_search.
BEAMS = (
    "few_classes",
    "several_warps",
    "hotwords",
    "equal_scores_in_several_warps",
    "equal_scores_in_the_beam",
    "equal_scores_and_no_room",
    "blank_skipped",
    "hotwords_several_warps",
    "prefixes_come_back",
    "many_frames",
    "faults",
)
FRAMES = ("a_warp_of_prefixes", "many_classes_many_prefixes", "many_classes", "nucleus", "pruned")
TIMES = (
    "results_in_segments",
    "results_of_an_utterance_take_turns",
    "results_take_turns",
    "states_in_global_memory",
    "one_prefix",
    "equal_scores",
)
CASES = {
    "ctc_loss_lattice.cuh": (*LATTICE, *INFINITE, *OTHERS, *ROWS),
    "ctc_loss_lattice_general.cuh": (*GENERAL, "general_rows_together", "long_and_short"),
    "ctc_loss_numbers.cuh": ("wide_scores", "far_scores", *INFINITE, *LATTICE, *OTHERS, *ROWS),
    "ctc_loss_layout.cuh": ("rows_take_turns", "rows_take_turns_loss_only", *GENERAL, *LATTICE),
    "ctc_loss_prepare.cuh": (*ROWS, "more_labels_than_threads_sort_at_once", *LATTICE, *OTHERS),
    "ctc_loss_sums.cuh": ("few_classes", "mean", *GENERAL, *LATTICE),
    "beam_search_beam.cuh": (*BEAMS, *FRAMES, *TIMES),
    "beam_search_frames.cuh": (*FRAMES, *BEAMS),
    "beam_search_slots.cuh": ("prefixes_come_back", *BEAMS),
    "beam_search_team.cuh": ("several_warps", *BEAMS, *FRAMES),
    "beam_search_times.cuh": (*TIMES, *BEAMS[:2]),
}
ALL = {
    "ctc_loss": (
        *ROWS,
        *LATTICE,
        *INFINITE,
        *OTHERS,
        *GENERAL,
        "more_labels_than_threads_sort_at_once",
    ),
    "beam_search": (*BEAMS, *FRAMES, *TIMES),
}


Programs = dict[tuple[str, str], Path]
"""By name and build."""


@dataclass(frozen=True)
class Verdict:
    bug: Bug
    caught: bool
    how: str
    seconds: float


def how_caught(result: Result) -> str | None:
    if result.timed_out:
        return f"no end after {LIMIT:.0f} s"
    if result.status == 0:
        return None
    found = re.search(r"(Address|Thread)Sanitizer: (\S+( race)?)", result.output)
    if found:
        return found.group().replace(":", ",")
    if "CUDA emulator" in result.output:
        return "emulator: " + result.output.split("CUDA emulator: ")[1].split("; ")[0][-60:]
    wrong = [line for line in result.output.splitlines() if line.endswith(": WRONG")]
    if wrong:
        return "wrong numbers: " + wrong[0].rsplit("; ", 1)[-1].removesuffix(": WRONG")
    return f"exit status {result.status}"


def attempts(build: str) -> tuple[int, ...]:
    return (0,) if build == "race" else (0, 1, 2, 3)


def build_programs(
    names: Collection[str], folder: Path, kernels: Path, pool: ThreadPoolExecutor
) -> Programs:
    """The programs of these names in each build, with all their bugs in them."""
    emulator = pool.submit(emulator_objects, folder)
    switch = pool.submit(compile_source, kernels / "planted_bug.cpp", folder)
    waiting = {}
    for name, build in itertools.product(names, BUILDS):
        sources = (HERE / f"run_{name}.cpp", *(SOURCES / source for source in PROGRAMS[name]))
        flags = ("-O1", "-w", *KERNEL_FLAGS, *SANITIZERS[build])
        into = folder / build / name
        switched = (*flags, "-include", str(kernels / "planted_bug.h"))
        kernel = kernels / "cuda" / f"{name}.cu"
        waiting[name, build] = [
            pool.submit(compile_source, kernel, into, switched, kernels),
            *(pool.submit(compile_source, source, into, flags) for source in sources),
        ]
    programs = {}
    for (name, build), parts in waiting.items():
        objects = [*(part.result() for part in parts), switch.result(), *emulator.result()]
        programs[name, build] = link(folder / build / f"run_{name}", objects, build)
    return programs


def judge(bug: Bug, programs: Programs) -> Verdict:
    """Run the program with the bug on until something is seen."""
    began = time.monotonic()
    cases = CASES.get(bug.file, ALL[bug.program])
    # What the build that suits the bug does not see, the other may.
    for build in reversed(BUILDS) if bug.barrier else BUILDS:
        program = programs[bug.program, build]
        for order in attempts(build):
            on = {SWITCH: str(bug.number)}
            how = how_caught(run(program, *cases, order=order, limit=LIMIT, environment=on))
            if how:
                return Verdict(bug, True, f"{how} (order {order})", time.monotonic() - began)
    return Verdict(bug, False, "NOT CAUGHT", time.monotonic() - began)


def sources_pass(programs: Programs, pool: ThreadPoolExecutor) -> bool:
    """Whether nothing is found where no bug is on."""

    def found(name: str, build: str, order: int) -> str | None:
        how = how_caught(run(programs[name, build], *ALL[name], order=order, limit=4 * LIMIT))
        return how and f"{name} as it is, {build} build, order {order}: {how}"

    runs = [(name, build, order) for name, build in programs for order in attempts(build)]
    bad = [how for how in pool.map(found, *zip(*runs, strict=True)) if how]
    print("\n".join(bad), end="\n" * bool(bad))
    return not bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="bugs whose place or text has this in it")
    only = parser.parse_args().only
    began = time.monotonic()
    bugs = all_bugs()
    asked_for = [bug for bug in bugs if only in f"{bug.place} {bug.old}"]
    tried = [bug for bug in asked_for if not bug.equivalent]
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = Path(name)
        kernels = write_switched(bugs, folder / "csrc")
        programs = build_programs({bug.program for bug in tried}, folder, kernels, pool)
        clean = sources_pass(programs, pool)
        caught = 0
        for verdict in pool.map(lambda bug: judge(bug, programs), tried):
            bug = verdict.bug
            print(f"{bug.place}  {bug.change}  [{bug.why}]")
            print(f"    {verdict.how}, {verdict.seconds:.1f} s", flush=True)
            caught += verdict.caught
    skipped = [bug for bug in asked_for if bug.equivalent]
    for bug in skipped:
        print(f"{bug.place}  {bug.change}\n    changes nothing: {bug.equivalent}")
    print(
        f"{caught} of {len(tried)} planted bugs caught, {len(skipped)} change nothing; the sources"
        f" themselves {'pass' if clean else 'DO NOT PASS'}; {time.monotonic() - began:.0f} s"
    )
    return 0 if clean and tried and caught == len(tried) else 1


if __name__ == "__main__":
    sys.exit(main())
