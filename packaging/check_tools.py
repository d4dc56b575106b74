"""Says in a sentence what this machine lacks to build fastctc; silent when all is there.

Runs under any Python 3, so that an old one gets the sentence as well.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig


def missing_tools():
    """Returns one sentence per missing tool, each with what to install."""
    problems = []
    python = "python{}.{}".format(*sys.version_info[:2])
    if sys.version_info < (3, 10):
        problems.append(
            "fastctc needs Python 3.10 or newer and {} is {}.{}; "
            "name another with `make PYTHON=python3.12 ...`.".format(
                sys.executable, *sys.version_info[:2]
            )
        )
    # Debian ships the venv module without ensurepip, so the import alone proves nothing.
    probe = subprocess.run(
        [sys.executable, "-c", "import venv, ensurepip"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    if probe.returncode:
        problems.append(
            "{0} cannot make virtual environments; install its venv module "
            "(Debian, Ubuntu: apt-get install {1}-venv).".format(sys.executable, python)
        )
    if os.environ.get("FASTCTC_BUILD") == "none":
        return problems
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        problems.append(
            "The C headers of {0} are missing; install them (Debian, Ubuntu: apt-get install "
            "{1}-dev; Fedora: dnf install python3-devel).".format(sys.executable, python)
        )
    wanted = shlex.split(os.environ.get("CXX", ""))[:1] or ["c++", "g++", "clang++"]
    if not any(shutil.which(name) for name in wanted):
        problems.append(
            "No C++ compiler ({}) on PATH; install one (Debian, Ubuntu: apt-get install g++; "
            "Fedora: dnf install gcc-c++; macOS: xcode-select --install).".format(", ".join(wanted))
        )
    return problems


if __name__ == "__main__":
    found = missing_tools()
    for problem in found:
        print(problem, file=sys.stderr)
    sys.exit(bool(found))
