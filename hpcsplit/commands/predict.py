"""The `predict` command: what a checkpoint's network says of a user's samples, or how it goes on with a text.

It needs no training set: a checkpoint says how samples are normalised and what the classes are called.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpcsplit.commands.saved import Saved, find, warn
from hpcsplit.data.dataset import InMemory
from hpcsplit.data.given import Sample, samples_of
from hpcsplit.data.inputs import Inputs
from hpcsplit.errors import ConfigError, DataError, UsageError
from hpcsplit.files.atomic import write_in_words
from hpcsplit.host.printable import cell
from hpcsplit.run.folder import RunDir

_BATCH = 256  # samples at once
_SHOWN = 3  # broken files that are named


def predict_command(
    run: RunDir,
    name: str,
    config_path: Path | None,
    data_root: str,
    paths: Sequence[Path],
    out: Path | None,
    *,
    top: int = 1,
    skip_broken: bool = False,
    average: bool = False,
) -> int:
    """Write a line for each sample, as CSV, to `out` or the standard output; the exit code.

    A class has its number, name and probability, and with `top` the next ones, too; a network that tells no classes has
    its outputs.

    Raises:
        DataError: a file cannot be used and `skip_broken` is not asked for, or none can.
        ConfigError: the network makes images or text, or has fewer classes than `top`.
        UsageError: there is no folder for `out`.
    """
    if out and not os.path.isdir(out.parent):
        raise UsageError(f"--out {out}: there is no folder {out.parent}; make it first")
    saved = find(run, name, config_path, data_root, average=average)
    task = saved.setting.config.model.task
    if task in ("generation", "language"):
        raise ConfigError(f'model.task = "{task}": there is no class to predict; text is continued with --text PROMPT')
    saved.check("", "model")
    inputs, broken = saved.inputs(), list[DataError]()
    rows = _rows(saved, samples_of(paths, inputs, broken.append if skip_broken else None), inputs, top)
    text, count = _csv(rows)
    if broken:
        named = "; ".join(str(error) for error in broken[:_SHOWN]) + ("; ..." if len(broken) > _SHOWN else "")
        if not count:
            raise DataError(f"none of {len(broken)} files can be used: {named}")
        warn(f"{len(broken)} file{'s' * (len(broken) > 1)} left out: {named}")
    if out:
        write_in_words(out, text)
    else:
        print(text, end="")
    return 0


def _rows(saved: Saved, samples: Iterator[Sample], inputs: Inputs, top: int) -> Iterator[list[object]]:
    """The heading, and a row for each sample."""
    infer, classes = network_of(saved), saved.setting.config.model.task == "classification"
    begun = False
    while chunk := list(islice(samples, _BATCH)):
        outputs = infer(inputs.normalised(batch_of([values for _, values in chunk], inputs))).float().cpu()
        if classes and not top <= outputs.shape[1]:
            raise ConfigError(f"--top {top} is more than the {outputs.shape[1]} classes")
        columns = range(1, 1 + (top if classes else outputs.flatten(1).shape[1]))
        if not begun and classes:
            numbers = ["", *(f"_{n}" for n in columns[1:])]
            yield ["name", *(f"{what}{n}" for n in numbers for what in ("class", "class_name", "probability"))]
        elif not begun:
            yield ["name", *(f"output_{n}" for n in columns)]
        begun = True
        for (name, _), output in zip(chunk, outputs, strict=True):
            yield [name, *(_classes(output, top, inputs.names) if classes else output.flatten().tolist())]


def _classes(logits: Tensor, top: int, names: Sequence[str]) -> Iterator[object]:
    chances, numbers = (each.tolist() for each in logits.softmax(0).topk(top))
    for number, chance in zip(numbers, chances, strict=True):
        yield from (number, names[number] if names else str(number), f"{chance:.6f}")


def _csv(rows: Iterator[list[object]]) -> tuple[str, int]:
    """The table as text, and the number of its rows without the heading."""
    text, count = io.StringIO(), -1
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow(map(cell, row))
        count += 1
    return text.getvalue(), max(count, 0)


def network_of(saved: Saved) -> Callable[[Tensor], Tensor]:
    """The checkpoint's network as `evaluate` runs it: its device, precision and memory format; x (B, …) on the host."""
    stage = saved.stage()

    def infer(x: Tensor) -> Tensor:
        return stage.infer(x.to(stage.device))

    return infer


def batch_of(samples: Sequence[np.ndarray], inputs: Inputs) -> Tensor:
    """The samples as a batch (B, *taken), images averaged where the run has done so."""
    whole = [torch.from_numpy(values) for values in samples]
    if not inputs.pool:
        return torch.stack(whole)
    return torch.stack([x if tuple(x.shape) == inputs.taken else _pooled(x) for x in whole])


def _pooled(x: Tensor) -> Tensor:
    """(C, H, W) -> (C, H/2, W/2), as data/dataset.py does it."""
    if x.dtype == torch.uint8:
        return InMemory(x[None].contiguous(), torch.zeros(1, dtype=torch.int64)).pooled().images[0]
    return torch.nn.functional.avg_pool2d(x.float()[None], 2)[0]


# ------------------------------------------------------------------------------------------------ text


def continue_command(
    run: RunDir,
    name: str,
    config_path: Path | None,
    prompt: str,
    *,
    tokens: int = 200,
    temperature: float = 1.0,
    seed: int = 0,
    average: bool = False,
) -> int:
    """Write the prompt and so many bytes more that a network of text goes on with to the standard output.

    ConfigError where the network is not one of text.
    """
    saved = find(run, name, config_path, average=average)
    setting = saved.setting
    if setting.config.model.task != "language":
        raise ConfigError(
            f'--text is for networks of text, and this run has model.task = "{setting.config.model.task}"; give images '
            "or arrays"
        )
    saved.check("", "model")
    made = continued(
        network_of(saved), prompt.encode(), setting.input_shape[0], tokens, temperature=temperature, seed=seed
    )
    sys.stdout.write(prompt)
    sys.stdout.write(made.decode("utf-8", "replace"))
    sys.stdout.write("\n")
    return 0


def continued(
    network: Callable[[Tensor], Tensor],
    prompt: bytes,
    context: int,
    tokens: int,
    *,
    temperature: float = 1.0,
    seed: int = 0,
) -> bytes:
    """So many bytes behind a prompt, drawn one after another, the same for the same seed.

    Args:
        network: bytes int64 (1, context) to logits of the byte behind each, (1, context, 256); what stands behind a
            place has no part in its logits.
        temperature: divides the logits; 0 takes the likeliest byte.
    """
    text, chance = list(prompt or b"\n"), torch.Generator().manual_seed(seed)
    for _ in range(tokens):
        window = text[-context:]
        padded = torch.tensor([window + [0] * (context - len(window))])
        logits = network(padded)[0, len(window) - 1].float().cpu()[:256]
        if temperature == 0:
            text.append(int(logits.argmax()))
        else:
            text.append(int(torch.multinomial((logits / temperature).softmax(0), 1, generator=chance)))
    return bytes(text[len(text) - tokens :])
