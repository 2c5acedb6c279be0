"""On the PYTHONPATH of the processes that tests start: leaves torch's compiler, which nothing here needs, out of them.
That is a third of a start."""

from __future__ import annotations

import sys
import types

compiler = types.ModuleType("torch._dynamo")
compiler.disable = lambda fn, *_, **__: fn  # type: ignore[attr-defined]
compiler.graph_break = lambda *_: None  # type: ignore[attr-defined]
sys.modules["torch._dynamo"] = compiler
