"""What the network of a run's newest checkpoint makes of its test set, for the page of `report`."""

from __future__ import annotations

import numpy as np
import torch

from hpcsplit.commands.evaluate import alone
from hpcsplit.commands.saved import Saved, find
from hpcsplit.data.dataset import Dataset
from hpcsplit.engine.evaluate import outcomes, outputs
from hpcsplit.engine.job import Job
from hpcsplit.report.examples import SHOWN, Mistakes, Reconstructions, Wrong, confusion_matrix, worst
from hpcsplit.run.folder import RunDir
from hpcsplit.wire import lockstep


def examples_of(run: RunDir, data_root: str = "") -> Mistakes | Reconstructions:
    """What is wrong, or the first images and their reconstructions, by the whole network on this process alone.

    Raises:
        HpcsplitError: there is no checkpoint, or no data, or they are not those of the run.
    """
    saved = find(run, "", None, data_root)
    data = saved.data()
    job = alone(saved, saved.weights())
    source = f"checkpoint {saved.name}, {saved.position()}"
    ids, shape = np.arange(min(SHOWN, job.test_size)), tuple(data.test.images.shape[1:])
    made = lockstep.run([outputs(job, [ids])])[0]
    pictures = job.stage.task.pictures(made, shape)
    if pictures is None:
        return _wrong(saved, data, job, source)
    loss = job.stage.task.score(made, job.targets(ids, job.test)).tolist()
    mean, std = (each.view(1, -1, 1, 1) for each in (data.mean, data.std))
    pixels = (255 * (pictures * std + mean)).round().clamp(0, 255).to(torch.uint8)
    both = (x.permute(0, 2, 3, 1).numpy() for x in (data.test.images[: len(ids)], pixels))
    return Reconstructions(source, list(zip(*both, strict=True)), loss)


def _wrong(saved: Saved, data: Dataset, job: Job, source: str) -> Mistakes:
    result = lockstep.run([outcomes(job)])[0]
    spec = saved.setting.spec
    names = spec.names or tuple(map(str, range(spec.classes)))
    shown = [
        Wrong(
            k,
            int(result.labels[k]),
            int(result.predicted[k]),
            float(result.chance[k]),
            float(result.loss[k]),
            data.test.images[k].permute(1, 2, 0).numpy(),
        )
        for k in worst(result.labels, result.predicted, result.loss)
    ]
    matrix = confusion_matrix(result.labels, result.predicted, spec.classes)
    return Mistakes(source, names, matrix, shown)
