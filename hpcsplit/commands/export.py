"""The `export` command: a checkpoint as one file for programs that know torch, or ONNX, alone.

The suffix says which: .pt and .safetensors have the weights, for `load_state_dict`; .pt2 (torch.export) and .onnx have
the network too, for any number of samples.  What these two compute is compared with what the network computes here,
before anything is written.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hpcsplit.checkpoint.state import Whole, digest
from hpcsplit.commands.saved import Saved, find, warn
from hpcsplit.config.option import LIBRARIES, names_code
from hpcsplit.data.inputs import Inputs
from hpcsplit.errors import ConfigError, UsageError
from hpcsplit.files.atomic import write_bytes, write_failure
from hpcsplit.host.printable import printable
from hpcsplit.nets.chain import Chain
from hpcsplit.nets.statedict import values_of
from hpcsplit.run.folder import RunDir

_TRACED, _COMPARED = 2, 5  # samples: with other numbers of them than it was made with, a file must do as well
_TOLERANCE = 1e-4  # of the largest output: float32 sums in another order
Image = io.BytesIO


class Form(NamedTuple):
    """A kind of file: its content, what to say of it, and how it is loaded."""

    content: Callable[[Saved, Whole, Mapping[str, str]], tuple[bytes | memoryview, str]]
    snippet: Callable[[Saved, Path], str]


def export_command(run: RunDir, name: str, config_path: Path | None, out: Path, *, average: bool = False) -> int:
    """Write a checkpoint, or with `average` the moving average of its weights, to `out` in the form of its suffix,
    and print how it is loaded; the exit code.

    Raises:
        UsageError: the suffix is none of FORMS, the file exists, or its folder does not.
        ConfigError: a package is not there, the network is one that cannot be written in this form, or what it
            computes then is something else.
        StoreError: it cannot be written.
    """
    form = FORMS.get(out.suffix)
    if form is None:
        raise UsageError(f"{out}: the suffix says what is written; take one of {', '.join(FORMS)}")
    _check_free(out)
    saved = find(run, name, config_path, average=average)
    saved.check("", "model")
    whole = saved.weights()
    content, said = form.content(saved, whole, _about(saved, whole))
    sha256 = save_new(out, content)
    values = sum(t.numel() for t in whole.weights.values())
    of = "the average of the weights of " if average else ""
    lines = [
        f"{out}: {len(whole.weights)} tensors, {values:,} values, {out.stat().st_size:,} bytes",
        f"{of}checkpoint {saved.name} of {run.path}, {saved.position()}",
        f"weights_sha256 {digest(whole.weights)}",
        f"sha256 of the file {sha256}",
        said,
        f"\n# to load it:\n{form.snippet(saved, out)}",
    ]
    print(printable("\n".join(filter(None, lines))))
    if whole.buffers and out.suffix in (".pt", ".safetensors"):
        warn(
            f"training has changed {', '.join(whole.buffers)}, registered with persistent=False: no state dict has "
            "them, so the exported network computes something else than the run's; make them persistent, or export "
            ".pt2 or .onnx, to have them"
        )
    return 0


def save_new(out: Path, content: bytes | memoryview) -> str:
    """Write a file that does not exist yet, atomically and durably; the SHA-256 of its content.

    Raises:
        UsageError: it exists, or its folder does not.
        StoreError: it cannot be written.
    """
    _check_free(out)  # again: making the content takes a while
    try:
        write_bytes(out, content)
    except OSError as error:
        raise write_failure(out, error, len(content)) from None
    return hashlib.sha256(content).hexdigest()


def _check_free(out: Path) -> None:
    if os.path.lexists(out):
        raise UsageError(f"{out} is there already and is not overwritten; remove it, or choose another name")
    if not os.path.isdir(out.parent):
        raise UsageError(f"{out}: there is no folder {out.parent}; make it first")


def _about(saved: Saved, whole: Whole) -> dict[str, str]:
    """What the file says of itself: texts and JSON by name."""
    inputs = saved.recorded_inputs()
    result = {
        "checkpoint": saved.name,
        "config": saved.setting.config.to_toml(origins=False),
        "input_shape": json.dumps(inputs.taken if inputs else saved.setting.input_shape),
        "weights_sha256": digest(whole.weights),
    }
    if inputs:
        result |= {"mean": json.dumps(inputs.mean), "std": json.dumps(inputs.std)}
    if names := inputs.names if inputs else saved.setting.spec.names:
        result["classes"] = json.dumps(names)
    return result


# ------------------------------------------------------------------------------------------------ weights alone


def _state(saved: Saved, whole: Whole) -> dict[str, Any]:
    """The state dict by the names of the network that it was made of, where that loads it."""
    net = saved.setting.net
    names = net.names if isinstance(net, Chain) and _loads_itself(saved) else dict[str, str]()
    return {names.get(name, name): value for name, value in values_of(whole.weights).items()}


def _loads_itself(saved: Saved) -> bool:
    """Whether the user's module, or torchvision's, and not this program's blocks of it, is to be loaded."""
    package = saved.setting.config.model.name.partition(":")[0]
    made = package not in LIBRARIES or (package == "torchvision" and saved.setting.input_shape[0] == 3)
    return isinstance(saved.setting.net, Chain) and made


def _pt(saved: Saved, whole: Whole, about: Mapping[str, str]) -> tuple[memoryview, str]:
    image = Image()  # torch overlooks what a disk refuses, and puts the name of a path into the archive
    torch.save(_state(saved, whole), image)
    return image.getbuffer(), ""


def _safetensors(saved: Saved, whole: Whole, about: Mapping[str, str]) -> tuple[bytes, str]:
    from safetensors.torch import save

    state = _state(saved, whole)
    if other := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ConfigError(f"{other[0]} of the network is no tensor, which .safetensors cannot hold; export it as .pt")
    try:
        return save({name: t.contiguous() for name, t in state.items()}, dict(about)), ""
    except (KeyError, ValueError) as error:  # a type that it does not know
        raise ConfigError(f"the weights do not go into .safetensors ({error}); export them as .pt") from None


# ------------------------------------------------------------------------------------------------ with the network


def _pt2(saved: Saved, whole: Whole, about: Mapping[str, str]) -> tuple[memoryview, str]:
    net, x = saved.network(whole), saved.setting.random_inputs(_TRACED)
    try:
        program = torch.export.export(net, (x,), dynamic_shapes=_any_number())
    except Exception as error:  # torch's tracer meets code of every kind
        raise _not_traced(".pt2", error) from error
    image = Image()
    torch.export.save(program, image, extra_files={f"hpcsplit/{name}": text for name, text in about.items()})
    loaded = torch.export.load(Image(image.getbuffer())).module()
    return image.getbuffer(), _compared(".pt2", saved, net, loaded)


def _onnx(saved: Saved, whole: Whole, about: Mapping[str, str]) -> tuple[bytes, str]:
    if absent := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise ConfigError(f"export to .onnx needs the package {absent[0]}: pip install 'hpcsplit[onnx]'")
    net, x = saved.network(whole), saved.setting.random_inputs(_TRACED)
    names: Any = {"input_names": ["input"], "output_names": ["output"], "verbose": False}
    try:
        with warnings.catch_warnings(action="ignore"):
            program = torch.onnx.export(net, (x,), dynamo=True, dynamic_shapes=_any_number(), **names)
        assert program is not None
        model = program.model_proto
        for name, text in about.items():
            model.metadata_props.add(key=f"hpcsplit.{name}", value=text)
        content: bytes = model.SerializeToString()
    except Exception as error:  # as above, and what ONNX has no operator or no room for
        raise _not_traced(".onnx", error) from error
    if find_spec("onnxruntime") is None:
        return content, "its outputs were not compared with ours: onnxruntime is not installed here"
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, _compared(".onnx", saved, net, lambda x: torch.tensor(session.run(None, {"input": x.numpy()})[0]))


def _any_number() -> Any:
    """Of samples: the first dimension of the one input."""
    return ({0: torch.export.Dim("batch")},)


def _not_traced(suffix: str, error: Exception) -> ConfigError:
    said = " ".join(str(error).split()) or type(error).__name__
    return ConfigError(
        f"the network cannot be written as {suffix} ({said[:300]}); its weights can, as .safetensors or .pt"
    )


def _compared(suffix: str, saved: Saved, net: nn.Module, other: Callable[[Tensor], Tensor]) -> str:
    """The sentence on how far the outputs of a file are from ours.  ConfigError where that is no rounding."""
    x = saved.setting.random_inputs(_COMPARED)
    with torch.no_grad():
        ours, theirs = net(x), other(x)
    largest = float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")
    if not largest <= _TOLERANCE * max(1.0, float(ours.abs().max())):
        raise ConfigError(
            f"what the network computes as {suffix} differs from what it computes here by {largest:.1e}, so nothing is "
            "written; export its weights, as .safetensors or .pt"
        )
    return f"its outputs for {_COMPARED} made-up samples are ours: they differ by {largest:.1e} at most"


# ------------------------------------------------------------------------------------------------ how to load it


def _of_weights(load: str, modules: str) -> Callable[[Saved, Path], str]:
    def snippet(saved: Saved, out: Path) -> str:
        model, shape, outputs = saved.setting.config.model, saved.setting.input_shape, saved.setting.outputs
        module, _, factory = model.name.partition(":")
        if names_code(model.name):
            code = [f"from {module} import {factory}  # your own code"]
            made = f"{factory}(input_shape={shape}, classes={outputs})"
        elif _loads_itself(saved):
            code = ["from torchvision.models import get_model"]
            size = f", image_size={shape[1]}" if factory.startswith("vit_") else ""
            made = f"get_model({factory!r}, weights=None, num_classes={outputs}{size})"
        else:
            code = ["from hpcsplit.nets.catalog import build  # torch modules; .pt2 and .onnx files need no code"]
            made = saved.setting.building
        lines = [
            *modules.split("\n"),
            *code,
            "",
            f"net = {made}",
            f"net.load_state_dict({load.format(repr(str(out)))})",
        ]
        return "\n".join([*lines, "net.eval()", *_used(saved, "torch", "y = net({x})")])

    return snippet


def _of_program(saved: Saved, out: Path) -> str:
    lines = ["import torch", "", f"net = torch.export.load({str(out)!r}).module()"]
    return "\n".join([*lines, *_used(saved, "torch", "y = net({x})")])


def _of_session(saved: Saved, out: Path) -> str:
    lines = ["import numpy as np", "import onnxruntime", "", f"session = onnxruntime.InferenceSession({str(out)!r})"]
    return "\n".join([*lines, *_used(saved, "np", '(y,) = session.run(None, {{"input": {x}}})')])


def _used(saved: Saved, library: str, call: str) -> list[str]:
    """Lines that normalise samples and pass them through the network."""
    inputs = saved.recorded_inputs() or Inputs(saved.setting.input_shape)
    x = saved.setting.random_inputs(1)
    size, array = tuple(x.shape), "np.array({}, np.float32)" if library == "np" else "torch.tensor({})"
    if not x.is_floating_point():
        made = f"np.zeros({size}, np.int64)" if library == "np" else f"torch.zeros({size}, dtype=torch.int64)"
        return [f"x = {made}", call.format(x="x")]
    made = f"np.random.rand(*{size}).astype(np.float32)" if library == "np" else f"torch.rand{size}"
    if not inputs.mean:
        return [f"x = {made}  # normalised as the training set", call.format(x="x")]
    shape = (-1, *[1] * (len(size) - 2))
    moments = ", ".join(f"{array.format(list(each))}.reshape{shape}" for each in (inputs.mean, inputs.std))
    return [f"mean, std = {moments}", f"x = {made}  # pixels from 0 to 1", call.format(x="(x - mean) / std")]


FORMS = {
    ".safetensors": Form(
        _safetensors, _of_weights("load_file({})", "import torch\nfrom safetensors.torch import load_file")
    ),
    ".pt": Form(_pt, _of_weights("torch.load({}, weights_only=True)", "import torch")),
    ".onnx": Form(_onnx, _of_session),
    ".pt2": Form(_pt2, _of_program),
}
