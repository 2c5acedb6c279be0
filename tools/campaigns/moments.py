"""Where a fault can strike: functions of the program, named as `module:attribute`.

Nothing in the program knows of this.  A name that is not there any more ends a campaign before its first fault.
"""

from __future__ import annotations

from dataclasses import dataclass


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
        parts = ["after" if self.after else "before", self.place]
        parts += ["within", self.within] if self.within else []
        parts += ["of", self.file] if self.file else []
        return " ".join(parts)


def _both(place: str, within: str = "") -> tuple[Hook, Hook]:
    """Just before and just after."""
    return Hook(place, within=within), Hook(place, after=True, within=within)


IMPORT = Hook("sys:stdlib", early=True)  # before anything is imported; struck by the wrapper itself

_REFRESH = "hpcsplit.engine.rank:refresh"
_EVALUATE = "hpcsplit.engine.rank:evaluate"
_SAVE = "hpcsplit.engine.rank:save"
_TRAIN = "hpcsplit.engine.rank:train_epoch"
_WIRE = "hpcsplit.wire.mpi:Wire."
_ROWS = "hpcsplit.store.rowfile:RowFile."
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
    "store read": (Hook(_ROWS + "gather", disk=True), Hook(_STORE + "read"), Hook(_STORE + "start", within=_TRAIN)),
    "compute": (*_both(_STAGE + "forward", _TRAIN), *_both(_STAGE + "update")),
    "message": (
        *_both(_WIRE + "_send"),
        *_both(_WIRE + "_recv"),
        Hook(_WIRE + "_agree"),
        Hook(_WIRE + "share", after=True),
    ),
    "store write": (Hook("os:pwrite", disk=True), Hook(_STORE + "write", after=True), *_both(_STORE + "finish")),
    "stage file": (
        Hook("hpcsplit.engine.persist:write_tensors", file="stage-", disk=True),
        Hook("hpcsplit.engine.persist:write_tensors", file="stage-", after=True, torn=True),
        Hook("hpcsplit.files.hdf5:write_new", file="stage-", disk=True),
    ),
    "aux copy": (
        Hook("hpcsplit.store.hdf5:copy_file", disk=True),
        Hook("hpcsplit.files.atomic:_kernel_copy", disk=True),
        Hook("hpcsplit.store.hdf5:HdfStore.save", after=True),
    ),
    "manifest": (
        Hook("hpcsplit.checkpoint.manifest:write_tensors", file="manifest", disk=True),
        Hook("hpcsplit.checkpoint.manifest:write_tensors", file="manifest", after=True, torn=True),
    ),
    "sums": (
        Hook(_FOLDER + "write_text", disk=True),
        Hook(_FOLDER + "write_text", after=True, torn=True),
    ),
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
        Hook(_STAGE + "forward", within=_REFRESH),
        Hook(_STORE + "write", within=_REFRESH),
        Hook(_STORE + "finish", within=_REFRESH),
    ),
    "record": (
        *_both("hpcsplit.run.records:Records.append"),
        Hook("logging:StreamHandler.flush", disk=True),
        Hook("os:fsync", within="hpcsplit.engine.rank:_epoch", disk=True),
    ),
}
ANY_TIME = "any time"  # uniform in wall time
DAMAGE = ("checkpoint", "store")  # a file of it is changed between the runs
AFTER_RECORD = MOMENTS["record"][1]
PLACES = (*MOMENTS, ANY_TIME, *(f"{what} between the runs" for what in DAMAGE))

HOOKS = tuple({hook.key: hook for hooks in MOMENTS.values() for hook in hooks}.values())
