"""Finds the compiled module; `_C` is None where the package was built without one.

`FASTCTC_LIBRARY=/path/to/_C.so` loads that file in place of the installed module: a build with
sanitizers, or another build to compare with.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

_NAME = "fastctc._C"


def _load_file(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(_NAME, path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise ImportError(f"FASTCTC_LIBRARY is {path!r}, which is not a compiled module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module
    spec.loader.exec_module(module)
    return module


def _load() -> ModuleType | None:
    path = os.environ.get("FASTCTC_LIBRARY")
    if path:
        return _load_file(path)
    try:
        return importlib.import_module(_NAME)
    except ModuleNotFoundError as error:
        # Only the module's own absence means a pure-Python build; anything else is a fault that
        # must not turn silently into a slow fallback.
        if error.name == _NAME:
            return None
        raise


def built_for_other_python() -> list[str]:
    """Names of compiled modules beside this file that this interpreter cannot load."""
    here = Path(__file__).parent
    ours = {"_C" + suffix for suffix in EXTENSION_SUFFIXES}
    found = [*here.glob("_C.*.so"), *here.glob("_C.*.pyd")]
    return sorted(path.name for path in found if path.name not in ours)


_C: ModuleType | None = _load()
