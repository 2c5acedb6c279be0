from __future__ import annotations

import io
import os
import pty
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from hpcsplit.report.terminal import DEFAULT_WIDTH, terminal_of, terminal_width


@pytest.fixture
def pipe() -> Iterator[TextIO]:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        yield stream
    os.close(reader)


@pytest.fixture
def pseudo_terminal() -> Iterator[TextIO]:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        yield stream
    os.close(ours)


def process_tree(proc: Path, *chain: tuple[str, str]) -> int:
    """A /proc with the chain (name, standard output), youngest first; the youngest's process id."""
    for age, (name, output) in enumerate(chain):
        pid = 100 - age
        parent = pid - 1 if age + 1 < len(chain) else 1
        (proc / str(pid) / "fd").mkdir(parents=True)
        (proc / str(pid) / "stat").write_text(f"{pid} ({name}) S {parent} 1 1")
        (proc / str(pid) / "fd" / "1").symlink_to(output)
    return 100


@pytest.mark.parametrize(
    ("launcher", "output", "answer"),
    [
        ("mpirun", "/dev/pts/3", "/dev/pts/3"),
        ("mpiexec.hydra", "/dev/tty1", "/dev/tty1"),
        ("mpiexec", "/dev/tty1", "/dev/tty1"),
        ("srun", "/dev/tty1", "/dev/tty1"),
        ("orterun", "/dev/tty1", "/dev/tty1"),
        ("prterun", "/home/me/log", None),
        ("mpirun", "pipe:[7]", None),
        ("prted", "/dev/pts/3", None),
        ("odd) name (", "/dev/pts/3", None),
    ],
)
def test_the_standard_output_of_the_launcher_decides(
    tmp_path: Path, pipe: TextIO, launcher: str, output: str, answer: str | None
) -> None:
    tree = process_tree(tmp_path, ("python", "pipe:[1]"), ("hydra_pmi_proxy", "pipe:[2]"), (launcher, output))
    assert terminal_of(pipe, tmp_path, tree) == answer


def test_the_private_terminal_of_an_open_mpi_rank_is_not_a_person(tmp_path: Path, pseudo_terminal: TextIO) -> None:
    tree = process_tree(tmp_path, ("python", "/dev/pts/9"), ("prterun", "/home/me/log"))
    assert terminal_of(pseudo_terminal, tmp_path, tree) is None


def test_without_a_launcher_the_stream_itself_answers(tmp_path: Path, pipe: TextIO, pseudo_terminal: TextIO) -> None:
    tree = process_tree(tmp_path, ("python", "/dev/pts/9"), ("bash", "/dev/pts/9"))
    assert terminal_of(pseudo_terminal, tmp_path, tree) is not None
    assert terminal_of(pipe, tmp_path, tree) is None
    assert terminal_of(pipe, tmp_path / "no-proc", 100) is None


def test_a_file_or_a_buffer_is_no_terminal(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        assert terminal_of(file) is None
    assert terminal_of(io.StringIO()) is None


def test_the_width_of_a_terminal(pseudo_terminal: TextIO) -> None:
    import fcntl
    import struct
    import termios

    device = os.ttyname(pseudo_terminal.fileno())
    assert terminal_width(device) == DEFAULT_WIDTH  # a new one says 0
    fcntl.ioctl(pseudo_terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 132, 0, 0))
    assert terminal_width(device) == 132
    assert terminal_width("/dev/pts/no-such") == DEFAULT_WIDTH
