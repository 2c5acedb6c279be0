"""Puts a run together: jobs, each with its stage, its method, its store and its data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from hpcsplit.data.dataset import Part
from hpcsplit.engine.job import Choose, Identity, Job, Observer, seen
from hpcsplit.methods.backprop import Backprop
from hpcsplit.methods.contract import Iterates, own_variables
from hpcsplit.plan.prepare import Prepared
from hpcsplit.plan.setting import Setting
from hpcsplit.run import provenance
from hpcsplit.run.folder import RunDir
from hpcsplit.schedule import auto
from hpcsplit.schedule.actions import Phase
from hpcsplit.schedule.hybrid import SavePolicy
from hpcsplit.stage.stage import Stage
from hpcsplit.store.hdf5 import HdfStore
from hpcsplit.store.store import Field, MemoryStore, Store, generation_bytes
from hpcsplit.tasks.task import Samples


@dataclass(frozen=True)
class Around:
    """What is around a rank's work."""

    observer: Observer = field(default_factory=Observer)  # what rank 0 tells the outside world
    stop_reason: Callable[[], str | None] = lambda: None  # why the run is to stop now, if so
    between_blocks: Callable[[], None] = lambda: None  # called after every block, forward and backward
    alarm: Callable[[Exception], None] = lambda error: None  # told at once what the store's thread fails with


def make_jobs(
    setting: Setting,
    prepared: Prepared,
    run_dir: RunDir,
    stages: Sequence[int],
    device: torch.device,
    around: Around | None = None,
) -> list[Job]:
    """Everything that these stages need, which this process has."""
    net, around = setting.network(), around or Around()
    identity = setting.identity(prepared.cuts, prepared.data_fingerprint, prepared.code)
    identity = replace(identity, origin=prepared.origin, earlier=prepared.earlier)
    batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())
    cut = [setting.stage(net, index, prepared.cuts, device, around.between_blocks) for index in stages]
    setting.release_network()
    waits = prepared.deferred and len(stages) == 1  # one process with several stages waits for nobody
    exact = replace(setting.exact, deferred=setting.exact.deferred and waits)
    return [_job(setting, exact, stage, identity, run_dir, around, batch_norm, bool(prepared.phases)) for stage in cut]


def _job(
    setting: Setting,
    exact: Backprop,
    stage: Stage,
    identity: Identity,
    run_dir: RunDir,
    around: Around,
    batch_norm: bool,
    replanned: bool,
) -> Job:
    config, method, observer = setting.config, setting.method, around.observer if stage.first else Observer()
    schedule, save = config.schedule, config.checkpoint
    choose = _choice(setting, observer)
    if isinstance(method, Iterates):
        method.prepare(stage)
    data = setting.data if stage.first or stage.last or method.facts.images else None

    def samples(part: Part | None) -> Samples:
        return setting.source(data, part, stage.device) if data and part else Nowhere()

    return Job(
        stage=stage,
        method=method,
        exact=exact,
        store=_store(setting, stage, run_dir, identity.digest(), around.alarm),
        aux_dtype=setting.store_dtype,
        train=samples(data.train if data else None),
        test=samples(data.test if data else None),
        train_size=setting.epoch_samples,
        test_size=setting.test_size,
        validation=samples(data.validation if data else None) if config.data.validation else None,
        validation_size=config.data.validation,
        eval_train_size=setting.eval_train_size,
        evaluate_every=config.run.evaluate_every,
        batch_size=setting.batch_size,
        last_batch=config.data.last_batch,
        seed=config.run.seed,
        augment=config.data.augment,
        mixing=setting.mixing,
        epochs=schedule.epochs,
        plan=() if choose else setting.phases,
        replanned=replanned,
        choose=choose,
        learning_rate=setting.learning_rate,
        save_policy=SavePolicy(save.every_epochs, save.every_minutes, setting.aux_policy),
        checkpoints=run_dir.checkpoints,
        keep_checkpoints=save.keep,
        averages=config.optim.ema > 0,
        keeps_best=save.best,
        patience=schedule.patience,
        min_delta=schedule.min_delta,
        identity=identity,
        batch_norm=batch_norm,
        observer=observer,
        stop_reason=around.stop_reason,
        provenance=provenance.newest(run_dir.provenance) if stage.first else "",
        inputs=setting.inputs.as_dict() if stage.first else {},
        still_ours=run_dir.check_held,
    )


def _choice(setting: Setting, observer: Observer) -> Choose | None:
    """What decides the kind of an epoch from the records of those before, and says why; None where nothing has to."""
    s, in_turn = setting.config.schedule, setting.config.run.runner == "lockstep"
    if not setting.decides:
        return None

    def choose(decided: Sequence[Phase]) -> Phase:
        whole = [record.epoch for record in observer.past] == list(range(len(observer.past)))  # nobody removed some
        past = [seen(record, in_turn=in_turn) for record in observer.past] if whole else []
        phase, why = auto.choose(decided, past, s.epochs, s.warmup)
        if why:
            observer.say(f"epoch {len(decided) + 1} will be {phase}: {why}")
        return phase

    return choose


def _store(
    setting: Setting, stage: Stage, run_dir: RunDir, digest: str, alarm: Callable[[Exception], None]
) -> Store | None:
    """The store of this stage's variables; None when it has none."""
    own, dtype, samples = own_variables(setting.method, stage.place), setting.store_dtype, setting.epoch_samples
    if not own or not setting.parallel:
        return None
    fields = [Field(v.name, v.row_shape(stage.place), v.before_block(stage.place)) for v in own]
    labels = {"config": digest}
    if setting.config.store.kind == "memory":
        return MemoryStore(fields, samples, dtype, stage=stage.index, labels=labels)
    folder = run_dir.store(setting.config.store.path, 2 * generation_bytes(fields, samples, dtype))
    pinned = stage.device.type == "cuda"
    store = HdfStore(fields, samples, dtype, folder, stage=stage.index, labels=labels, pinned=pinned)
    store.alarm = alarm
    return store


class Nowhere:
    """The data of a stage that sees neither images nor labels."""

    def images(self, ids: Any, *, epoch: int = 0, augment: bool = False) -> torch.Tensor:
        raise AssertionError("only the first stage reads images")

    def labels(self, ids: Any, *, epoch: int = 0, augment: bool = False) -> torch.Tensor:
        raise AssertionError("only the last stage reads labels")
