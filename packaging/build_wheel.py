"""Builds a wheel to hand out, its version tagged by what was compiled in: +cpu or +cu130.

    python packaging/build_wheel.py --out dist

The tag is read off the compiled module itself, so it cannot disagree with the choice CMake made.
Only wheels get one: pip rejects an sdist whose build changes its version.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent

_PRINT_BUILD_INFO = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("fastctc._C", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(json.dumps(module.build_info()))
"""


def build(folder: Path) -> Path:
    """Builds the wheel of the base version into a folder and returns its path."""
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(folder), str(_ROOT)], check=True)
    (wheel,) = folder.glob("fastctc-*.whl")
    return wheel


def local_tag(wheel: Path) -> str:
    """Returns "cpu", "cu130", ... for what is in the wheel; "" for a pure-Python one."""
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        modules = [n for n in archive.namelist() if n.startswith("fastctc/_C.")]
        if not modules:
            return ""
        module = archive.extract(modules[0], folder)
        command = [sys.executable, "-c", _PRINT_BUILD_INFO, module]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    info = json.loads(output)
    return f"cu{info['cuda_version'].replace('.', '')}" if info["cuda"] else "cpu"


def _record_line(name: str, data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(data)}"


def retag(wheel: Path, tag: str, out: Path) -> Path:
    """Copies a wheel into `out` with a local tag on its version, everywhere it stands.

    Returns the path of the copy. Dates and permissions of the files stay as they were.
    """
    name, base, *rest = wheel.name.split("-")
    version = f"{base}+{tag}" if tag else base
    target = out / "-".join([name, version, *rest])
    old_info, new_info = f"{name}-{base}.dist-info/", f"{name}-{version}.dist-info/"
    edits = {
        f"{old_info}METADATA": (f"\nVersion: {base}\n", f"\nVersion: {version}\n"),
        f"{name}/_version.py": (f'"{base}"', f'"{version}"'),
    }
    record = [f"{new_info}RECORD,,"]
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w") as copy:
        for entry in source.infolist():
            if entry.filename == f"{old_info}RECORD":
                record_entry = entry
                continue
            data = source.read(entry)
            if entry.filename in edits:
                old, new = (text.encode() for text in edits[entry.filename])
                if data.count(old) != 1:
                    raise SystemExit(f"{entry.filename}: {old!r} is not there exactly once")
                data = data.replace(old, new)
            entry.filename = entry.filename.replace(old_info, new_info, 1)
            copy.writestr(entry, data, zipfile.ZIP_DEFLATED)
            record.insert(-1, _record_line(entry.filename, data))
        record_entry.filename = f"{new_info}RECORD"
        copy.writestr(record_entry, "\n".join(record) + "\n", zipfile.ZIP_DEFLATED)
    return target


def main() -> None:
    """Builds, tags and prints the path of the wheel."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("dist"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(Path(folder))
        print(retag(wheel, local_tag(wheel), out))


if __name__ == "__main__":
    main()
