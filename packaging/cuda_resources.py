"""Compiles every CUDA source for every GPU that nvcc knows, and reads what each kernel takes.

    python packaging/cuda_resources.py            compare with docs/cuda-resources.md
    python packaging/cuda_resources.py --write    bring that table up to date

Sources as arguments confine it to these and their part of the table.
A kernel that keeps anything in local memory fails, spilled registers above all, and so does a
figure that differs from the table's: a change of the kernels comes with a change of the table.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_TABLE = _ROOT / "docs" / "cuda-resources.md"
_FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "-Icsrc/include", "-Icsrc", "-Xptxas", "-v")

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\w+)'")
_PROPERTIES = re.compile(r"Function properties for (\w+)")
_LOCAL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class Usage:
    """What one kernel takes on one architecture: a thread's registers, a block's bytes."""

    source: str
    kernel: str
    arch: str
    registers: int
    shared: int
    local: int


def find_nvcc() -> str | None:
    """Where CMake looks for it, too."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)]
    return os.environ.get("CUDACXX") or shutil.which("nvcc", path=os.pathsep.join(folders))


def nvcc_version(nvcc: str) -> str:
    """Such as "13.0.88": the assembler that comes with it decides on the registers."""
    output = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    return re.findall(r"V(\d+(?:\.\d+)+)", output)[-1]


def gpu_archs(nvcc: str) -> list[str]:
    """All that this nvcc compiles for, such as "75" and "120", in order."""
    command = [nvcc, "--list-gpu-arch"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return sorted(re.findall(r"compute_(\d+)", output), key=int)


def readable(names: Iterable[str]) -> dict[str, str]:
    """Mangled names of kernels to "name<arguments>", without namespaces and parameters."""
    mangled = list(dict.fromkeys(names))
    done = subprocess.run(
        ["c++filt"], input="\n".join(mangled), check=True, capture_output=True, text=True
    )
    return dict(zip(mangled, map(_shortened, done.stdout.splitlines()), strict=True))


def _shortened(signature: str) -> str:
    depth, start, end = 0, 0, len(signature)
    text = signature.replace("(anonymous namespace)", "_")
    for i, sign in enumerate(text):
        depth += (sign == "<") - (sign == ">")
        if depth == 0 and sign in " :":
            start = i + 1
        if depth == 0 and sign == "(":
            end = i
            break
    name = re.sub(r"\((?:int|bool|long|unsigned int)\)", "", text[start:end])
    return re.sub(r"\b\w+::", "", name)


def parse(source: str, output: str) -> list[Usage]:
    """What ``-Xptxas -v`` says about each kernel of one source."""
    found, kernel, arch, local = [], "", "", {}
    properties = ""
    for line in output.splitlines():
        if match := _ENTRY.search(line):
            kernel, arch = match.groups()
        elif match := _PROPERTIES.search(line):
            properties = match[1]
        elif match := _LOCAL.search(line):
            local[properties] = max(map(int, match.groups()))
        elif (match := _USED.search(line)) and kernel:
            shared = _SHARED.search(line)
            bytes_shared = int(shared[1]) if shared else 0
            usage = Usage(source, kernel, arch, int(match[1]), bytes_shared, local[kernel])
            found.append(usage)
            kernel = ""
    return found


def compile_one(nvcc: str, source: Path, arch: str) -> list[Usage]:
    """Compiles one source for one architecture, device code only."""
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-cubin", f"-arch=sm_{arch}", *_FLAGS, "-o", f"{folder}/kernels.cubin"]
        done = subprocess.run(
            [*command, str(source)], cwd=_ROOT, check=False, capture_output=True, text=True
        )
    name = source.name
    if done.returncode != 0:
        raise SystemExit(f"{name} does not compile for sm_{arch}:\n{done.stdout}{done.stderr}")
    return parse(name, done.stdout + done.stderr)


def measure(nvcc: str, sources: Sequence[Path], archs: Sequence[str], jobs: int) -> list[Usage]:
    """Everything, `jobs` compilations at a time, with kernels under readable names."""
    with ThreadPoolExecutor(jobs) as pool:
        tasks = [pool.submit(compile_one, nvcc, path, arch) for path in sources for arch in archs]
        usages = [usage for task in tasks for usage in task.result()]
    names = readable(usage.kernel for usage in usages)
    return [
        Usage(u.source, names[u.kernel], u.arch, u.registers, u.shared, u.local) for u in usages
    ]


def local_memory(usages: Sequence[Usage]) -> list[str]:
    """One sentence for each kernel that keeps something in local memory."""
    return [
        f"{u.source}: {u.kernel} keeps {u.local} bytes in local memory on sm_{u.arch}"
        for u in usages
        if u.local
    ]


def render(usages: Sequence[Usage], version: str) -> str:
    """The table, as it stands in the documentation."""
    archs = sorted({u.arch for u in usages}, key=int)
    lines = [
        "# What the CUDA kernels take",
        "",
        f"nvcc {version}. Registers of a thread on each architecture; static shared memory of a",
        "block in bytes (what a launch asks for comes on top). Local memory is not allowed.",
        "`make cuda-gates` holds the kernels against this table, and",
        "`python packaging/cuda_resources.py --write` writes it.",
    ]
    for source in sorted({u.source for u in usages}):
        ours = [u for u in usages if u.source == source]
        registers = {(u.kernel, u.arch): u.registers for u in ours}
        lines += ["", f"## {source}", ""]
        lines.append(f"| kernel | shared | {' | '.join(f'sm_{arch}' for arch in archs)} |")
        lines.append("|---|" + "--:|" * (len(archs) + 1))
        for kernel in sorted({u.kernel for u in ours}):
            shared = sorted({u.shared for u in ours if u.kernel == kernel})
            cells = [str(registers.get((kernel, arch), "-")) for arch in archs]
            sizes = " to ".join(map(str, (shared[0], shared[-1])[: len(shared)]))
            lines.append(f"| `{kernel}` | {sizes} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def merged(committed: str, found: str) -> str:
    """The table with the sections that were found in the place of those of the same sources."""
    head, *new = found.split("\n## ")
    old = committed.split("\n## ")[1:]
    sections = {section.partition("\n")[0]: section for section in (*old, *new)}
    return "\n## ".join([head, *(sections[name] for name in sorted(sections))])


def compare(found: str, table: Path, version: str) -> list[str]:
    """What differs from the committed table; nothing where that is of another nvcc."""
    committed = table.read_text() if table.exists() else ""
    if committed and f"\nnvcc {version}. " not in committed:
        print(f"{table.name} is of another nvcc than {version}: its figures are not compared")
        return []
    if committed == found:
        return []
    difference = difflib.unified_diff(
        committed.splitlines(), found.splitlines(), "committed", "found", lineterm="", n=0
    )
    return [
        f"{table.name} is not what these kernels take; after a look at the difference, run "
        "`python packaging/cuda_resources.py --write`:",
        *difference,
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sources", nargs="*", type=Path, help="default: csrc/cuda/*.cu")
    parser.add_argument("--write", action="store_true", help="write the table, compare nothing")
    parser.add_argument("--table", type=Path, default=_TABLE, help=argparse.SUPPRESS)
    parser.add_argument("--archs", help="comma-separated, such as 80,90 (default: all; no table)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    nvcc = find_nvcc()
    if nvcc is None:
        print("no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda", file=sys.stderr)
        return 1
    sources = options.sources or sorted((_ROOT / "csrc" / "cuda").glob("*.cu"))
    archs = options.archs.split(",") if options.archs else gpu_archs(nvcc)
    usages = measure(nvcc, [path.resolve() for path in sources], archs, options.jobs)
    version = nvcc_version(nvcc)
    table = render(usages, version)
    if options.sources and options.table.exists():
        table = merged(options.table.read_text(), table)
    problems = local_memory(usages)
    if options.archs:
        print(render(usages, version))
    elif options.write and not problems:
        options.table.write_text(table)
    elif not problems:
        problems = compare(table, options.table, version)
    if problems:
        print("\n".join(problems), file=sys.stderr)
    else:
        kernels = len({(u.source, u.kernel) for u in usages})
        print(f"{kernels} kernels on {len(archs)} architectures: no local memory")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
