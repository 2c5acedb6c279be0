"""A device far away, without one: the "meta" device, and what happens between it and the host."""

from __future__ import annotations

import traceback
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

NO_AUTOCAST = patch("hpcsplit.stage.stage.torch.autocast", lambda *args, **options: nullcontext())  # meta knows none
NO_CHECK = patch("torch.optim.sgd._device_dtype_check_for_fused")


class Waits(TorchDispatchMode):
    """Where a value of the meta device is read, by line of the program; it is then taken for one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[str] = Counter()
        self.far: Counter[str] = Counter()  # operators that computed there

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.name()
        source: Any = args[1] if name == "aten::copy_" else args[0] if args else None
        far = isinstance(source, torch.Tensor) and source.is_meta
        self.far[name] += bool(far)
        if far and name == "aten::_local_scalar_dense":
            self._note()
            return 1.0 if source.is_floating_point() else 1
        if far and name == "aten::copy_" and not args[0].is_meta:
            if not kwargs.get("non_blocking", len(args) > 2 and args[2]):
                self._note()
            return args[0].fill_(1)
        if far and name == "aten::_to_copy" and str(kwargs.get("device", "meta")) == "cpu":
            self._note()
            return torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        if name.startswith("aten::_fused_sgd_"):
            self.far["aten::_fused_sgd_"] += args[0][0].is_meta
            return None
        return func(*args, **kwargs)

    def _note(self) -> None:
        lines = [f for f in traceback.extract_stack() if "/hpcsplit/" in f.filename and "/tests/" not in f.filename]
        self.seen[f"{Path(lines[-1].filename).name}:{lines[-1].lineno}"] += 1
