"""Weights at the end of every epoch do not depend on how many stages compute them, nor on where the rows are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hpcsplit.checkpoint.state import tensor_digests, weights_sha256
from hpcsplit.data.order import batches, epoch_order
from hpcsplit.engine.job import Observer
from hpcsplit.engine.rank import rank_program
from hpcsplit.files.checkpoints import MANIFEST, SUMS, complete, listed
from hpcsplit.plan.setting import Setting
from hpcsplit.run.records import EpochRecord
from hpcsplit.schedule.learning_rate import LearningRate
from hpcsplit.wire import lockstep
from tests.engine.conftest import Make
from tests.engine.small import config, store_of


class Kept(Observer):
    """Keeps all records; `watched` jobs are looked at after each epoch."""

    def __init__(self) -> None:
        self.records: list[EpochRecord] = []
        self.rows: list[torch.Tensor] = []
        self.watched: list[Any] = []

    def epoch_done(self, record: EpochRecord) -> None:
        self.records.append(record)
        for job in self.watched:
            self.rows.append(job.store.peek(torch.arange(job.train_size).numpy())["lam"])


def epochs_of(make: Make, stages: int, place: str, **changes: Any) -> list[str | None]:
    seen = Kept()
    lockstep.run([rank_program(job) for job in make(stages, seen, place, **changes)])
    return [record.weights_sha256 for record in seen.records]


def test_backprop_does_not_depend_on_the_number_of_stages(make: Make) -> None:
    changes = {"method__name": "backprop", "schedule__epochs": 3}
    one = epochs_of(make, 1, "1", **changes)
    assert len(set(one)) == 3
    assert [epochs_of(make, k, str(k), **changes) for k in (2, 3, 4)] == [one] * 3


@pytest.mark.parametrize(
    "method", ["backprop", "al", *(pytest.param(name, marks=pytest.mark.weekly) for name in ("gsadmm", "gsam"))]
)
def test_five_to_eight_stages_with_uneven_cuts(make: Make, method: str) -> None:
    """ResNet-14 has eight blocks.  The first exact epoch is the same for every cut, whatever method follows."""
    cuts = {1: [], 5: [1, 2, 3, 7], 8: [1, 2, 3, 4, 5, 6, 7]}
    changes = {"method__name": method, "model__name": "resnet14", "data__limit_train": 16, "data__batch_size": 8}
    changes |= {"data__pool": True}
    changes |= {"data__limit_test": 8, "data__eval_train": 8, "schedule__epochs": 2, "schedule__ratio": "1:1"}
    ends = {k: epochs_of(make, k, str(k), **changes, split__cuts=cut) for k, cut in cuts.items()}
    assert len({hashes[0] for hashes in ends.values()}) == 1
    assert all(len(set(hashes)) == 2 for hashes in ends.values())


def test_one_stage_alone_leaves_a_whole_checkpoint(make: Make, tmp_path: Path) -> None:
    epochs_of(make, 1, "one", method__name="backprop", schedule__epochs=1)
    (folder,) = complete(tmp_path / "one" / "checkpoints")
    assert set(listed(folder)) == {path.name for path in folder.iterdir()} - {SUMS} == {MANIFEST, "stage-000.h5"}


def test_backprop_in_microbatches_does_not_depend_on_the_number_of_stages(make: Make) -> None:
    changes = {"method__name": "backprop", "schedule__epochs": 2, "schedule__microbatches": 3}
    one = epochs_of(make, 1, "1", **changes)
    assert [epochs_of(make, k, str(k), **changes) for k in (2, 4)] == [one] * 2


def test_backprop_is_the_plain_training_loop(make: Make) -> None:
    """The reference knows nothing of stages: a whole network, one optimizer, torch's own cross entropy."""
    cfg = config(1, method__name="backprop", schedule__epochs=2, run__channels_last=False)
    setting = Setting(cfg)
    net, data = setting.network(), setting.data
    source = setting.source(data, data.train, torch.device("cpu"))
    optimizer = setting.optimizer(list(net.parameters()))
    for epoch in range(2):
        for group in optimizer.param_groups:
            group["lr"] = LearningRate(cfg.optim.lr, "cosine", ("serial",) * 2)(epoch)
        for ids in batches(epoch_order(0, epoch, 100), 32):
            logits = net(source.images(ids, epoch=epoch, augment=True))
            loss = torch.nn.functional.cross_entropy(logits, source.labels(ids))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    jobs = make(2, method__name="backprop", schedule__epochs=2, run__channels_last=False)
    lockstep.run([rank_program(job) for job in jobs])
    for job in jobs:
        for name, t in job.stage.state().items():
            torch.testing.assert_close(t, net.state_dict()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "method",
    [{"name": "penalty", "downsample": 2}, {"name": "al", "downsample": 2}, {"name": "gsadmm"}, {"name": "gsam"}],
)
def test_rows_in_files_and_in_memory_give_the_same_weights(make: Make, method: dict[str, object]) -> None:
    changes = {f"method__{key}": value for key, value in method.items()}
    files = epochs_of(make, 3, "files", store__kind="hdf5", **changes)
    assert epochs_of(make, 3, "memory", store__kind="memory", **changes) == files
    assert len(set(files)) == 5


def test_every_parallel_epoch_changes_the_rows(make: Make) -> None:
    seen = Kept()
    jobs = make(2, seen, schedule__ratio="0:1", schedule__epochs=4)
    seen.watched = jobs[1:]
    store = store_of(jobs[1])
    store.start(jobs[1].in_order(100), read=False)
    for step, ids in enumerate(jobs[1].in_order(100)):
        store.write(step, {"lam": torch.zeros(len(ids), 8, 7, 7)})
    store.finish(-1)
    lockstep.run([rank_program(job) for job in jobs])
    zero, *parallel = seen.rows
    assert not zero.any()
    assert [record.phase for record in seen.records] == ["serial", *["parallel"] * 3]
    for before, after in zip([zero, *parallel], parallel, strict=False):
        unchanged = (before == after).flatten(1).all(1)
        assert not unchanged.any(), f"{int(unchanged.sum())} samples kept their rows"


def test_the_hash_of_the_network_tells_every_weight(make: Make) -> None:
    jobs = make(2)
    before = weights_sha256(tensor_digests(job.stage.state()) for job in jobs)
    with torch.no_grad():
        next(iter(jobs[1].stage.blocks.buffers())).add_(1e-6)
    assert weights_sha256(tensor_digests(job.stage.state()) for job in jobs) != before


def test_the_frozen_control_trains_the_last_stage_only(make: Make) -> None:
    jobs = make(2, schedule__ratio="0:1", schedule__warmup=0, schedule__epochs=2, method__frozen=True)
    before = [{n: p.clone() for n, p in job.stage.blocks.named_parameters()} for job in jobs]
    lockstep.run([rank_program(job) for job in jobs])
    moved = [
        [not torch.equal(p, b[n]) for n, p in job.stage.blocks.named_parameters()]
        for job, b in zip(jobs, before, strict=True)
    ]
    assert not any(moved[0])
    assert all(moved[1])
