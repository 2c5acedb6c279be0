"""Importing this leaves torch's compiler out of the process: a third of a start, and nothing here compiles."""

from __future__ import annotations

import sys
import types

compiler = types.ModuleType("torch._dynamo")
compiler.disable = lambda fn, *_, **__: fn  # type: ignore[attr-defined]
compiler.graph_break = lambda *_: None  # type: ignore[attr-defined]
sys.modules["torch._dynamo"] = compiler
