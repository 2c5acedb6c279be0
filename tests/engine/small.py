"""Small runs: their configuration, their jobs in this process, and whole runs of the command in this process."""

from __future__ import annotations

import copy
import json
import logging
import os
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from hpcsplit import assemble, cli
from hpcsplit.commands.plan import look_at, plan
from hpcsplit.config import Config, resolve
from hpcsplit.data.dataset import fingerprint
from hpcsplit.engine.epochs import train_epoch
from hpcsplit.engine.job import Job, Observer
from hpcsplit.engine.resume import newest
from hpcsplit.methods.contract import Tally
from hpcsplit.plan.prepare import Prepared, choose_cuts, prepare
from hpcsplit.plan.setting import Setting
from hpcsplit.plan.trial import Checked, check_network
from hpcsplit.run.folder import RunDir
from hpcsplit.schedule.actions import Train
from hpcsplit.store.store import Store
from hpcsplit.wire.port import Verb

CUTS: dict[int, list[int]] = {1: [], 2: [3], 3: [2, 4], 4: [1, 3, 4]}
Weights = list[tuple[int, str]]  # (epoch, hash of the whole network after it)
TINY = "tests.engine.tinynet:small"
_CODE: dict[tuple[Any, ...], dict[str, str]] = {}  # fingerprints of the network's code, by what they depend on
_TRIED: dict[str, Checked] = {}
BASE: dict[str, dict[str, Any]] = {
    "data": {"name": "fake", "limit_train": 100, "limit_test": 60, "batch_size": 32, "eval_train": 50},
    "model": {"name": TINY},
    "method": {"name": "penalty"},
    "schedule": {"epochs": 5, "ratio": "1:3"},  # S PPP S
    "optim": {"lr": 0.05},
    "run": {"threads": 1, "device": "cpu", "baseline": False},
}


def options(stages: int = 1, **changes: Any) -> dict[str, dict[str, Any]]:
    """The base configuration with `section__key=value` changes, as the sections of a TOML file."""
    raw = copy.deepcopy(BASE) | {"split": {"cuts": CUTS.get(stages, "params")}}
    for name, value in changes.items():
        section, _, key = name.partition("__")
        raw.setdefault(section, {})[key] = value
    return raw


def config(stages: int = 1, **changes: Any) -> Config:
    return resolve(options(stages, **changes), (), stem="small", source="tests")


def write_toml(path: Path, stages: int = 1, **changes: Any) -> Path:
    """The same as a file; what JSON writes for these values is TOML too."""
    sections = options(stages, **changes).items()
    text = [f"[{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in keys.items()) for name, keys in sections]
    path.write_text("\n".join(text))
    return path


def known(setting: Setting, run_dir: RunDir, stages: int) -> Prepared:
    """As `prepare`, without the trial and the plan of a network that is known to be good."""
    cuts, costs = choose_cuts(setting, stages)
    model, images = tuple(map(str, setting.config.as_dict()["model"].values())), fingerprint(setting.data)
    key = (*model, setting.config.data.name, setting.config.data.pool, setting.config.run.seed)
    if key not in _CODE:
        _CODE[key] = setting.code
    run_dir.create(setting.config)
    newest(run_dir.checkpoints, setting.identity(cuts, images, _CODE[key]))
    return Prepared(cuts, costs, images, None, code=_CODE[key])


def make_jobs(cfg: Config, stages: int, path: Path, observer: Observer | None = None) -> list[Job]:
    """One job for each stage, as a run in one process has them."""
    run_dir, cpu, setting = RunDir(path), torch.device("cpu"), Setting(cfg)
    prepared = prepare(setting, run_dir, stages, cpu) if cfg.model.name != TINY else known(setting, run_dir, stages)
    return assemble.make_jobs(setting, prepared, run_dir, range(stages), cpu, assemble.Around(observer or Observer()))


def planned(cfg: Config, ranks: int) -> dict[str, Any]:
    """The plan for so many ranks, which fits."""
    values, refusal = plan(look_at(Setting(cfg), RunDir(Path("absent"))), ranks)
    assert refusal is None
    return values


def tried_once(setting: Setting, device: torch.device) -> Checked:
    """As `check_network`, but the small network is tried once for all that the trial can depend on."""
    if setting.config.model.name != TINY:
        return check_network(setting, device)
    sections = setting.config.as_dict()
    key = json.dumps([sections[name] for name in ("data", "model", "method", "schedule", "run")], sort_keys=True)
    if key not in _TRIED:
        _TRIED[key] = check_network(setting, device)
    adapted = _TRIED[key].adapted
    return Checked(setting.adapted(adapted) if adapted else setting, adapted, _TRIED[key].notes)


def train_here(toml: Path, run_dir: Path, *overrides: object) -> int:
    """`hpcsplit train` with all stages in this process, but without its picture; the exit code."""
    with _as_before(), patch("hpcsplit.report.watch.draw"), patch("hpcsplit.plan.prepare.check_network", tried_once):
        words = ["train", toml, "--run-dir", run_dir, "--run.runner", "lockstep", *overrides]
        return cli.main([str(word) for word in words])


@contextmanager
def _as_before() -> Iterator[None]:
    """A command may change its process; this one goes on."""
    logger, umask = logging.getLogger("hpcsplit"), os.umask(0o022)
    os.umask(umask)
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGUSR1, signal.SIGTERM)]
    known, threads = list(logger.handlers), torch.get_num_threads()
    try:
        yield
    finally:
        for added in [h for h in logger.handlers if h not in known]:
            logger.removeHandler(added)
            added.close()
        for number, handler in handlers:
            signal.signal(number, handler)
        os.umask(umask)
        torch.set_num_threads(threads)


def store_of(job: Job) -> Store:
    assert job.store is not None
    return job.store


def records(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "records.jsonl").read_text().splitlines()]


def weights(run_dir: Path) -> Weights:
    """In the order of the file."""
    return [(record["epoch"], record["weights_sha256"]) for record in records(run_dir)]


def one_epoch(job: Job, action: Train) -> Generator[Verb, Any, Tally]:
    """A whole epoch without a pause; what its steps have added up to."""
    total = Tally()
    paused = yield from train_epoch(job, action, total)
    assert not paused
    return total
