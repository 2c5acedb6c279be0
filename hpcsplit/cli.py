# PYTHON_ARGCOMPLETE_OK
"""The command line.  Help, version and every mistake that the file itself shows come before torch is imported."""

from __future__ import annotations

import argparse
import math
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from hpcsplit import __version__
from hpcsplit.config import load, option_tree
from hpcsplit.config.declared import declared_methods
from hpcsplit.config.option import number_in
from hpcsplit.errors import INTERRUPTED, ConfigError, HpcsplitError, UsageError
from hpcsplit.files import nofollow
from hpcsplit.files.atomic import refusals_in_words
from hpcsplit.files.nofollow import without_links
from hpcsplit.files.paths import expanded
from hpcsplit.host import terminal
from hpcsplit.host.launchers import launcher_rank
from hpcsplit.host.memory import keep_freed_memory
from hpcsplit.host.printable import printable
from hpcsplit.host.stopping import StopRequest

if TYPE_CHECKING:
    from hpcsplit.config import Config
    from hpcsplit.plan.simulate.machine import Machine
    from hpcsplit.run.folder import RunDir

_EPILOG = "Any key can be overridden: --section.key VALUE.  `hpcsplit train --help` lists all keys."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.  Without `argv` this is the program, and the process is its own."""
    if argv is None:
        terminal.protect()
        nofollow.raise_limit()
        _find_modules_here()
    os.umask(os.umask(0) | 0o027)
    return terminal.finish(_code_of(list(sys.argv[1:] if argv is None else argv)))


def _code_of(argv: list[str]) -> int:
    try:
        with refusals_in_words():
            return _dispatch(argv)
    except SystemExit as end:  # of argparse, after help and version
        return int(end.code or 0)
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except Exception as error:
        known = nofollow.too_many(error) or error
        if not isinstance(known, HpcsplitError):
            traceback.print_exc()
            return HpcsplitError.exit_code
        _say(str(known))
        return known.exit_code


def _say(sentence: str) -> None:
    """On the standard error, once for all ranks."""
    if launcher_rank() == 0:
        print(f"hpcsplit: {printable(sentence)}", file=sys.stderr, flush=True)


def _find_modules_here() -> None:
    """Let the command `hpcsplit` find a user's own network where `python -m hpcsplit` does: in the present folder."""
    try:
        here = os.getcwd()
    except OSError:  # it has been removed
        return
    if not sys.flags.safe_path and here not in sys.path[:1]:
        sys.path.insert(0, here)


def _dispatch(argv: list[str]) -> int:
    parser = _Parser(prog="hpcsplit", description="Layer-parallel training of deep networks over MPI.", epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"hpcsplit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = _command(commands, "train", "train a network, or continue a run")
    train.epilog = _keys()
    train.formatter_class = argparse.RawDescriptionHelpFormatter
    train.add_argument("--run-dir", type=_path, help="default: runs/<config name>-<seed>")
    train.add_argument("--take-over", action="store_true", help="go on in a folder that is another user's or run's")
    train.add_argument(
        "--continue-from", type=_path, metavar="RUN_DIR", help="begin a new run with the weights of a checkpoint there"
    )
    train.add_argument(
        "--checkpoint",
        default="",
        metavar="NAME",
        help="which one: best, latest, N (after N epochs) or its name; default: latest",
    )
    train.add_argument("--with-optimizer", action="store_true", help="and with the state of its optimizer")
    train.add_argument(
        "--extend",
        action="store_true",
        help="another schedule.epochs than before, though past learning rates depend on it: only those to come change",
    )
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, pass one mini-batch forward and backward through all stages, and leave nothing",
    )
    loudness = train.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="errors and the closing lines only")
    loudness.add_argument("-v", "--verbose", action="store_true", help="every action of the first rank, too")
    _links(train)

    plan = _command(commands, "plan", "cuts, parameters, memory, store, traffic and speed, without training")
    plan.add_argument(
        "--ranks", default="", help="numbers of stages to plan for, such as 1,2,4; else a line for 1 to 16"
    )
    plan.add_argument("--node", type=_whole, default=0, help="ranks of a node, for what fits; default: all")
    plan.add_argument(
        "--measure", action="store_true", help="time the parts of a step on this machine, and predict speed-ups from it"
    )
    plan.add_argument("--run-dir", type=_path, help="where the run would be; default: as for train")
    plan.add_argument("--timetable", action="store_true", help="draw the pipeline of an exact step, too")
    plan.add_argument("--json", action="store_true", help="machine-readable")

    _simulate(commands)
    _command(commands, "config", "the resolved configuration, with the origin of each value")

    report = commands.add_parser(
        "report", help="runs side by side: a table, a page with every curve, a picture, numbers"
    )
    report.add_argument("runs", metavar="RUN_DIR", type=_path, nargs="+")
    _links(report)
    report.add_argument(
        "--out", type=_path, help="write a page (.html), the curves (.png, .pdf, .svg) or numbers (.csv)"
    )
    report.add_argument(
        "--no-mistakes",
        action="store_true",
        help="no confusion matrix and worst samples: these pass the test set through the networks",
    )
    _data_root(report)

    _saved(commands, "evaluate", "loss and accuracy of a checkpoint on held-out data, on this process alone")
    export = _saved(commands, "export", "a checkpoint as one file for plain torch or ONNX")
    forms = ".pt or .safetensors (weights), .pt2 or .onnx (network and weights, compared with ours)"
    export.add_argument("file", metavar="FILE", type=_path, nargs="?", help=f"the file to write: {forms}")
    export.add_argument("--out", type=_path, metavar="FILE", help="the same")

    _predict(commands)

    doctor = commands.add_parser("doctor", help="what this place has for a run, and what is slow or broken")
    doctor.add_argument("--scratch", type=_path, help="a further folder to try for the store of auxiliary variables")
    doctor.add_argument("--json", action="store_true", help="machine-readable")
    doctor.epilog = "Each finding is good, slow or broken, with what to do.  Exit code: 70 when one is broken, else 0."

    if "_ARGCOMPLETE" in os.environ:
        _complete(parser, commands)
    if not argv:
        parser.print_help()
        return 0
    args, rest = parser.parse_known_args(argv)
    if args.command in ("predict", "export"):  # argparse leaves the words behind an option
        late, rest = [word for word in rest if word[:1] != "-"], [word for word in rest if word[:1] == "-"]
        if args.command == "predict":
            args.inputs, late = [*args.inputs, *map(_path, late)], []
        elif not args.file and len(late) == 1:
            args.file = _path(late.pop())
        rest = late + rest
    if args.command == "export":
        if bool(args.out) == bool(args.file):
            raise UsageError("export wants one FILE to write: hpcsplit export RUN_DIR FILE.safetensors")
        args.out = args.out or args.file
    if getattr(args, "out", None):  # the user's own links are fine
        args.out = without_links(args.out.parent) / args.out.name
    if args.command in ("report", "evaluate", "export", "predict", "doctor"):
        if rest:
            raise UsageError(f"{rest[0]} is not understood. See hpcsplit {args.command} --help")
        return _without_overrides(args)
    config = _loaded(args, list(_overrides(rest)))
    if args.command == "config":
        print(config.to_toml(), end="")
        return 0
    keep_freed_memory()
    if args.command in ("plan", "simulate"):
        from hpcsplit.run import trust

        code = {key: name for key, name in config.code().items() if config.origins[key] != "command line"}
        trust.check_code(code, args.config, "if it is yours, add --{key} {name}")
    if args.command == "plan":
        from hpcsplit.commands.plan import plan_command

        ranks, folder = _ranks(args.ranks), _folder(args, _run_path(args, config))
        return plan_command(
            config, ranks, folder, node=args.node, measure=args.measure, as_json=args.json, draw=args.timetable
        )
    if args.command == "simulate":
        from hpcsplit.commands.simulate import simulate_command

        ranks, machine = _ranks(args.ranks), _machine(args)
        return simulate_command(
            config, ranks, machine, source=args.profile, deeper=args.deeper, out=args.out, as_json=args.json
        )
    if not args.continue_from and (args.checkpoint or args.with_optimizer):
        raise UsageError("--checkpoint and --with-optimizer say what to take from a run: add --continue-from RUN_DIR")
    terminal.during_a_run()
    request = StopRequest(config.run.time_limit, config.run.stop_before, ask=launcher_rank() == 0)
    request.guard_start()
    from hpcsplit.commands.train import train as train_command
    from hpcsplit.plan.begin import Asked

    folder = _folder(args, _run_path(args, config))
    there = _folder(args, args.continue_from) if args.continue_from else None
    loudness = args.verbose - args.quiet
    asked = Asked(there, args.checkpoint, args.with_optimizer, args.extend, args.dry_run, loudness)
    try:
        return train_command(config, folder, request, asked)
    finally:
        request.started()
        folder.release()


def _complete(parser: _Parser, commands: _Commands) -> None:
    """Answer a shell that asks how a command line goes on, keys of the configuration included, where argcomplete is
    installed."""
    try:
        import argcomplete
    except ImportError:
        return
    trees = [option_tree(method) for method in declared_methods()]
    options = {f"--{name}.{key}": o for tree in trees for name, keys in tree.items() for key, o in keys.items()}
    for command in commands.choices.values():
        if any(action.metavar == "CONFIG.toml" for action in command._actions):
            for name, option in options.items():
                choices = option.choices or (("true", "false") if option.kind == "bool" else None)
                command.add_argument(name, choices=choices)
    argcomplete.autocomplete(parser)


def _loaded(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> Config:
    try:
        return load(args.config, overrides)
    except ConfigError:
        config = load(args.config, overrides, recorded=True)  # a run of an earlier version goes on
        if args.command == "train" and (_run_path(args, config) / "config.toml").is_file():
            return config
        raise


def _run_path(args: argparse.Namespace, config: Config) -> Path:
    return args.run_dir or Path("runs") / f"{config.stem}-{config.run.seed}"


def _without_overrides(args: argparse.Namespace) -> int:
    """The commands that look at what is there."""
    if args.command == "report":
        from hpcsplit.commands.report import report_command

        runs = [_folder(args, path) for path in args.runs]
        return report_command(runs, args.out, args.data_root, mistakes=not args.no_mistakes)
    if args.command == "doctor":
        from hpcsplit.commands.doctor import doctor_command

        return doctor_command(args.scratch, as_json=args.json)
    if args.command == "export":
        from hpcsplit.commands.export import export_command

        return export_command(_folder(args, args.run), args.checkpoint, args.config, args.out, average=args.ema)
    if args.command == "predict":
        return _run_predict(args)
    from hpcsplit.commands.evaluate import evaluate_command

    which = args.checkpoint, args.config, args.data_root, args.data_name
    return evaluate_command(_folder(args, args.run), *which, as_json=args.json, average=args.ema)


def _run_predict(args: argparse.Namespace) -> int:
    if bool(args.inputs) == (args.text is not None):
        raise UsageError("predict wants files, folders or arrays, or a text: hpcsplit predict RUN_DIR IMAGE...")
    from hpcsplit.commands.predict import continue_command, predict_command

    which = _folder(args, args.run), args.checkpoint, args.config
    if args.text is not None:
        how = {"tokens": args.tokens, "temperature": args.temperature, "seed": int(args.seed)}
        return continue_command(*which, args.text, **how, average=args.ema)
    how = {"top": args.top, "skip_broken": args.skip_broken, "average": args.ema}
    return predict_command(*which, args.data_root, args.inputs, args.out, **how)


def _folder(args: argparse.Namespace, path: Path) -> RunDir:
    from hpcsplit.run.folder import RunDir

    return RunDir(path, getattr(args, "take_over", False), getattr(args, "follow_links", False))


_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UsageError(f"{message}. See {self.prog} --help")


def _command(commands: _Commands, name: str, summary: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=_EPILOG)
    parser.add_argument("config", metavar="CONFIG.toml", type=_path)
    return parser


def _saved(commands: _Commands, name: str, summary: str) -> argparse.ArgumentParser:
    """A command on a checkpoint of a run directory."""
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.add_argument("run", metavar="RUN_DIR", type=_path)
    parser.add_argument(
        "--checkpoint", default="", metavar="NAME", help="best, latest, N (after N epochs) or its name; default: latest"
    )
    parser.add_argument("--ema", action="store_true", help="the moving average of its weights (optim.ema)")
    parser.add_argument("--config", type=_path, help="the run's CONFIG.toml, for a user's own network or data.root")
    _links(parser)
    if name == "evaluate":
        _data_root(parser)
        parser.add_argument("--data.name", dest="data_name", default="", help="another data set of such samples")
        parser.add_argument("--json", action="store_true", help="machine-readable")
    return parser


def _predict(commands: _Commands) -> None:
    predict = _saved(commands, "predict", "what a checkpoint's network says of images, arrays or a text, as CSV")
    inputs = "image, folder of images (and those below it), or .npy or .npz of samples: uint8 pixels, or floats"
    predict.add_argument("inputs", metavar="INPUT", type=_path, nargs="*", help=inputs)
    predict.add_argument("--out", type=_path, metavar="FILE.csv", help="default: the standard output")
    predict.add_argument("--top", type=_whole, default=1, metavar="N", help="the N likeliest classes (1)")
    predict.add_argument("--skip-broken", action="store_true", help="leave out files that cannot be read, and say so")
    predict.add_argument("--text", metavar="PROMPT", help="go on with a text, byte by byte (networks of text)")
    predict.add_argument("--tokens", type=_whole, default=200, metavar="N", help="by so many bytes (200)")
    predict.add_argument(
        "--temperature", type=_number, default=1.0, help="below 1 the likely ones are likelier; 0: the likeliest (1)"
    )
    predict.add_argument("--seed", type=_number, default=0, metavar="N", help="of what is drawn (0)")
    _data_root(predict)


def _links(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--follow-links",
        action="store_true",
        help="the folders checkpoints, aux, log and tensorboard of a run directory may be links, such as to scratch",
    )


def _data_root(parser: argparse.ArgumentParser) -> None:
    where = "folder of the data sets, which is never taken from a run directory; default: $HPCSPLIT_DATA or ./data"
    parser.add_argument("--data.root", "--data", dest="data_root", default="", metavar="DIR", help=where)


def _simulate(commands: _Commands) -> None:
    """`simulate` with the machine's options; a number of two parts is for links between nodes and inside one."""
    simulate = _command(commands, "simulate", "the schedule replayed on a machine of many ranks that need not be there")
    simulate.add_argument("--ranks", default="", help="such as 2,4,64; default: 1,2,4 ... 1024")
    simulate.add_argument("--node", type=_whole, default=8, help="ranks of a node (8)")
    simulate.add_argument(
        "--latency-us", type=_two, default=(2.0, 1.0), help="of a message: BETWEEN[,INSIDE] nodes (2,1)"
    )
    simulate.add_argument("--bandwidth-gb", type=_two, default=(12.5, 5.0), help="GB/s of a link, likewise (12.5,5)")
    simulate.add_argument("--disk-gb", type=_number, default=0.0, help="GB/s of a node's disk; 0: rows stay in memory")
    simulate.add_argument("--straggler", type=_number, default=1.0, help="the middle rank is so many times as slow (1)")
    simulate.add_argument("--deeper", type=_whole, default=0, help="every block so many times; 0: as the ranks need it")
    simulate.add_argument("--profile", type=_path, help="a run's forecast.json, instead of timing this machine")
    simulate.add_argument("--out", type=_path, help="draw a few steps and the scaling curves to this .png file")
    simulate.add_argument("--json", action="store_true", help="machine-readable")


def _path(text: str) -> Path:
    """UsageError for one that cannot be looked at; whether something is there, a command says better."""
    path = expanded(text, "the path", UsageError)
    try:
        with suppress(PermissionError):
            path.exists()
    except OSError as error:
        name = str(path) if len(str(path)) <= 80 else f"{str(path)[:80]}..."
        raise UsageError(f"{name} cannot be used as a path: {error.args[-1]}; give another one") from None
    return path


def _number(text: str) -> float:
    value = number_in(text)
    if value is None or not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} must be a number from 0")
    return value


def _two(text: str) -> tuple[float, float]:
    numbers = [_number(part) for part in text.split(",")]
    if len(numbers) > 2:
        raise argparse.ArgumentTypeError(f"{text} must be one number, or two with a comma")
    return numbers[0], numbers[-1]


def _whole(text: str) -> int:
    value = number_in(text) or 0
    if not 1 <= value < 2**53 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text} must be a whole number from 1")
    return int(value)


def _machine(args: argparse.Namespace) -> Machine:
    from hpcsplit.plan.simulate.machine import Machine

    if args.straggler < 1:
        raise UsageError(f"--straggler {args.straggler:g} must be 1 or more")
    if args.out and args.out.suffix != ".png":
        raise UsageError(f"--out {args.out} must end in .png")
    return Machine(
        node=args.node,
        latency_s=1e-6 * args.latency_us[0],
        inside_latency_s=1e-6 * args.latency_us[1],
        bandwidth=1e9 * args.bandwidth_gb[0],
        inside_bandwidth=1e9 * args.bandwidth_gb[1],
        disk=1e9 * args.disk_gb,
        straggler=args.straggler,
    )


def _overrides(rest: Sequence[str]) -> list[tuple[str, str]]:
    """--section.key VALUE and --section.key=VALUE as pairs."""
    pairs, words = [], iter(rest)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or "." not in name:
            raise UsageError(f"{word} is not understood; overrides have the form --section.key VALUE")
        following = value if equals else next(words, None)
        if following is None:
            raise UsageError(f"{word} has no value")
        pairs.append((name, following))
    return pairs


def _ranks(text: str) -> tuple[int, ...]:
    if not text:
        return ()
    try:
        return tuple(map(_whole, text.split(",")))
    except argparse.ArgumentTypeError:
        raise UsageError(f"--ranks {text} must be whole numbers from 1 with commas, such as 1,2,4") from None


def _keys() -> str:
    """Every configuration key with its default, unit and sentence."""
    lines = ["configuration keys (in the file, or as --section.key VALUE):"]
    for section, options in option_tree("backprop").items():
        lines += ["", f"[{section}]"]
        lines += [f"  {o.name:<14} {o.describe()}" for o in options.values()]
    for method in declared_methods().values():
        if method.options:
            lines += ["", f'[method]  name = "{method.name}": {method.summary}']
            lines += [f"  {o.name:<16} {o.describe()}" for o in method.options]
    return "\n".join(lines)
