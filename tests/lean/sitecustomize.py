"""On the PYTHONPATH of the processes that tests start: leaves out of them what a third of their start and a third of
their end go into, and nothing here needs: torch's compiler, and the closing picture of a run."""

from __future__ import annotations

import sys
import types
from typing import Any


def put(name: str, **contents: Any) -> types.ModuleType:
    """A module with these contents in place of the one with this name."""
    sys.modules[name] = module = types.ModuleType(name)
    vars(module).update(contents)
    return module


put(
    "torch._dynamo",
    disable=lambda fn, *_, **__: fn,
    graph_break=lambda *_: None,
    OptimizedModule=type("OptimizedModule", (), {}),
    utils=put(  # torchvision and DistributedDataParallel look at it
        "torch._dynamo.utils",
        is_compile_supported=lambda device: False,
        get_optimize_ddp_mode=lambda: "no_optimization",
    ),
    trace_rules=types.SimpleNamespace(clear_lru_cache=lambda: None),  # so does torch.distributed
)
if "report" not in sys.orig_argv:
    put("hpcsplit.report.picture", FORMATS=("png", "pdf", "svg"), draw=lambda runs, path, title: None)
