"""Writes constraints.txt: one exact set of versions for Python 3.10 to 3.14, markers included.

    make constraints

Needs uv. torch is held at the version that the tests and the measured figures are for.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

TORCH = "2.13.0"

_ROOT = Path(__file__).resolve().parent.parent
_HEADER = f"""\
# The exact versions that `make demo` and `make test` install, for Python 3.10 to 3.14.
# Written by `make constraints`; torch is held at {TORCH}.
"""


def resolve() -> list[str]:
    """Returns the pins for everything in the extra [dev], build tools included."""
    with tempfile.TemporaryDirectory() as folder:
        hold = Path(folder) / "hold.txt"
        hold.write_text(f"torch=={TORCH}\n")
        command = ["uv", "pip", "compile", "--universal", "--python-version", "3.10"]
        command += ["--extra", "dev", "--constraint", str(hold), "--no-annotate", "--no-header"]
        command += ["--no-emit-package", "fastctc", "--quiet", "pyproject.toml"]
        done = subprocess.run(command, cwd=_ROOT, check=True, capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if re.match(r"^[\w.-]+==", line)]


def main() -> int:
    """Writes the file and says how many pins it holds."""
    pins = resolve()
    (_ROOT / "constraints.txt").write_text(_HEADER + "\n".join(pins) + "\n")
    print(f"constraints.txt: {len(pins)} pins")
    return 0


if __name__ == "__main__":
    sys.exit(main())
