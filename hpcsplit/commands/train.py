"""One start of `train`: with MPI, or all stages in this process; and how it ends."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from socket import gethostname
from typing import Any, NoReturn

import msgspec
import torch

from hpcsplit.assemble import Around, make_jobs
from hpcsplit.commands.failure import Failure, RankLog, Told, crash_stacks, in_words
from hpcsplit.commands.rehearsal import dry_run, stage_line, title
from hpcsplit.config import Config
from hpcsplit.engine.job import Job, Observer
from hpcsplit.engine.rank import rank_program
from hpcsplit.errors import DONE, REQUEUE, ConfigError, HpcsplitError, LaunchError
from hpcsplit.files.atomic import write_text
from hpcsplit.host import terminal
from hpcsplit.host.device import use
from hpcsplit.host.launchers import LauncherWatch, check_stages, check_world, claimed_size, launcher_rank
from hpcsplit.host.memory import give_back
from hpcsplit.host.printable import printable
from hpcsplit.host.stopping import StopRequest, leave
from hpcsplit.plan.begin import Asked
from hpcsplit.plan.measure import enough_steps, rehearse, rehearse_exact
from hpcsplit.plan.prepare import Prepared, expect_together, prepare
from hpcsplit.plan.setting import Setting
from hpcsplit.report.console import Console
from hpcsplit.report.summary import beside, closing_table
from hpcsplit.report.tensorboard import Board, check_installed
from hpcsplit.report.terminal import launcher_would_fail
from hpcsplit.report.watch import Watch
from hpcsplit.run import provenance
from hpcsplit.run.folder import RunDir
from hpcsplit.run.provenance import place, sharing
from hpcsplit.run.records import Records
from hpcsplit.run.watchdog import Heartbeats, Watchdog, heartbeat_of, in_time, who
from hpcsplit.schedule.actions import Stop
from hpcsplit.schedule.hybrid import ALL_DONE, initials
from hpcsplit.wire import lockstep
from hpcsplit.wire.port import World

log = logging.getLogger("hpcsplit")


def train(
    config: Config, run_dir: RunDir, request: StopRequest, asked: Asked | None = None, *, raises: bool = False
) -> int:
    """Train or continue, or begin with what another run has learned; the exit code.  Whatever goes wrong on one rank
    ends all of them.

    With `raises` the process is not the command's own: alone it raises what goes wrong, and MPI is left as it is.
    """
    if config.run.tensorboard:
        check_installed()
    world = _world(config, request)
    failure = Failure(world.rank, world.host, world.abort)
    request.end = lambda: _leave_start(run_dir, world.abort)
    guest = raises and world.size == 1  # nobody waits for this process, which is somebody else's
    watchdog = failure.watchdog(0 if guest else config.run.stall_limit, world)
    with ExitStack() as guards:
        if not guest:
            guards.enter_context(failure.guarding())
        guards.enter_context(watchdog.watching())
        try:
            code = _run(config, run_dir, request, asked or Asked(), world, failure, watchdog, guards)
            if world.orphaned():  # MPI cannot take leave of it
                run_dir.release()
                leave(code)
            world.close(last=not raises)
            return code
        except Exception as error:
            if guest:
                with suppress(Exception):
                    _close_stores(failure.jobs)
                raise in_words(error) from error.__cause__
            if not isinstance(error, HpcsplitError) or not error.agreed:
                return _fail(world, failure, error)
            world.close(last=not raises)
            if raises or world.rank == 0:
                raise
            return error.exit_code
        except BaseException as error:
            if world.size > 1:
                failure.fail(error)
            with suppress(Exception):
                _close_stores(failure.jobs)
            raise


def _world(config: Config, request: StopRequest) -> World:
    """The processes of this run."""
    launched, variable = claimed_size()
    if config.run.runner == "lockstep" and launched > 1:
        raise LaunchError(
            f'run.runner = "lockstep" is one process, {variable} says {launched}: start it without mpirun'
        )
    if launched == 1:
        stages = config.run.stages or config.split.stages or 1
        return lockstep.Alone(stages if config.run.runner == "lockstep" else 1)
    from hpcsplit.wire.mpi import Wire

    launcher, name = LauncherWatch(), f"hpcsplit: {who(launcher_rank(), gethostname(), 'start of MPI')}"
    with request.in_library():
        wire = in_time(60 * config.run.stall_limit, name, lambda: Wire(launcher.died))
    terminal.during_a_run(launcher_would_fail)
    return wire


def _run(
    config: Config,
    run_dir: RunDir,
    request: StopRequest,
    asked: Asked,
    world: World,
    failure: Failure,
    watchdog: Watchdog,
    guards: ExitStack,
) -> int:
    """From the check of the start to the last word."""
    console = Console(config.schedule.epochs, quiet=asked.loudness < 0) if world.rank == 0 else None
    if console:
        guards.callback(console.close)
    if console and asked.loudness > 0:
        guards.enter_context(_telling(console))
    _check_launch(config, world)
    _bind(config, world)
    setting = Setting(config)
    device = world.device = use(setting.device(world.local_rank), deterministic=config.run.deterministic)
    places = world.share(place(world.host, device))
    log.info("look at the configuration, the data and the network")
    prepared = _prepare_together(setting, run_dir, world, device, sharing(places), asked)
    setting = setting.adapted(prepared.adapted).following(prepared.phases)
    if prepared.spec:
        setting = setting.with_spec(prepared.spec)
    if asked.dry_run:
        return dry_run(setting, run_dir, prepared, world, console, places, failure)
    guards.enter_context(_log_to(run_dir, world, watchdog))
    watch = _start(setting, run_dir, prepared, world, console, places) if console else None
    around = Around(
        observer=watch or Observer(),
        stop_reason=lambda: request.reason() or world.orphaned() or None,
        between_blocks=world.progress,
        alarm=failure.fail if world.size > 1 else lambda error: None,
    )
    log.info("make the stages")
    failure.jobs += make_jobs(setting, prepared, run_dir, world.stages, device, around)
    if world.size > 1:
        world.idle = failure.jobs[0].stage.deferred.one
    if prepared.rehearse and world.size > 1:
        log.info("rehearse steps of all stages together")
        _rehearse(setting, run_dir, world, failure.jobs[0])
    give_back()
    request.started()
    stop: Stop = world.run([rank_program(job) for job in failure.jobs])[0]
    _close_stores(failure.jobs)
    if watch:
        return _end(setting, run_dir, prepared, watch, stop)
    return DONE if stop.done else REQUEUE


def _fail(world: World, failure: Failure, error: Exception) -> int:
    """Say what has gone wrong, and end all ranks; the exit code of a process that is alone."""
    if world.size > 1:
        failure.fail(error)
    with suppress(Exception):
        _close_stores(failure.jobs)
    return failure.say(error)


def _leave_start(run_dir: RunDir, end: Callable[[int], NoReturn]) -> NoReturn:
    """End a start that hangs, and let others have the run directory where that does not hang, too."""
    releasing = threading.Thread(target=run_dir.release, daemon=True)
    releasing.start()
    releasing.join(2.0)
    end(REQUEUE)


def _prepare_together(
    setting: Setting, run_dir: RunDir, world: World, device: torch.device, sharing: int = 0, asked: Asked | None = None
) -> Prepared:
    """Rank 0 prepares; all learn the result, or fail with the same sentence."""
    answer: dict[str, Any] = {}
    if world.rank == 0:
        try:
            each = len(world.stages)
            prepared = prepare(setting, run_dir, world.count, device, each * world.local_size, each * sharing, asked)
            answer = {"prepared": msgspec.to_builtins(prepared)}
        except HpcsplitError as error:
            answer = {"error": str(error), "kind": type(error).__name__}
    else:
        import torch._dynamo  # noqa: F401  # torch's optimizers will, in 2 s: not one rank after another
    answer = world.share(answer)[0]
    if "error" in answer:
        kinds = {kind.__name__: kind for kind in HpcsplitError.__subclasses__()}
        raise kinds.get(answer["kind"], ConfigError)(answer["error"]).on_all_ranks()
    return msgspec.convert(answer["prepared"], Prepared)


def _rehearse(setting: Setting, run_dir: RunDir, world: World, job: Job) -> None:
    """All ranks compute at once, and rank 0 writes down what that says of the run.  Exact steps keep the form that is
    the quicker one: the bits are the same."""
    world.share(None)  # nobody begins before all are there
    seconds = world.share(rehearse(job.stage, setting.timed_batch, setting.input_dtype))
    whole, exact_s = replace(setting.exact, deferred=False), {}
    for job.exact in (setting.exact, whole) if setting.exact.defers(world.count) else (whole,):
        took = world.share(world.run([rehearse_exact(job, enough_steps(seconds))])[0])
        exact_s[job.exact.deferred] = max(took)
    job.exact = exact = replace(setting.exact, deferred=min(exact_s, key=lambda late: exact_s[late]))
    if job.rank == 0:
        expect_together(run_dir, seconds, exact_s, exact)


def _check_launch(config: Config, world: World) -> None:
    """Refuse a wrong start; every rank finds the same, so one of them says it."""
    try:
        check_world(world.size, world.library)
        texts = world.share(config.to_toml(origins=False))
        if other := [rank for rank, text in enumerate(texts) if text != texts[0]]:
            raise LaunchError(
                f"rank {other[0]} has read another configuration than rank 0; give all ranks the same file"
            )
        source = "run.stages" if config.run.stages else "split.cuts"
        check_stages(world.count, config.run.stages or config.split.stages, source)
    except LaunchError as error:
        raise error.on_all_ranks() from None


def _bind(config: Config, world: World) -> None:
    """Give each rank of a node its own cores, unless the launcher has done so, and as many threads."""
    mine = sorted(os.sched_getaffinity(0))
    sharers = [rank for rank, place in enumerate(world.share([world.host, mine])) if place == [world.host, mine]]
    each, nth = len(mine) // len(sharers), sharers.index(world.rank)
    if each == 0:
        mine = mine[:1]
    elif len(sharers) > 1:
        mine = mine[nth * each : (nth + 1) * each]
        os.sched_setaffinity(0, mine)
    torch.set_num_threads(config.run.threads or max(1, len(mine) // len(world.stages)))


# ------------------------------------------------------------------------------------------------ what is said


def _start(
    setting: Setting,
    run_dir: RunDir,
    prepared: Prepared,
    world: World,
    console: Console,
    places: Sequence[Mapping[str, Any]],
) -> Watch:
    """Say what will run, and write down how it was started."""
    config, phases, stages = setting.config, setting.phases, world.count
    begins_with = asdict(prepared.origin) if prepared.origin else None
    run_dir.note_start(config, places, world.library, prepared.cuts, begins_with)
    hosts = [f"{there['host']}:{there['device']}" if world.size > 1 else "this process" for there in places]
    epochs, parallel = len(phases), phases.count("parallel")
    course = f"{epochs} epochs, {epochs - parallel} serial and {parallel} parallel: {initials(phases)}"
    if setting.decides:
        course = f"{epochs} epochs; exact or parallel is decided on the way, at most {parallel} parallel"
    lines = [
        title(setting, stages),
        course,
        f"run directory {run_dir.path}",
    ]
    if setting.declared.parallel and not setting.parallel:
        lines.append("note: no epoch of this run is parallel; raise schedule.epochs or change schedule.ratio")
    if setting.aux_policy != config.checkpoint.aux:
        lines.append(
            'note: rows in memory end with the process; a continued run recomputes them (or checkpoint.aux = "copy")'
        )
    lines += prepared.notes
    if prepared.baseline_samples_per_s:
        cores, speed = torch.get_num_threads(), f"{prepared.baseline_samples_per_s:.0f} samples/s"
        equipment = "1 GPU" if world.device.type == "cuda" else f"{cores} core{'s' * (cores > 1)}"
        lines.append(f"one rank alone ({equipment}), whole network, exact: {speed}")
    lines += [f"{stage_line(p)}, on {hosts[p['stage'] % len(hosts)]}" for p in prepared.plans]
    console.say("\n".join([*lines, ""]))
    cuts = () if config.method.frozen else prepared.cuts  # frozen stages compute less than they would
    board = Board(run_dir.tensorboard) if config.run.tensorboard else None
    return Watch(console, Records(run_dir.records), phases, prepared.costs, cuts, board)


@contextmanager
def _telling(console: Console) -> Iterator[None]:
    """While the block runs, what goes into the log of rank 0 is shown, too."""
    handler = Told(console.say)
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _log_to(run_dir: RunDir, world: World, watchdog: Watchdog) -> AbstractContextManager[None]:
    """Each rank's own log file: what it does, with times, and what it did when the start before was cut short."""
    path = run_dir.wait_for_log(world.rank)
    log.setLevel(logging.INFO)
    log.addHandler(RankLog(path))
    log.info("process %d on %s", os.getpid(), gethostname())
    if left := heartbeat_of(path):
        log.info("the start before this one ended unexpectedly; last seen: %s", left)
    watchdog.post_on(Heartbeats([run_dir.log(rank) for rank in range(world.size)], world.rank))
    return crash_stacks(path)


def _close_stores(jobs: Sequence[Job]) -> None:
    for job in jobs:
        if job.store:
            job.store.close()


def _end(setting: Setting, run_dir: RunDir, prepared: Prepared, watch: Watch, stop: Stop) -> int:
    """The closing table and picture, or why the run stopped before its end."""
    provenance.end(run_dir.provenance, "done" if stop.done else f"stopped: {stop.reason}")
    watch.console.quiet = False
    if not stop.done:
        watch.say(f"stopped: {stop.reason}; checkpointed, start the same command again to continue (exit {REQUEUE})")
        return REQUEUE
    config = setting.config
    table = closing_table(watch.past, prepared.plans, prepared.baseline_samples_per_s)
    if (expected := run_dir.load_forecast()) and expected["cuts"] == list(prepared.cuts):
        table += "\n\n" + "\n".join(beside({"": (expected, watch.past)}))
    if stop.reason != ALL_DONE:
        table += f"\n\nended early: {stop.reason}"
    watch.say("\n" + table)
    write_text(run_dir.summary, printable(table) + "\n")
    watch.draw(
        run_dir.picture, f"{config.model.name}, {config.data.name}, {config.method.name}, {len(prepared.plans)} stages"
    )
    watch.say(f"curves: {run_dir.picture}")
    return DONE
