"""One start of `train`: with MPI, or all stages in this process; and how it ends."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from socket import gethostname
from typing import Any, NoReturn

import torch

from hpcsplit.assemble import make_jobs
from hpcsplit.commands.failure import Failure, RankLog, crash_stacks, leave
from hpcsplit.config import Config
from hpcsplit.engine.job import Job
from hpcsplit.engine.rank import rank_program
from hpcsplit.errors import DONE, REQUEUE, ConfigError, HpcsplitError, LaunchError
from hpcsplit.files.atomic import write_text
from hpcsplit.host import terminal
from hpcsplit.host.device import use
from hpcsplit.host.launchers import Launcher, check_stages, check_world, claimed_size, launcher_rank
from hpcsplit.host.memory import give_back
from hpcsplit.host.printable import printable
from hpcsplit.host.stopping import StopRequest
from hpcsplit.host.watchdog import Pulse, Watchdog, in_time, who
from hpcsplit.plan.measure import enough_steps, rehearse, rehearse_exact
from hpcsplit.plan.prepare import Prepared, expect_together, prepare
from hpcsplit.plan.setting import Setting
from hpcsplit.report.console import Console
from hpcsplit.report.expected import beside
from hpcsplit.report.tensorboard import Board, check_installed
from hpcsplit.report.terminal import launcher_would_fail
from hpcsplit.report.watch import Watch
from hpcsplit.run import heartbeats
from hpcsplit.run.folder import RunDir
from hpcsplit.run.provenance import place, sharing
from hpcsplit.run.records import Records
from hpcsplit.schedule.actions import Stop
from hpcsplit.schedule.hybrid import initials
from hpcsplit.wire import lockstep


def train(config: Config, run_dir: RunDir, request: StopRequest) -> int:
    """Train or continue; the exit code."""
    if config.run.tensorboard:
        check_installed()
    launched, variable = claimed_size()
    if config.run.runner == "lockstep" and launched > 1:
        raise LaunchError(
            f'run.runner = "lockstep" is one process, {variable} says {launched}: start it without mpirun'
        )
    if launched == 1:
        return _train_here(config, run_dir, request)
    return _train_mpi(config, run_dir, request)


# ------------------------------------------------------------------------------------------------ one process


def _train_here(config: Config, run_dir: RunDir, request: StopRequest) -> int:
    """All stages in this process, without MPI; one stage unless the lockstep runner is asked for."""
    stages = config.run.stages or config.split.stages or 1
    if config.run.runner == "mpi":
        check_stages(1, stages, "split.cuts" if config.split.stages else "run.stages")
    torch.set_num_threads(config.run.threads or max(1, len(os.sched_getaffinity(0)) // stages))
    setting = Setting(config)
    device = use(setting.device(), deterministic=config.run.deterministic)
    failure, pulse = Failure(0, gethostname(), leave), Pulse()
    request.end = lambda: _leave_start(run_dir, leave)
    watchdog = failure.watchdog(config.run.stall_limit, lambda: pulse.beats)
    with ExitStack() as guards:
        guards.enter_context(failure.guarding())
        guards.enter_context(watchdog.watching())
        prepared = prepare(setting, run_dir, stages, device)
        setting = setting.adapted(prepared.adapted)
        console = Console(config.schedule.epochs)
        guards.callback(console.close)
        here = [place(gethostname(), device)]
        watch = _start(setting, run_dir, prepared, stages, console, ["this process"], here, "none")
        guards.enter_context(_log_to(run_dir, 0, watchdog))
        jobs = failure.jobs
        try:
            jobs += make_jobs(setting, prepared, run_dir, range(stages), device, watch)
            for job in jobs:
                job.stage.between_blocks = pulse.beat
            jobs[0].stop_reason = request.reason
            give_back()
            request.started()
            stops = lockstep.run([rank_program(job) for job in jobs])
            _close_stores(jobs)
            return _end(setting, run_dir, prepared, stages, watch, stops[0])
        except Exception as error:
            with suppress(Exception):
                _close_stores(jobs)
            if isinstance(error, HpcsplitError) and error.agreed:
                raise
            return failure.say(error)


# ------------------------------------------------------------------------------------------------ MPI


def _train_mpi(config: Config, run_dir: RunDir, request: StopRequest) -> int:
    """This rank's part of a run over MPI.  Whatever goes wrong on one rank ends all of them."""
    from hpcsplit.wire.mpi import Wire

    launcher, name = Launcher(), f"hpcsplit: {who(launcher_rank(), gethostname(), 'start of MPI')}"
    with request.in_library():
        wire = in_time(60 * config.run.stall_limit, name, Wire)
    world = wire.world
    terminal.during_a_run(launcher_would_fail)
    failure = Failure(world.rank, world.host, wire.abort)
    request.end = lambda: _leave_start(run_dir, wire.abort)
    watchdog = failure.watchdog(config.run.stall_limit, lambda: wire.beats, wire.waits, launcher.died)
    jobs, guards = failure.jobs, ExitStack()
    console: Console | None = None
    try:
        guards.enter_context(failure.guarding())
        guards.enter_context(watchdog.watching())
        console = Console(config.schedule.epochs) if world.rank == 0 else None
        _check_launch(config, wire)
        _bind(config, wire)
        setting = Setting(config)
        device = use(setting.device(world.local_rank), deterministic=config.run.deterministic)
        places = wire.share(place(world.host, device))
        prepared = _prepare_together(setting, run_dir, wire, device, sharing(places))
        setting = setting.adapted(prepared.adapted)
        guards.enter_context(_log_to(run_dir, world.rank, watchdog, world.size))
        watch = None
        hosts = [f"{there['host']}:{there['device']}" for there in places]
        if console:
            watch = _start(setting, run_dir, prepared, world.size, console, hosts, places, world.library)
        wire.device = device
        jobs += make_jobs(setting, prepared, run_dir, [world.rank], device, watch)
        if jobs[0].store:
            jobs[0].store.alarm = failure.fail
        jobs[0].stage.between_blocks = wire.progress
        jobs[0].stop_reason = lambda: request.reason() or launcher.died()
        if prepared.rehearse and world.size > 1:
            _rehearse(setting, run_dir, wire, jobs[0])
        give_back()
        request.started()
        stop = wire.run(rank_program(jobs[0]))
        _close_stores(jobs)
        code = _end(setting, run_dir, prepared, world.size, watch, stop) if watch else _exit_code(stop)
        if launcher.died():  # MPI cannot take leave of it
            run_dir.release()
            leave(code)
        wire.close()
        return code
    except HpcsplitError as error:
        if not error.agreed:
            failure.fail(error)
        wire.close()
        if world.rank == 0:
            raise
        return error.exit_code
    except BaseException as error:
        failure.fail(error)
    finally:
        guards.close()
        if console:
            console.close()


def _leave_start(run_dir: RunDir, end: Callable[[int], NoReturn]) -> NoReturn:
    """End a start that hangs, and let others have the run directory where that does not hang, too."""
    releasing = threading.Thread(target=run_dir.release, daemon=True)
    releasing.start()
    releasing.join(2.0)
    end(REQUEUE)


def _prepare_together(setting: Setting, run_dir: RunDir, wire: Any, device: torch.device, sharing: int = 0) -> Prepared:
    """Rank 0 prepares; all learn the result, or fail with the same sentence."""
    answer: dict[str, Any] = {}
    if wire.world.rank == 0:
        try:
            prepared = prepare(setting, run_dir, wire.world.size, device, wire.world.local_size, sharing)
            answer = {"prepared": prepared.as_dict()}
        except HpcsplitError as error:
            answer = {"error": str(error), "kind": type(error).__name__}
    else:
        import torch._dynamo  # noqa: F401  # torch's optimizers will, in 2 s: not one rank after another
    answer = wire.share(answer)[0]
    if "error" in answer:
        kinds = {kind.__name__: kind for kind in HpcsplitError.__subclasses__()}
        raise kinds.get(answer["kind"], ConfigError)(answer["error"]).on_all_ranks()
    return Prepared.from_dict(answer["prepared"])


def _rehearse(setting: Setting, run_dir: RunDir, wire: Any, job: Job) -> None:
    """All ranks compute at once, and rank 0 writes down what that says of the run."""
    wire.share(None)  # nobody begins before all are there
    seconds = wire.share(rehearse(job.stage, setting.timed_batch))
    exact_s = max(wire.share(wire.run(rehearse_exact(job, enough_steps(seconds)))))
    if job.rank == 0:
        expect_together(run_dir, seconds, exact_s)


def _check_launch(config: Config, wire: Any) -> None:
    """Refuse a wrong start; every rank finds the same, so one of them says it."""
    try:
        check_world(wire.world.size, wire.world.library)
        _same_config(wire.share(config.to_toml(origins=False)))
        source = "run.stages" if config.run.stages else "split.cuts"
        check_stages(wire.world.size, config.run.stages or config.split.stages, source)
    except LaunchError as error:
        raise error.on_all_ranks() from None


def _same_config(texts: Sequence[str]) -> None:
    for rank, text in enumerate(texts):
        if text != texts[0]:
            raise LaunchError(f"rank {rank} has read another configuration than rank 0; give all ranks the same file")


def _bind(config: Config, wire: Any) -> None:
    """Give each rank of a node its own cores, unless the launcher has done so, and as many threads."""
    world = wire.world
    mine = sorted(os.sched_getaffinity(0))
    sharers = [rank for rank, place in enumerate(wire.share([world.host, mine])) if place == [world.host, mine]]
    if len(sharers) > 1:
        each, nth = len(mine) // len(sharers), sharers.index(world.rank)
        if each:
            mine = mine[nth * each : (nth + 1) * each]
            os.sched_setaffinity(0, mine)
        else:
            mine = mine[:1]
    torch.set_num_threads(config.run.threads or len(mine))


# ------------------------------------------------------------------------------------------------ both


def _start(
    setting: Setting,
    run_dir: RunDir,
    prepared: Prepared,
    stages: int,
    console: Console,
    hosts: Sequence[str],
    places: Sequence[Mapping[str, Any]],
    library: str,
) -> Watch:
    """Say what will run, and write down how it was started."""
    config, phases = setting.config, setting.phases
    run_dir.note_start(config, places, library, prepared.cuts)
    copies = f", {config.data.copies} copies of each" if config.data.copies > 1 else ""
    held_out = f", {config.data.validation} held out" if config.data.validation else ""
    lines = [
        f"hpcsplit: {config.model.name} on {config.data.name} "
        f"({setting.train_size} training{copies}{held_out}, {setting.test_size} test samples), "
        f"{config.method.name}{' (frozen control)' if config.method.frozen else ''}, "
        f"{stages} stage{'s' * (stages > 1)}",
        _course(setting),
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
        speed = f"{prepared.baseline_samples_per_s:.0f} samples/s"
        lines.append(f"one rank alone ({_equipment(hosts[0])}), whole network, exact: {speed}")
    lines += [
        f"stage {p['stage']}: blocks {p['first_block']} to {p['last_block']} ({p['blocks']}), "
        f"{p['params']:,} parameters, {p['share']:.1%} of the cost, input {'x'.join(map(str, p['in_shape']))}, "
        f"on {hosts[p['stage'] % len(hosts)]}"
        for p in prepared.plans
    ]
    console.header(lines)
    cuts = () if config.method.frozen else prepared.cuts  # frozen stages compute less than they would
    board = Board(run_dir.tensorboard) if config.run.tensorboard else None
    return Watch(console, Records(run_dir.records), phases, prepared.costs, cuts, board)


def _course(setting: Setting) -> str:
    """Which epochs are of which kind."""
    epochs, parallel = len(setting.phases), setting.phases.count("parallel")
    if setting.decides:
        return f"{epochs} epochs; exact or parallel is decided on the way, at most {parallel} parallel"
    return f"{epochs} epochs, {epochs - parallel} serial and {parallel} parallel: {initials(setting.phases)}"


def _equipment(host: str) -> str:
    """What a rank computes with, in words."""
    threads = torch.get_num_threads()
    return "1 GPU" if ":cuda" in host else f"{threads} core{'s' * (threads > 1)}"


@contextmanager
def _log_to(run_dir: RunDir, rank: int, watchdog: Watchdog, ranks: int = 1) -> Iterator[None]:
    """Each rank's own log file: what it does, with times, and what it did when the start before was cut short."""
    path = run_dir.wait_for_log(rank)
    logger = logging.getLogger("hpcsplit")
    logger.setLevel(logging.INFO)
    logger.addHandler(RankLog(path))
    logger.info("process %d on %s", os.getpid(), gethostname())
    if left := heartbeats.read(path):
        logger.info("the start before this one ended unexpectedly; last seen: %s", left)
    watchdog.board = heartbeats.Heartbeats([run_dir.log(each) for each in range(ranks)], rank)
    with crash_stacks(path):
        yield


def _close_stores(jobs: Sequence[Job]) -> None:
    for job in jobs:
        if job.store:
            job.store.close()


def _exit_code(stop: Stop) -> int:
    return DONE if stop.done else REQUEUE


def _end(setting: Setting, run_dir: RunDir, prepared: Prepared, stages: int, watch: Watch, stop: Stop) -> int:
    """The closing table and picture, or why the run stopped before its end."""
    run_dir.note_end("done" if stop.done else f"stopped: {stop.reason}")
    if not stop.done:
        watch.say(f"stopped: {stop.reason}; checkpointed, start the same command again to continue (exit {REQUEUE})")
        return REQUEUE
    config, table = setting.config, watch.closing(prepared.plans, prepared.baseline_samples_per_s)
    if (expected := run_dir.load_forecast()) and expected["cuts"] == list(prepared.cuts):
        table += "\n\n" + "\n".join(beside({"": (expected, watch.past)}))
    watch.say("\n" + table)
    write_text(run_dir.summary, printable(table) + "\n")
    watch.draw(run_dir.picture, f"{config.model.name}, {config.data.name}, {config.method.name}, {stages} stages")
    watch.say(f"curves: {run_dir.picture}")
    return DONE
