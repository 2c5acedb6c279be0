"""What a user's own network computes, and the text it is written in, so that a run notices when its code has changed.

The function is sampled, not hashed: the outputs of a fixed input through fixed weights, in evaluation and in training
mode, and the gradients of every block.  They are computed in float64 where the network can, so another CPU or version
of torch moves them by far less than a changed line of code does.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import math
import platform
import sys
import sysconfig
import tokenize
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hpcsplit.host.chance import nothing_drawn, seed_all

NETWORK, FUNCTION, SOURCE = "network", "function", "source"  # names among the fingerprints of a run
_SAMPLES, _NUMBERS, _PERIOD = 4, 24, 65521
_WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}
_TOLERANCE = {"float64": 1e-8, "mixed": 1e-4, "float32": 2e-3}  # of the largest number of the same kind


# ------------------------------------------------------------------------------------------------ what it computes


def function_of(
    make: Callable[[], nn.Sequential], input_shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> str:
    """Numbers that tell what a network computes, as JSON; "" where it computes nothing finite with them.

    `make` builds it, the same each time; the numbers do not depend on its initial weights where these can be set.
    Samples are of type `dtype`; whole numbers are 0 and 1.
    """
    for wide, filled in ((True, True), (False, True), (False, False)):
        with nothing_drawn(), torch.enable_grad():
            seed_all(0)
            try:
                outcome = _sampled(_prepared(make(), wide=wide, filled=filled), input_shape, dtype)
            except Exception:  # the user's code runs here; the run itself will say what is wrong with it
                continue
        if outcome["eval"]:
            kind = "mixed" if wide and outcome["narrow"] else "float64" if wide else "float32"
            return json.dumps({"in": kind, "filled": filled, **outcome}, separators=(",", ":"))
    return ""


def same_function(there: str, here: str) -> bool:
    """Whether two results of `function_of` that know it are of one function."""
    if there == here:
        return True
    a, b = json.loads(there), json.loads(here)
    if a["filled"] != b["filled"]:
        return False
    tolerance = max(_TOLERANCE[a["in"]], _TOLERANCE[b["in"]])
    kinds = ("eval", "train", "slopes") if a["drawn"] == b["drawn"] else ("eval",)
    return all(_close(a[kind], b[kind], tolerance) for kind in kinds if a[kind] and b[kind])


def _close(a: list[float], b: list[float], tolerance: float) -> bool:
    largest = max(map(abs, (*a, *b)))
    return len(a) == len(b) and all(abs(x - y) <= tolerance * largest for x, y in zip(a, b, strict=True))


def _sampled(net: nn.Sequential, input_shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    floating = (p.dtype for p in net.parameters() if p.is_floating_point())
    noise = _noise("input", (_SAMPLES, *input_shape))
    x = noise.to(next(floating, torch.float32)) if dtype.is_floating_point else (noise > 0).to(dtype)
    narrow = _Narrow()
    with torch.no_grad(), narrow:
        net.eval()
        outputs = [net(x) for _ in range(2)]  # twice: what is not the same tells nothing
    net.train()
    trained, slopes, drawn = [], [], ""
    for _ in range(2):
        net.zero_grad()
        seed_all(0)
        before = torch.get_rng_state()
        y = net(x)
        if not torch.equal(before, torch.get_rng_state()):
            drawn = f"{torch.__version__} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        trained.append(y.detach())
        if y.requires_grad:
            (y.abs().square().mean() + y.real.mean()).backward()
        slopes.append(torch.tensor([_slope(block) for block in net], dtype=torch.float64))
    return {
        "eval": _numbers(*outputs),
        "train": _numbers(*trained),
        "slopes": _numbers(*slopes),
        "drawn": drawn,  # where other machines and versions of torch may draw other numbers
        "narrow": narrow.seen,
    }


class _Narrow(TorchFunctionMode):
    """Notices numbers that are not as wide as float64."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and (result.is_floating_point() or result.is_complex()):
            self.seen |= result.dtype not in _WIDE.values()
        return result


def _slope(block: nn.Module) -> float:
    grads = [p.grad for p in block.parameters() if p.grad is not None]
    return math.sqrt(sum(float(g.abs().double().square().sum()) for g in grads))


def _numbers(first: Tensor, second: Tensor) -> list[float]:
    """Some of the values and their size; none where they are not the same twice, or not finite."""
    values = torch.view_as_real(first).flatten() if first.is_complex() else first.flatten()
    if not torch.equal(first, second) or not values.isfinite().all() or not values.numel():
        return []
    values = values.double()
    some = values[:: max(1, math.ceil(len(values) / _NUMBERS))].tolist()
    return [float(f"{value:.9g}") for value in (*some, float(values.square().mean().sqrt()))]


def _prepared(net: nn.Sequential, *, wide: bool, filled: bool) -> nn.Sequential:
    """In float64 and with weights that no initialisation has a part in."""
    if wide:
        net._apply(lambda t: t.to(_WIDE.get(t.dtype, t.dtype)))
    with torch.no_grad():
        for name, p in net.named_parameters() if filled else ():
            fan_in = math.prod(p.shape[1:])
            p.copy_(_noise(name, tuple(p.shape)) * math.sqrt(3 / fan_in) if p.dim() > 1 else _noise(name, p.shape) + 1)
    return net


def _noise(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers between -1 and 1 that depend on the name alone (numpy keeps this generator as it is)."""
    period = np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, _PERIOD)
    return torch.from_numpy(np.resize(period, shape))


# ------------------------------------------------------------------------------------------------ its text


def source_of(factory: str, net: nn.Module) -> str:
    """A hash of the user's modules that the network comes from, comments and layout left out: the factory's, those of
    its layers, and what these import.  Installed packages, torch and this program are not the user's."""
    outcome: dict[str, ModuleType] = {}
    waiting = {factory, *(type(module).__module__ for module in net.modules())}
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        if module is None or name in outcome or not _is_users(module):
            continue
        outcome[name] = module
        waiting |= {_home(value) for value in list(vars(module).values())}
    texts = {name: _text(Path(module.__file__ or "")) for name, module in outcome.items()}
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()[:16]


def _home(value: object) -> str:
    """The name of the module that a value is, or comes from."""
    module = inspect.getmodule(value) if inspect.isroutine(value) or inspect.isclass(value) else value
    return module.__name__ if isinstance(module, ModuleType) else ""


def _is_users(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    if not file or module.__name__.partition(".")[0] == __name__.partition(".")[0]:
        return False
    installed = (Path(sysconfig.get_paths()[key]) for key in ("stdlib", "platstdlib", "purelib", "platlib"))
    return not any(Path(file).resolve().is_relative_to(place.resolve()) for place in installed)


def _text(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError:
        return ""
    try:
        tokens = list(tokenize.tokenize(io.BytesIO(content).readline))
    except (SyntaxError, tokenize.TokenError, UnicodeDecodeError):
        return hashlib.sha256(content).hexdigest()
    left_out = (tokenize.COMMENT, tokenize.NL, tokenize.ENCODING)
    marks = {tokenize.INDENT: "{", tokenize.DEDENT: "}"}
    return "\0".join(marks.get(t.type, t.string) for t in tokens if t.type not in left_out)


def change_of(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """What of a network has changed between two fingerprints: `FUNCTION`, its text alone (`SOURCE`), or nothing ("").

    Where one of them does not say what it computes, as in older checkpoints, it is known by how it prints itself.
    """
    known = there.get(FUNCTION) and here.get(FUNCTION)
    same = same_function(there[FUNCTION], here[FUNCTION]) if known else there.get(NETWORK) == here.get(NETWORK)
    if not same:
        return FUNCTION
    return SOURCE if SOURCE in there and SOURCE in here and there[SOURCE] != here[SOURCE] else ""


def said_of(change: str, checkpoint: str) -> str:
    """The sentence on such a change, or ""."""
    return {
        FUNCTION: f"warning: the network computes something else than when {checkpoint} was made: its code has changed",
        SOURCE: f"note: the network's source has changed since {checkpoint}; it computes the same on a fixed input",
        "": "",
    }[change]
