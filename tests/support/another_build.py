"""A pytest plugin (`-p tests.support.another_build`): the library in the folder that `NATIVE_BUILD` names takes the
installed one's place, before anything imports it."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

NAME = "openk2._native"
(LIBRARY,) = Path(os.environ["NATIVE_BUILD"]).glob("_native*.so")

spec = importlib.util.spec_from_file_location(NAME, LIBRARY)
assert spec is not None and spec.loader is not None
library = importlib.util.module_from_spec(spec)
sys.modules[NAME] = library
spec.loader.exec_module(library)
