"""What this copy of fastctc was built from and for."""

from __future__ import annotations

from typing import Any

from fastctc._native import _C
from fastctc._version import __version__


def build_info() -> dict[str, Any]:
    """Describes the build that is in use.

    Returns:
        A new dict. `version` (str) is the package's version and `compiled` (bool) says whether
        the compiled module is there. With it come `module_version` (str; differs from the base
        of `version` when the module is out of date), `compiler`, `build_type` and `platform`
        (str), `cpu_targets` (list of str, widest first), `sanitizers` (list of str), `cuda`
        (bool), `cuda_version` (str or None) and `cuda_archs` (list of str such as "90" and
        "120+PTX"). In a pure-Python build those are None, empty or False.
    """
    info: dict[str, Any] = {
        "version": __version__,
        "compiled": _C is not None,
        "module_version": None,
        "compiler": None,
        "build_type": None,
        "platform": None,
        "cpu_targets": [],
        "sanitizers": [],
        "cuda": False,
        "cuda_version": None,
        "cuda_archs": [],
    }
    if _C is not None:
        native = _C.build_info()
        info["module_version"] = native.pop("version")
        info.update(native)
    return info
