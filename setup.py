"""Older commands, handed over to the build backend that pyproject.toml names.

`python setup.py bdist_wheel` and `python setup.py sdist` give what `pip wheel .` and
`python -m build --sdist` give; `-d DIR` says where (default: dist).
"""

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

HOOKS = {"bdist_wheel": "build_wheel", "sdist": "build_sdist"}


def main() -> int:
    """Runs one command and prints the file it made."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=sorted(HOOKS), help="to install: pip install .")
    parser.add_argument("-d", "--dist-dir", type=Path, default=Path("dist"))
    options = parser.parse_args()
    options.dist_dir.mkdir(parents=True, exist_ok=True)

    backend_there = all(map(importlib.util.find_spec, ["scikit_build_core", "pybind11"]))
    if backend_there:
        from scikit_build_core import build

        print(options.dist_dir / getattr(build, HOOKS[options.command])(str(options.dist_dir)))
        return 0
    if options.command == "bdist_wheel":
        # pip fetches the backend into an environment of its own.
        command = ["pip", "wheel", "--no-deps", "-w", str(options.dist_dir), "."]
        return subprocess.call([sys.executable, "-m", *command])
    print("sdist needs the build backend: pip install scikit-build-core pybind11", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
