"""Training on a folder of images: which part of a step waits for samples that are decoded while it computes.

    tools/bench folder [--data DIR] [--images 2000] [--size 64] [--ranks 2] [--workers -1] [--network NAME]

Images of CIFAR-10 are enlarged and written as PNG files into a folder for each class, as torchvision's ImageFolder has
them; then `train` runs two exact and two parallel epochs of delayed gradients on them.  Every image is decoded when it
is first met; what has been decoded stays in memory where there is room.  So the first epoch says what decoding costs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from hpcsplit.data.catalog import SPECS
from hpcsplit.data.dataset import load
from hpcsplit.run.records import Records
from tools.program import Start, last_line, write_toml
from tools.timing import table


def write_folder(root: Path, data: str, images: int, size: int) -> None:
    """The first images of CIFAR-10, and a tenth as many of its test images, as PNG files of size x size pixels."""
    known = load("cifar10", data)
    for name, part, count in (("train", known.train, images), ("val", known.test, images // 10)):
        for number in range(count):
            folder = root / name / SPECS["cifar10"].names[int(part.labels[number])]
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(np.ascontiguousarray(part.images[number].permute(1, 2, 0).numpy()))
            image.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.png")


def main() -> None:
    o = table.options(
        __doc__,
        "folder",
        data=("", "the folder of CIFAR-10; default as for data.root"),
        images=2000,
        size=64,
        ranks=2,
        workers=(-1, "data.workers of a rank"),
        network="torchvision:resnet18",
    )
    folder = o.out / f"images-{o.images}-{o.size}"
    if not folder.exists():
        write_folder(folder, o.data, o.images, o.size)
    toml = write_toml(
        o.out / "folder.toml",
        {
            "data": {"name": "imagefolder", "root": str(folder), "batch_size": 64, "workers": o.workers},
            "model": {"name": o.network},
            "split": {"cuts": "flops"},
            "method": {"name": "delayed"},
            "optim": {"lr": 0.05},
            "schedule": {"epochs": 4, "ratio": "1:1"},
            "run": {"baseline": False},
        },
    )
    run = o.out / f"run-{o.ranks}"
    ended = Start(["-m", "hpcsplit", "train", toml, "--run-dir", run], o.ranks, str(run), o.out / "said.txt").end()
    if ended.code:
        raise SystemExit(last_line((o.out / "said.txt").read_text()))
    lines = [
        f"{o.network} on {o.images} images of {o.size} x {o.size} pixels, mini-batches of 64, {o.ranks} ranks",
        "| epoch | kind | training s | exposed data s, by stage | its share |",
        "|---:|---|---:|---:|---:|",
    ]
    values = []
    for record in Records(run / "records.jsonl").load():
        waits = [stage.exposed_data_s or 0.0 for stage in record.stages]
        share = max(waits) / (record.train_s or 1.0)
        shown = ", ".join(f"{wait:.2f}" for wait in waits)
        lines.append(f"| {record.epoch + 1} | {record.phase} | {record.train_s:.1f} | {shown} | {share:.1%} |")
        values.append({"epoch": record.epoch, "train_s": record.train_s, "exposed_data_s": waits})
    table.publish(o.out, "folder", lines, values)
