"""Compiles the Triton kernels for every GPU that counts, and reads what each takes. No GPU needed.

    python packaging/triton_resources.py            compare with docs/triton-resources.md
    python packaging/triton_resources.py --write    bring that table up to date

What is compiled are the launches of real calls: shapes, tiles and alignment are what the launcher
makes of them. A kernel that spills a register fails, and so does a figure that
differs from the table's of the same triton version.
"""

from __future__ import annotations

import argparse
import difflib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))

from fastctc._norm import LOG1P, LOG10, NO_LOG, MaskOptions, NormOptions  # noqa: E402
from fastctc.triton import spectrogram_norm as norm  # noqa: E402

_TABLE = _ROOT / "docs" / "triton-resources.md"
_HEAD = """\
# What the Triton kernels take

Registers of a thread on each architecture, and shared memory of a program in bytes (the least and
the most of all architectures). A kernel that keeps anything in local memory fails.
`make triton-gates` holds the kernels against this table, and
`python packaging/triton_resources.py --write` writes the part of the triton that it finds.
"""
_ARCHS = (75, 80, 86, 89, 90, 100, 120)
_POINTEES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int32: "i32",
    torch.int64: "i64",
}
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class Case:
    """A batch in canonical shape, and what is computed of it."""

    name: str
    shape: tuple[int, int, int, int, int]
    dtype: torch.dtype
    options: NormOptions
    affine: bool = False
    masked: bool = False
    time_contiguous: bool = False


_SPECAUGMENT = MaskOptions(2, 100, 13107, 2, 27, per_channel=False)
CASES = (
    Case(
        "16 x 1500 x 161, float32, per utterance, log1p",
        (16, 1500, 1, 1, 161),
        torch.float32,
        NormOptions(False, False, LOG1P, 1e-6, 1e-5),
    ),
    Case(
        "64 x 800 x 80, bfloat16, per utterance, masks",
        (64, 800, 1, 1, 80),
        torch.bfloat16,
        NormOptions(False, False, NO_LOG, 1e-6, 1e-5),
        masked=True,
    ),
    Case(
        "32 x 4000 x 257, float32, per utterance, frames adjacent",
        (32, 4000, 1, 1, 257),
        torch.float32,
        NormOptions(False, False, LOG1P, 1e-6, 1e-5),
        time_contiguous=True,
    ),
    Case(
        "1100 x 32 x 2 x 16 x 33, float32, batch statistics, log10, affine, masks",
        (32, 1100, 2, 16, 33),
        torch.float32,
        NormOptions(True, True, LOG10, 1e-6, 1e-5),
        affine=True,
        masked=True,
    ),
    Case(
        "32 x 700 x 800, float16, batch statistics, affine",
        (32, 700, 1, 1, 800),
        torch.float16,
        NormOptions(True, False, NO_LOG, 1e-6, 1e-5),
        affine=True,
    ),
    Case(
        "4 x 500 x 80, float64, per utterance, log1p",
        (4, 500, 1, 1, 80),
        torch.float64,
        NormOptions(False, False, LOG1P, 1e-6, 1e-5),
    ),
)


@dataclass(frozen=True)
class Launch:
    """A kernel with the arguments of one launch."""

    kernel: Any
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Usage:
    """What one kernel takes on one architecture: a thread's registers, a program's bytes."""

    case: str
    kernel: str
    arch: int
    registers: int
    shared: int
    local: int


def launches(case: Case) -> Iterator[Launch]:
    """Those of a forward and a backward pass, recorded from calls with tensors without memory."""
    found: list[Launch] = []

    def record(kernel: Any, grid: tuple[int], device: torch.device, **arguments: Any) -> None:
        found.append(Launch(kernel, arguments))

    n, t, b, e, f = case.shape
    if b * e == 1:
        memory = (n, b, e, f, t) if case.time_contiguous else (n, t, b, e, f)
        x = torch.empty(memory, dtype=case.dtype, device="meta")
        x = x.permute(0, 4, 1, 2, 3) if case.time_contiguous else x
    else:  # time first
        x = torch.empty((t, n, b, e, f), dtype=case.dtype, device="meta").transpose(0, 1)
    lengths = torch.empty(n, dtype=torch.int64, device="meta")
    weight = masks = None
    time_masks = 0
    with mock.patch.object(norm, "launch", record):
        if case.affine:
            dtype = torch.float64 if case.dtype is torch.float64 else torch.float32
            size = (b, e, 1 if case.options.over_freq else f)
            weight = torch.empty(size, dtype=dtype, device="meta")
        if case.masked:
            seed = torch.empty(1, dtype=torch.int64, device="meta")
            masks = norm.draw_masks(seed, lengths, case.shape, _SPECAUGMENT)
            time_masks = _SPECAUGMENT.time_count
        y, mean, var = norm.forward(x, lengths, weight, weight, masks, time_masks, case.options)
        norm.backward(y, x, lengths, mean, var, weight, masks, time_masks, case.options)
    yield from found


def _integer_type(value: int) -> str:
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def source_of(launch: Launch) -> ASTSource:
    """What triton compiles for a launch: aligned pointers, and integers that are 1 or aligned."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        name = parameter.name
        value = launch.arguments[name]
        aligned = False
        if parameter.is_constexpr or value is None:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name], aligned = "*" + _POINTEES[value.dtype], True
        elif parameter.do_not_specialize:
            signature[name] = _integer_type(value)
        elif value == 1:
            signature[name], constants[name] = "constexpr", 1
        else:
            signature[name], aligned = _integer_type(value), value % 16 == 0
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def read_usage(cubin: bytes) -> tuple[int, int, int]:
    """Registers, shared and local memory of the one kernel in a binary."""
    dumper = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [dumper, "--dump-resource-usage", file.name]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = _USAGE.findall(output)
    if len(found) != 1:
        raise SystemExit(
            f"{dumper} speaks of {len(found)} kernels where one is expected:\n{output}"
        )
    registers, stack, shared, local = map(int, found[0])
    return registers, shared, max(stack, local)


def measure(
    cases: Sequence[Case], archs: Sequence[int], tell: Callable[[str], None]
) -> list[Usage]:
    """Everything, one compilation after the other."""
    usages = []
    for case in cases:
        tell(case.name)
        for launch in launches(case):
            options = {
                name: launch.arguments[name]
                for name in ("num_warps", "maxnreg")
                if name in launch.arguments
            }
            options["enable_fp_fusion"] = True
            for arch in archs:
                compiled = triton.compile(
                    source_of(launch), target=GPUTarget("cuda", arch, 32), options=options
                )
                registers, _, local = read_usage(compiled.asm["cubin"])
                name = launch.kernel.__name__
                shared = compiled.metadata.shared
                usages.append(Usage(case.name, name, arch, registers, shared, local))
    return usages


def local_memory(usages: Sequence[Usage]) -> list[str]:
    """One sentence for each kernel that keeps something in local memory."""
    return [
        f"{u.kernel} keeps {u.local} bytes in local memory on sm_{u.arch} ({u.case})"
        for u in usages
        if u.local
    ]


def render(usages: Sequence[Usage]) -> str:
    """The part of the table that belongs to this triton."""
    archs = sorted({u.arch for u in usages})
    lines = [f"## triton {triton.__version__}"]
    for case in dict.fromkeys(u.case for u in usages):
        lines += ["", f"{case}:", ""]
        lines.append(f"| kernel | shared | {' | '.join(f'sm_{arch}' for arch in archs)} |")
        lines.append("|---|--:|" + "--:|" * len(archs))
        ours = [u for u in usages if u.case == case]
        for kernel in dict.fromkeys(u.kernel for u in ours):
            registers = {u.arch: str(u.registers) for u in ours if u.kernel == kernel}
            shared = sorted({u.shared for u in ours if u.kernel == kernel})
            sizes = " to ".join(map(str, (shared[0], shared[-1])[: len(shared)]))
            cells = " | ".join(registers[arch] for arch in archs)
            lines.append(f"| `{kernel}` | {sizes} | {cells} |")
    return "\n".join(lines) + "\n"


def parts_of(table: str) -> dict[str, str]:
    """The parts of a table by triton version."""
    parts = re.split(r"^(?=## triton )", table, flags=re.MULTILINE)[1:]
    return {part.split("\n", 1)[0].split()[-1]: part.strip() + "\n" for part in parts}


def compare(found: str, table: Path) -> list[str]:
    """What differs from the committed table; nothing where that knows no such triton."""
    committed = parts_of(table.read_text() if table.exists() else "").get(triton.__version__)
    if committed is None:
        print(f"{table.name} has no figures of triton {triton.__version__}: none are compared")
        return []
    if committed == found:
        return []
    difference = difflib.unified_diff(
        committed.splitlines(), found.splitlines(), "committed", "found", lineterm="", n=0
    )
    return [
        f"{table.name} is not what these kernels take; after a look at the difference, run "
        "`python packaging/triton_resources.py --write`:",
        *difference,
    ]


def write(found: str, table: Path) -> None:
    """Replace the part of this triton."""
    parts = parts_of(table.read_text() if table.exists() else "")
    parts[triton.__version__] = found
    ordered = sorted(parts, key=lambda version: [int(part) for part in version.split(".")])
    table.write_text("\n".join([_HEAD, *(parts[version] for version in ordered)]))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the table, compare nothing")
    parser.add_argument("--table", type=Path, default=_TABLE, help=argparse.SUPPRESS)
    parser.add_argument("--archs", help="comma-separated, such as 80,90 (default: all; no table)")
    parser.add_argument("--case", help="only cases whose name contains this; no table")
    options = parser.parse_args(arguments)
    archs = [int(arch) for arch in options.archs.split(",")] if options.archs else _ARCHS
    cases = [case for case in CASES if options.case is None or options.case in case.name]
    usages = measure(cases, archs, lambda text: print(text, file=sys.stderr, flush=True))
    found = render(usages)
    problems = local_memory(usages)
    if options.archs or options.case:
        print(found)
    elif options.write and not problems:
        write(found, options.table)
    elif not problems:
        problems = compare(found, options.table)
    print("\n".join(problems), file=sys.stderr)
    if not problems:
        print(f"{len(usages)} compilations by triton {triton.__version__}: nothing spilled")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
