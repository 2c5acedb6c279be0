"""Where faults can strike, which kinds there are, and those that are drawn from one seed.

They strike at functions of the program, named as `module:attribute`; nothing in the program knows of this.  A name that
is not there any more ends a campaign before its first fault.
"""

from __future__ import annotations

import itertools
import random
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DEADLY = ("KILL", "SEGV", "exception", "thread exception")
DISK = ("ENOSPC", "EIO")
SIGNALS = {"USR1": signal.SIGUSR1, "TERM": signal.SIGTERM, "USR1 to one rank": signal.SIGUSR1}
STALLS = ("stopped", "asleep")
TORN = "half a file"
DAMAGES = ("truncated", "bit flipped")
KINDS = (*DEADLY, *DISK, TORN, *DAMAGES, *SIGNALS, *STALLS)
Counts = Mapping[int, Mapping[int, Mapping[str, int]]]  # calls of every hook: stages -> rank -> key -> calls


@dataclass(frozen=True)
class Hook:
    """Just before a call of a function, or just after it.

    Attributes:
        place: `package.module:name` or `package.module:Class.name`.
        within: count calls only while this generator function runs.
        file: count calls only where an argument is a path whose name begins so.
        disk: the disk may refuse here, as an OSError from the function.
        torn: the function has written the file that its first argument names, and may have left half of it.
        early: before anything watches over the process.
    """

    place: str
    after: bool = False
    within: str = ""
    file: str = ""
    disk: bool = False
    torn: bool = False
    early: bool = False

    @property
    def key(self) -> str:
        """A name for it, such as "before hpcsplit.files.checkpoints:begin"."""
        words = ["after" if self.after else "before", self.place]
        return " ".join(words + ["within", self.within] * bool(self.within) + ["of", self.file] * bool(self.file))


def _both(place: str, within: str = "") -> tuple[Hook, Hook]:
    """Just before and just after."""
    return Hook(place, within=within), Hook(place, after=True, within=within)


def _written(place: str, file: str = "") -> tuple[Hook, Hook]:
    """Around a function that writes a file."""
    return Hook(place, file=file, disk=True), Hook(place, after=True, file=file, torn=True)


IMPORT = Hook("sys:stdlib", early=True)  # before anything is imported; struck by the wrapper itself
ANY_TIME = "any time"  # uniform in wall time
BETWEEN = ("checkpoint between the runs", "store between the runs")  # a file of it is changed, after a record

_APPEND = _both("hpcsplit.run.records:Records.append")
_REFRESH = "hpcsplit.engine.rank:refresh"
_EVALUATE = "hpcsplit.engine.rank:evaluate"
_SAVE = "hpcsplit.engine.rank:save"
_TRAIN = "hpcsplit.engine.rank:train_epoch"
_WIRE = "hpcsplit.wire.mpi:Wire."
_STORE = "hpcsplit.store.store:Store."
_FOLDER = "hpcsplit.files.checkpoints:"
_STAGE = "hpcsplit.stage.stage:Stage."

MOMENTS: dict[str, tuple[Hook, ...]] = {
    "start-up": (
        IMPORT,
        Hook("hpcsplit.host.stopping:StopRequest.__init__", after=True, early=True),
        Hook(_WIRE + "__init__", after=True),
        Hook("hpcsplit.commands.train:make_jobs"),
        Hook("hpcsplit.store.hdf5:create_rows", disk=True),
        Hook("hpcsplit.engine.rank:resume"),
    ),
    "store read": (
        Hook("hpcsplit.store.rowfile:RowFile.gather", disk=True),
        Hook(_STORE + "read"),
        Hook(_STORE + "start", within=_TRAIN),
    ),
    "compute": (*_both(_STAGE + "forward", _TRAIN), *_both(_STAGE + "update")),
    "message": (
        *_both(_WIRE + "_send"),
        *_both(_WIRE + "_recv"),
        Hook(_WIRE + "_agree"),
        Hook(_WIRE + "share", after=True),
    ),
    "store write": (Hook("os:pwrite", disk=True), Hook(_STORE + "write", after=True), *_both(_STORE + "finish")),
    "stage file": (
        *_written("hpcsplit.engine.persist:write_tensors", "stage-"),
        Hook("hpcsplit.files.hdf5:write_new", file="stage-", disk=True),
    ),
    "aux copy": (
        Hook("hpcsplit.store.hdf5:copy_file", disk=True),
        Hook("hpcsplit.files.atomic:_kernel_copy", disk=True),
        Hook("hpcsplit.store.hdf5:HdfStore.save", after=True),
    ),
    "manifest": _written("hpcsplit.checkpoint.manifest:write_tensors", "manifest"),
    "sums": _written(_FOLDER + "write_text"),
    "rename": (
        Hook(_FOLDER + "replace", disk=True),
        Hook(_FOLDER + "replace", after=True),
        *_both(_FOLDER + "replace_symlink"),
    ),
    "prune": (
        Hook("shutil:rmtree", within=_SAVE, disk=True),
        Hook("os:unlink", within=_SAVE),
        Hook("os:rmdir", within=_SAVE),
    ),
    "evaluation": (
        Hook(_EVALUATE),
        Hook(_STAGE + "forward", within=_EVALUATE),
        Hook("hpcsplit.engine.evaluate:_score"),
        Hook("hpcsplit.engine.rank:probe"),
    ),
    "phase switch": (
        Hook(_REFRESH),
        *(Hook(place, within=_REFRESH) for place in (_STAGE + "forward", _STORE + "write", _STORE + "finish")),
    ),
    "record": (
        *_APPEND,
        Hook("logging:StreamHandler.flush", disk=True),
        Hook("os:fsync", within="hpcsplit.engine.rank:_epoch", disk=True),
    ),
    ANY_TIME: (),
    **dict.fromkeys(BETWEEN, _APPEND[1:]),
}
HOOKS = tuple({hook.key: hook for hooks in MOMENTS.values() for hook in hooks}.values())


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        hook, call: the call of that hook (from 1) at which it strikes; "" at a point in time.
        share: otherwise when, as a share of the time that the run without faults took; for damage, where in the file.
    """

    number: int
    stages: int
    rank: int
    moment: str
    kind: str
    hook: str
    call: int
    share: float

    def __str__(self) -> str:
        when = f"{self.hook}, call {self.call}" if self.hook else f"at {self.share:.0%} of the time"
        return f"fault {self.number}: {self.kind}, {self.moment}, rank {self.rank} of {self.stages} ({when})"


def draw(count: int, seed: int, stages: Sequence[int], counts: Counts) -> list[Fault]:
    """`count` faults for runs of these numbers of stages: every moment as often as every other, the rarest kind that
    fits it first."""
    chance = random.Random(seed)
    moments = [moment for moment in MOMENTS if any(_ranks(moment, size, counts) for size in stages)]
    chance.shuffle(moments)
    tried: Counter[str] = Counter()
    faults = []
    for number, moment in zip(range(count), itertools.cycle(moments)):
        size = chance.choice([k for k in stages if _ranks(moment, k, counts)])
        rank = chance.choice(_ranks(moment, size, counts))
        calls = counts[size][rank]
        hooks = [hook for hook in MOMENTS[moment] if calls.get(hook.key)]
        fitting = _fitting(moment, size, hooks)
        rarest = min(tried[kind] for kind in fitting)
        kind = chance.choice([kind for kind in fitting if tried[kind] == rarest])
        tried[kind] += 1
        key, call = "", 0
        if hooks:
            key = chance.choice(fitting[kind]).key
            call = chance.randint(2 if moment in BETWEEN else 1, calls[key])  # a checkpoint must be there
        faults.append(Fault(number, size, rank, moment, kind, key, call, chance.random()))
    return faults


def _ranks(moment: str, stages: int, counts: Counts) -> list[int]:
    """The ranks that come to this moment."""
    if moment == ANY_TIME:
        return list(range(stages))
    if moment == BETWEEN[1] and stages == 1:  # one stage has no variables
        return []
    return [rank for rank in range(stages) if any(counts[stages][rank].get(hook.key) for hook in MOMENTS[moment])]


def _fitting(moment: str, stages: int, hooks: list[Hook]) -> dict[str, list[Hook]]:
    """The kinds that can come at this moment, each with those of the hooks at which it can."""
    stalls = STALLS if stages > 1 else STALLS[1:]  # nobody sees that a single process is stopped
    if moment == ANY_TIME:  # only what can come from outside, or from another thread
        return dict.fromkeys(("KILL", "SEGV", "thread exception", *SIGNALS, *stalls[:-1]), hooks)
    if moment in BETWEEN:
        return dict.fromkeys(DAMAGES, hooks)
    disk, torn = [hook for hook in hooks if hook.disk], [hook for hook in hooks if hook.torn]
    watched = [hook for hook in hooks if stages > 1 or not hook.early]
    fitting = dict.fromkeys(DEADLY, hooks) | dict.fromkeys(DISK, disk) | {TORN: torn}
    fitting |= dict.fromkeys(SIGNALS, hooks) | dict.fromkeys(stalls, watched)
    return {kind: some for kind, some in fitting.items() if some}
