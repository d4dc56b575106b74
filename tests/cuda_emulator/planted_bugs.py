"""Plants bugs into copies of CUDA kernels, one at a time, and expects each to be caught.

Every barrier is taken out, wherever the sources have one; PLANTED lists mistakes of other kinds.
A bug is caught when `run_ctc_loss` or `run_beam_search` in the emulator finds a wrong number, the
emulator stops a kernel, or a sanitizer reports an error. Those that can change nothing are in
EQUIVALENT, with why.

    python tests/cuda_emulator/planted_bugs.py [--only TEXT]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from planted_bugs_table import EQUIVALENT, PLANTED
from toolchain import (
    HERE,
    KERNEL_FLAGS,
    ROOT,
    SANITIZERS,
    BuildError,
    Result,
    compile_source,
    emulator_objects,
    link,
    run,
)

KERNELS = ROOT / "csrc"
# Which program runs a kernel's source and what else that needs, by how the files' names begin.
PROGRAMS = {
    "ctc_loss": (),
    "beam_search": ("cuda/forced_align.cu", "cpu/fusion.cpp", "cpu/trie_tables.cpp"),
}
FILES = [path for name in PROGRAMS for path in sorted((KERNELS / "cuda").glob(f"{name}*"))]
BARRIER = re.compile(
    r"(?<![\w:.])((?:Search::)?(?:Group::)?sync|team\.sync|__syncthreads|__syncwarp|meet|bar_sync"
    r"|copy_async_wait<\w+>)"
    r"\([^()]*\);"
)
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
    "results_take_turns",
    "states_in_global_memory",
    "one_prefix",
    "equal_scores",
)
CASES = {
    "ctc_loss_lattice.cuh": (*LATTICE, *OTHERS, *ROWS),
    "ctc_loss_lattice_general.cuh": (*GENERAL, "long_and_short"),
    "ctc_loss_numbers.cuh": ("wide_scores", "far_scores", *LATTICE, *OTHERS, *ROWS),
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
    "ctc_loss": (*ROWS, *LATTICE, *OTHERS, *GENERAL, "more_labels_than_threads_sort_at_once"),
    "beam_search": (*BEAMS, *FRAMES, *TIMES),
}


Others = dict[tuple[str, str], list[Path]]


@dataclass(frozen=True)
class Bug:
    file: str
    line: int
    old: str
    new: str
    why: str
    build: str
    text: str
    """The whole file with the bug in it."""

    @property
    def program(self) -> str:
        return next(name for name in PROGRAMS if self.file.startswith(name))

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Verdict:
    bug: Bug
    caught: bool
    how: str
    seconds: float


def barriers() -> Iterator[Bug]:
    """Every statement that makes threads meet or wait, each taken out once."""
    for path in FILES:
        text = path.read_text()
        for found in BARRIER.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            without = text[: found.start()] + ";" + text[found.end() :]
            yield Bug(path.name, line, found.group(), "", "no barrier", "race", without)


def planted() -> Iterator[Bug]:
    for file, old, new, why in PLANTED:
        text = (KERNELS / "cuda" / file).read_text()
        if text.count(old) != 1:
            sys.exit(f"planted_bugs_table.py: {file} has {text.count(old)} times: {old}")
        line = text.count("\n", 0, text.index(old)) + 1
        yield Bug(file, line, old, new, why, "address", text.replace(old, new))


def reason_to_skip(bug: Bug) -> str | None:
    """Why a barrier may go without anything changing, where EQUIVALENT says so."""
    lines = bug.text.splitlines()
    for file, before, why in EQUIVALENT:
        if file == bug.file and bug.build == "race" and before in lines[bug.line - 2]:
            return why
    return None


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


def build_program(name: str, folder: Path, kernels: Path, build: str, others: Others) -> Path:
    flags = ("-O1", *KERNEL_FLAGS, *SANITIZERS[build], "-Wno-error", "-w")
    kernel = compile_source(kernels / "cuda" / f"{name}.cu", folder, flags, include=kernels)
    return link(folder / f"run_{name}", [kernel, *others[name, build]], build)


def other_objects(folder: Path, emulator: list[Path]) -> Others:
    """What is linked with the kernels, for each program and each build."""
    others = {}
    for name, sources in PROGRAMS.items():
        for build in ("address", "race"):
            flags = ("-O1", *KERNEL_FLAGS, *SANITIZERS[build])
            paths = [HERE / f"run_{name}.cpp", *(KERNELS / source for source in sources)]
            objects = [compile_source(path, folder / build, flags) for path in paths]
            others[name, build] = [*objects, *emulator]
    return others


def attempts(build: str) -> tuple[int, ...]:
    return (0,) if build == "race" else (0, 1, 2, 3)


def judge(bug: Bug, others: Others) -> Verdict:
    """Build the program with the bug in it and run it until something is seen."""
    began = time.monotonic()
    cases = CASES.get(bug.file, ALL[bug.program])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kernels = folder / "csrc"
        for part in ("cuda", "include", "core"):
            shutil.copytree(KERNELS / part, kernels / part)
        (kernels / "cuda" / bug.file).write_text(bug.text)
        # What the bug's own build does not see, the other may.
        for build in (bug.build, "race" if bug.build == "address" else "address"):
            try:
                program = build_program(bug.program, folder, kernels, build, others)
            except BuildError as error:
                words = str(error).strip().splitlines()
                return Verdict(bug, False, f"does not compile: {words[0] if words else ''}", 0)
            for order in attempts(build):
                how = how_caught(run(program, *cases, order=order, limit=LIMIT))
                if how:
                    seconds = time.monotonic() - began
                    return Verdict(bug, True, f"{how} (order {order})", seconds)
    return Verdict(bug, False, "NOT CAUGHT", time.monotonic() - began)


def sources_pass(folder: Path, others: Others) -> bool:
    """Whether nothing is found where nothing was planted."""
    good = True
    for name, build in others:
        program = build_program(name, folder / f"clean-{name}-{build}", KERNELS, build, others)
        for order in attempts(build):
            how = how_caught(run(program, *ALL[name], order=order, limit=4 * LIMIT))
            if how:
                print(f"{name} as it is, {build} build, order {order}: {how}")
                good = False
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="bugs whose place or text has this in it")
    only = parser.parse_args().only
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = Path(name)
        others = other_objects(folder, emulator_objects(folder))
        clean = sources_pass(folder, others)
        bugs = [bug for bug in (*barriers(), *planted()) if only in f"{bug.place} {bug.old}"]
        skipped = [(bug, why) for bug in bugs if (why := reason_to_skip(bug))]
        tried = [bug for bug in bugs if not reason_to_skip(bug)]
        verdicts = pool.map(lambda bug: judge(bug, others), tried)
        caught = 0
        for verdict in verdicts:
            bug = verdict.bug
            change = f"{bug.old} -> {bug.new}" if bug.new else f"without {bug.old}"
            change = " ".join(change.split())
            print(f"{bug.place}  {change}  [{bug.why}]\n    {verdict.how}, {verdict.seconds:.0f} s")
            sys.stdout.flush()
            caught += verdict.caught
    for bug, why in skipped:
        print(f"{bug.place}  without {bug.old}\n    changes nothing: {why}")
    print(
        f"{caught} of {len(tried)} planted bugs caught, {len(skipped)} change nothing; the sources"
        f" themselves {'pass' if clean else 'DO NOT PASS'}; {time.monotonic() - began:.0f} s"
    )
    return 0 if clean and tried and caught == len(tried) else 1


if __name__ == "__main__":
    sys.exit(main())
