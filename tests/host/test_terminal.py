"""Output that goes away, is closed, full or cannot be encoded, for runs and for commands whose output is the result."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcsplit.report.terminal import launcher_would_fail

PROJECT = Path(__file__).parents[2]
SMALL = """[data]
name = "fake"
limit_train = 32
limit_test = 32
batch_size = 16
[model]
name = "resnet8"
[schedule]
epochs = 2
ratio = "1:1"
[checkpoint]
every_epochs = 0
[run]
runner = "lockstep"
stages = 2
threads = 1
baseline = false
"""
DEV_FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def program(command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which $hpcsplit is the program."""
    line = command.replace("$hpcsplit", f"{sys.executable} -m hpcsplit")
    known = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(["bash", "-c", line], cwd=cwd, env=known, capture_output=True, text=True, timeout=200)


def finished(folder: Path) -> int:
    """How many epochs the run has recorded; its last start must have ended well."""
    starts = json.loads((folder / "provenance.json").read_text())["starts"]
    assert starts[-1]["end"] == "done"
    return len((folder / "records.jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    "elsewhere",
    [
        "| true",
        ">&- 2>&- <&-",
        pytest.param(">/dev/full 2>&1", marks=DEV_FULL),
    ],
)
def test_a_run_goes_on_without_output(toml: Path, tmp_path: Path, elsewhere: str) -> None:
    done = program(f"$hpcsplit train {toml} --run-dir r {elsewhere}; echo ${{PIPESTATUS[0]}} > code", tmp_path)
    assert (tmp_path / "code").read_text() == "0\n"
    assert finished(tmp_path / "r") == 2
    assert "Traceback" not in done.stderr
    if elsewhere == "| true":
        assert done.stderr.count("standard output cannot be written (Broken pipe); the run goes on without it") == 1


@pytest.mark.parametrize("elsewhere", ["2>&1 | true"])
def test_a_run_that_fails_does_so_without_output_too(toml: Path, tmp_path: Path, elsewhere: str) -> None:
    program(f"$hpcsplit train {toml} --optim.lr 1e30 --run-dir r {elsewhere}; echo ${{PIPESTATUS[0]}} > code", tmp_path)
    assert (tmp_path / "code").read_text() == "70\n"


@pytest.mark.parametrize("command", ["--version", "train --help", "config {toml}"])
@pytest.mark.parametrize(
    ("elsewhere", "code"), [("| true", 0), (">&-", 0), pytest.param(">/dev/full", 73, marks=DEV_FULL)]
)
def test_a_result_that_nobody_wants_is_fine_and_one_that_is_lost_is_not(
    toml: Path, tmp_path: Path, command: str, elsewhere: str, code: int
) -> None:
    done = program(f"$hpcsplit {command.format(toml=toml)} {elsewhere}; exit ${{PIPESTATUS[0]}}", tmp_path)
    assert done.returncode == code
    assert done.stderr.startswith("hpcsplit: standard output cannot be written: No space") if code else not done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "ascii:strict", "cp437"])
def test_every_letter_can_be_printed(tmp_path: Path, encoding: str) -> None:
    code = "from hpcsplit.host import terminal; terminal.protect(); import sys\n"
    code += "for file in (sys.stdout, sys.stderr): print('λ ψ Σ × … ‖ ü 漢 \\udcff', file=file)\n"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout == done.stderr
    if encoding == "ascii":
        assert done.stdout == b"lambda psi Sigma x ... || u \\u6f22 \\udcff\n"


@pytest.mark.parametrize("command", ["train --help", "plan {toml} --ranks 2 --timetable"])
def test_commands_print_on_any_terminal(toml: Path, tmp_path: Path, command: str) -> None:
    for environment in ({"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1", "LC_ALL": "en_US.ISO-8859-1"}):
        done = program(f"$hpcsplit {command.format(toml=toml)} > out", tmp_path, **environment)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False)
        assert (tmp_path / "out").stat().st_size


def test_a_pipe_that_does_not_block_is_waited_for(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    code = "from hpcsplit.host.terminal import *; protect(); print('x' * 1_000_000); raise SystemExit(finish(0))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=writing, env={"PYTHONPATH": str(PROJECT)})
    os.close(writing)
    time.sleep(0.5)
    with open(reading, "rb") as file:
        assert len(file.read()) == 1_000_001
    assert process.wait(60) == 0


# ------------------------------------------------------------------------------------------------ a launcher in between


def test_what_would_end_the_launcher_is_known_before(tmp_path: Path) -> None:
    launcher = tmp_path / "mpirun"  # by its name
    launcher.symlink_to(sys.executable)
    code = "import os, sys; sys.path[:0] = sys.argv[1:]; from hpcsplit.report.terminal import launcher_would_fail\n"
    code += "os.close(2) if os.fork() else (sys.stdin.read(1), os._exit(launcher_would_fail(1)))\n"
    code += "raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]))"
    for leaves in (False, True):
        reading, writing = os.pipe()
        command = ["mpirun", "-S", "-c", code, str(PROJECT), *sys.path]
        process = subprocess.Popen(command, executable=launcher, stdin=subprocess.PIPE, stdout=writing)
        os.close(writing)
        if leaves:
            os.close(reading)
        process.communicate(b"x", timeout=60)
        assert process.returncode == (errno.EPIPE if leaves else 0)
        if not leaves:
            os.close(reading)
    assert launcher_would_fail(1) == 0  # there is none


# ------------------------------------------------------------------------------------------------ paths and limits


@pytest.mark.parametrize("path", [pytest.param("${PLACE}/$PART", marks=pytest.mark.weekly), "~/$PART"])
def test_home_and_variables_are_filled_in(toml: Path, tmp_path: Path, path: str) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    command = f"$hpcsplit train {toml} --run.stages 1 --schedule.epochs 1 '--run-dir={path}'"
    done = program(command, here, HOME=str(home), PLACE=str(home), PART="r")
    assert (done.returncode, list(here.iterdir())) == (0, [])
    assert finished(home / "r") == 1


@pytest.mark.parametrize("path", ["$NOWHERE/r", "${NOWHERE}", "$EMPTY/r", "~nobody-of-this-name/r", "$"])
@pytest.mark.parametrize("command", ["plan {toml} --run-dir {path}", "evaluate {path}", "report x --out {path}.png"])
def test_what_stands_for_no_path_is_refused(toml: Path, tmp_path: Path, path: str, command: str) -> None:
    line = command.format(toml=toml, path=f"'{path}'").replace("'.png", ".png'")
    done = program(f"$hpcsplit {line}", tmp_path, EMPTY="")
    assert done.returncode == 64
    assert done.stderr.startswith("hpcsplit: the path ")
    assert [file.name for file in tmp_path.iterdir()] == ["small.toml"]


def test_the_limit_of_open_files_is_raised(tmp_path: Path) -> None:
    code = "from hpcsplit.files.nofollow import raise_limit; import resource\n"
    code += "print(raise_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    done = program(f"ulimit -Sn 100; ulimit -Hn 300; {sys.executable} -c '{code}'", tmp_path)
    assert done.stdout == "300 300 300\n"


@pytest.mark.parametrize("limit", [16, *(pytest.param(n, marks=pytest.mark.weekly) for n in (8, 12, 18, 19))])
def test_too_many_open_files_are_one_sentence(toml: Path, tmp_path: Path, limit: int) -> None:
    """Whichever file is the one too many; 21 are enough where the process has been given none to start with."""
    done = program(f"ulimit -n {limit}; $hpcsplit train {toml} --run.stages 4 --run-dir r", tmp_path)
    assert done.returncode == 77
    assert f"may have only {limit} files open" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_finds_the_modules_that_python_m_finds(toml: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net(input_shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 4), nn.Linear(4, classes))\n"
    )
    script = tmp_path / "bin" / "hpcsplit"
    script.parent.mkdir()
    script.write_text("import sys\nfrom hpcsplit.cli import main\nsys.exit(main())\n")
    for start in ("$hpcsplit", f"{sys.executable} {script}"):
        done = program(f"{start} plan {toml} --model.name mine:net --ranks 2", tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
