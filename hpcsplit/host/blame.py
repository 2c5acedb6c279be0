"""What a message says of a block of the user's network: its number, its name, its class, and the line of their source
that is to be corrected."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

_NOT_THEIRS = (Path(torch.__file__).parent, Path(__file__).parent.parent)
_STANDARD = Path(inspect.__file__).parent


def block_label(net: nn.Sequential, index: int, error: BaseException | None = None) -> str:
    """Such as "block 2 head (Head, mynets.py line 17)".

    The line is the user's last one that `error`, raised by the block, came through.  Without one, or where it came
    through none, it is that of the block's class, if that is the user's.
    """
    name, block = list(net._modules.items())[index]
    line = (line_raised(error) if error else "") or line_defined(getattr(block, "origin", type(block)))
    named = "" if name == str(index) else f" {name}"
    return f"block {index}{named} ({', '.join(filter(None, (type(block).__name__, line)))})"


def line_raised(error: BaseException) -> str:
    """The last line of the user's code that an error came through, such as "mynets.py line 17"; or ""."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _theirs(frame.filename)]
    return f"{Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""


def line_running() -> str:
    """The line of the user's code that is running; or ""."""
    frame = inspect.currentframe()
    while frame and not _theirs(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name} line {frame.f_lineno}" if frame else ""


def line_defined(thing: type | Callable[..., Any]) -> str:
    """Where a class or function of the user's begins; or ""."""
    try:
        file, (_, line) = inspect.getsourcefile(thing), inspect.getsourcelines(thing)
    except (OSError, TypeError):  # no source, or written in C
        return ""
    return f"{Path(file).name} line {line}" if file and _theirs(file) else ""


def _theirs(file: str) -> bool:
    path = Path(file)
    standard = path.is_relative_to(_STANDARD) and "site-packages" not in path.parts
    return file[:1] != "<" and not standard and not any(path.is_relative_to(folder) for folder in _NOT_THEIRS)


def other_types(block: nn.Module) -> str:
    """What to do about a block whose weights do not have the type of the images; or ""."""
    types = {str(p.dtype).removeprefix("torch.") for p in block.parameters()} - {"float32"}
    return f"; its weights are {', '.join(sorted(types))} and images are float32: make them float32" if types else ""


def said(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
