"""Copies of the kernels with every planted bug in them, each off until it is asked for."""

from __future__ import annotations

import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from planted_bugs_table import EQUIVALENT, PLANTED
from toolchain import ROOT

SOURCES = ROOT / "csrc"
# Which program runs a kernel's source and what else that needs, by how the files' names begin.
PROGRAMS = {
    "ctc_loss": (),
    "beam_search": ("cuda/forced_align.cu", "cpu/fusion.cpp", "cpu/trie_tables.cpp"),
}
FILES = [path for name in PROGRAMS for path in sorted((SOURCES / "cuda").glob(f"{name}*"))]
BARRIER = re.compile(
    r"(?<![\w:.])((?:Search::)?(?:Group::)?sync|team\.sync|__syncthreads|__syncwarp|meet|bar_sync"
    r"|copy_async_wait<\w+>)"
    r"\([^()]*\);"
)

# The number of the bug that is on: see `switched`.
SWITCH = "PLANTED_BUG"
HEADER = "extern int planted_bug;\n"
DEFINITION = f"""#include <cstdlib>
extern int planted_bug;
int planted_bug = std::getenv("{SWITCH}") ? std::atoi(std::getenv("{SWITCH}")) : -1;
"""


@dataclass(frozen=True)
class Bug:
    number: int
    file: str
    line: int
    span: tuple[int, int]
    """Where in the file's text `old` is."""
    old: str
    new: str
    why: str
    barrier: bool = False
    equivalent: str | None = None
    """Why nothing changes with it, where EQUIVALENT says so."""

    @property
    def program(self) -> str:
        return next(name for name in PROGRAMS if self.file.startswith(name))

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def change(self) -> str:
        change = f"{self.old} -> {self.new}" if self.new else f"without {self.old}"
        return " ".join(change.split())


def all_bugs() -> list[Bug]:
    """Every barrier taken out, and what PLANTED lists."""
    bugs = (*_barriers(), *_planted())
    return [replace(bug, number=number) for number, bug in enumerate(bugs)]


def _barriers() -> Iterator[Bug]:
    for path in FILES:
        text = path.read_text()
        for found in BARRIER.finditer(text):
            line_before = text[: found.start()].splitlines()[-2]
            reasons = [
                reason
                for file, part, reason in EQUIVALENT
                if file == path.name and part in line_before
            ]
            equivalent = reasons[0] if reasons else None
            bug = _bug(path, text, found.start(), found.group(), "", "no barrier")
            yield replace(bug, barrier=True, equivalent=equivalent)


def _planted() -> Iterator[Bug]:
    for file, place, new, why in PLANTED:
        path = SOURCES / "cuda" / file
        text = path.read_text()
        before, old, after = re.split("[«»]", place)
        context = before + old + after
        if text.count(context) != 1:
            sys.exit(f"planted_bugs_table.py: {file} has {text.count(context)} times: {context}")
        yield _bug(path, text, text.index(context) + len(before), old, new, why)


def _bug(path: Path, text: str, start: int, old: str, new: str, why: str) -> Bug:
    line = text.count("\n", 0, start) + 1
    return Bug(-1, path.name, line, (start, start + len(old)), old, new, why)


def write_switched(bugs: Sequence[Bug], folder: Path) -> Path:
    """The sources with the bugs in them, in `folder`, and what turns them on. Returns `folder`."""
    for part in ("cuda", "include", "core"):
        shutil.copytree(SOURCES / part, folder / part)
    for path in FILES:
        here = [bug for bug in bugs if bug.file == path.name]
        (folder / "cuda" / path.name).write_text(switched(path.read_text(), here))
    (folder / "planted_bug.h").write_text(HEADER)
    (folder / "planted_bug.cpp").write_text(DEFINITION)
    return folder


def switched(text: str, bugs: Sequence[Bug]) -> str:
    """A file's text in which a bug takes the place of what is right where it is on.

    What a bug replaces is a statement, if it ends with a semicolon, or an expression. Several bugs
    may replace the same one.
    """
    spans = defaultdict(list)
    for bug in bugs:
        spans[bug.span].append(bug)
    ends = len(text)
    for (start, end), same in sorted(spans.items(), reverse=True):
        if end > ends:
            sys.exit(f"planted bugs overlap: {same[0].place} {same[0].old}")
        ends = start
        code = text[start:end]
        for bug in same:
            on = f"planted_bug == {bug.number}"
            if bug.old.endswith(";"):
                code = f"{{ if ({on}) {{ {bug.new} }} else {{ {code} }} }}"
            else:
                code = f"({on} ? ({bug.new}) : ({code}))"
        text = text[:start] + code + text[end:]
    return text
