"""Checks a wheel before it is handed out: contents, libraries needed, GLIBC, GPU code, size.

python packaging/check_wheel.py dist/fastctc-*.whl
"""

from __future__ import annotations

import argparse
import re
import struct
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

# What every Linux with a C++ program on it has; above all no libcuda and no libtorch.
ALLOWED_LIBRARIES = re.compile(r"^(lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s)|ld-linux.*)\.so\.\d+$")
ALLOWED_FILES = re.compile(r"^fastctc/(.+\.(py|yaml|json)|py\.typed|_C\.[\w.-]+\.(so|pyd))$")
MAX_GLIBC = (2, 34)
MAX_MEGABYTES = 20.0

_FATBIN_MAGIC = struct.pack("<I", 0xBA55ED50)
_FATBIN_PTX, _FATBIN_CUBIN = 1, 2


@dataclass
class Report:
    """What was read off one wheel, and the sentences about what is wrong with it."""

    name: str
    size: int
    modules: list[str]
    libraries: list[str]
    exports: list[str]
    glibc: tuple[int, ...]
    gpu_archs: list[str]
    problems: list[str]


def gpu_archs(binary: bytes) -> list[str]:
    """Lists the GPU code embedded in a binary: "90" for machine code, "120+PTX" for PTX."""
    found = set()
    at = binary.find(_FATBIN_MAGIC)
    while at >= 0:
        _, header, size = struct.unpack_from("<HHQ", binary, at + 4)
        entry, end = at + header, at + header + size
        while entry + 32 <= end:
            kind, _, entry_header, payload = struct.unpack_from("<HHIQ", binary, entry)
            (arch,) = struct.unpack_from("<I", binary, entry + 28)
            if kind in (_FATBIN_PTX, _FATBIN_CUBIN):
                found.add((arch, "+PTX" if kind == _FATBIN_PTX else ""))
            entry += entry_header + payload
        at = binary.find(_FATBIN_MAGIC, end)
    return [f"{arch}{suffix}" for arch, suffix in sorted(found)]


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def libraries_needed(path: Path) -> list[str]:
    """Lists the shared libraries that an ELF file asks the loader for."""
    return re.findall(r"\(NEEDED\).*\[(.+)\]", _output("readelf", "-d", str(path)))


def newest_glibc(path: Path) -> tuple[int, ...]:
    """Returns the newest GLIBC version that an ELF file asks for, e.g. (2, 34)."""
    versions = re.findall(r"GLIBC_([0-9.]+)", _output("readelf", "-V", str(path)))
    return max((tuple(map(int, v.split("."))) for v in versions), default=(0,))


def exported_symbols(path: Path) -> list[str]:
    """Lists the symbols that an ELF file offers to others."""
    lines = _output("nm", "-D", "--defined-only", str(path)).splitlines()
    return [line.split()[-1] for line in lines]


def inspect(wheel: Path) -> Report:
    """Reads a wheel and judges it."""
    report = Report(wheel.name, wheel.stat().st_size, [], [], [], (0,), [], [])
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        for name in archive.namelist():
            if ".dist-info/" not in name and not ALLOWED_FILES.match(name):
                report.problems.append(f"{name} does not belong into a wheel")
            if not re.match(r"^fastctc/_C\..*\.(so|pyd)$", name):
                continue
            report.modules.append(name)
            path = Path(archive.extract(name, folder))
            if path.suffix == ".so" and path.read_bytes()[:4] == b"\x7fELF":
                report.libraries = libraries_needed(path)
                report.exports = exported_symbols(path)
                report.glibc = newest_glibc(path)
                report.gpu_archs = gpu_archs(path.read_bytes())
    _judge(report)
    return report


def _judge(report: Report) -> None:
    pure = report.name.endswith("-py3-none-any.whl")
    if pure and report.modules:
        report.problems.append("a pure wheel contains a compiled module")
    if not pure and len(report.modules) != 1:
        report.problems.append(f"{len(report.modules)} compiled modules, expected 1")
    for library in report.libraries:
        if not ALLOWED_LIBRARIES.match(library):
            report.problems.append(f"needs {library}, which not every machine has")
    if report.exports and report.exports != ["PyInit__C"]:
        report.problems.append(f"exports more than PyInit__C: {report.exports[:5]}")
    if report.glibc > MAX_GLIBC:
        report.problems.append(
            f"needs GLIBC {'.'.join(map(str, report.glibc))}, "
            f"more than {'.'.join(map(str, MAX_GLIBC))}: build on an older system"
        )
    tag = re.search(r"^fastctc-[^-]+\+(cpu|cu\d+)-", report.name)
    if tag and (tag[1] == "cpu") == bool(report.gpu_archs):
        report.problems.append(
            f"tagged +{tag[1]}, with GPU code for {report.gpu_archs or 'nothing'}"
        )
    if report.size > MAX_MEGABYTES * 1e6:
        report.problems.append(f"{report.size / 1e6:.1f} MB, more than {MAX_MEGABYTES:.0f} MB")


def main() -> int:
    """Prints what was found in each wheel; returns 1 when one has a problem."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", nargs="+", type=Path)
    failed = False
    for wheel in parser.parse_args().wheels:
        report = inspect(wheel)
        print(f"{report.name}: {report.size / 1e6:.2f} MB")
        print(f"  module     {', '.join(report.modules) or 'none (pure Python)'}")
        print(f"  needs      {', '.join(report.libraries) or 'nothing'}")
        print(f"  GLIBC      {'.'.join(map(str, report.glibc)) if report.modules else '-'}")
        print(f"  GPU code   {', '.join(report.gpu_archs) or 'none'}")
        for problem in report.problems:
            print(f"  PROBLEM    {problem}")
        failed = failed or bool(report.problems)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
