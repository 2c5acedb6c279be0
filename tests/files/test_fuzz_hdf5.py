"""Damaged files of a checkpoint: the checksum stops every one before it is parsed; without it each is read, or refused
in a sentence.  2,000 damages in all, a tenth of them unless HPCSPLIT_FUZZ says otherwise (tests/fuzz.py).
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcsplit.config import load
from hpcsplit.engine.job import Job
from hpcsplit.engine.resume import resume
from hpcsplit.errors import CheckpointError
from hpcsplit.files import hdf5
from hpcsplit.files.hdf5_format import Contents
from hpcsplit.wire import lockstep
from tests.checkpoint.conftest import Run, half_done
from tests.engine.small import make_jobs
from tests.files.mutations import KINDS, Mutation, damaged
from tests.fuzz import examples
from tests.wire.launch import python

CHECKED, READ = examples(1300), examples(700)
SUMS = "SHA256SUMS"
NAMES = ["stage-000.h5", "stage-001.h5", "manifest.h5", "aux-block-003.lam.h5", SUMS]


@dataclass(repr=False)
class Victim:
    """A half-finished run, its jobs ready to be continued, and what has been parsed."""

    run: Run
    jobs: list[Job]
    intact: dict[str, bytes]
    opened: list[str] = field(default_factory=list)

    def see(self, path: Path, image: bytes) -> None:
        """Note which files of the checkpoint are parsed in a damaged state."""
        if path.parent == self.run.newest and image != self.intact[path.name]:
            self.opened.append(path.name)

    def verdict(self, name: str, content: bytes) -> str:
        """Continue with this content in the place of one file: the sentence, or "" where the run goes on."""
        path = self.run.newest / name
        path.write_bytes(content)
        try:
            lockstep.run([resume(job) for job in self.jobs])
        except CheckpointError as error:
            return str(error)
        finally:
            path.write_bytes(self.intact[name])
        return ""


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return half_done(tmp_path_factory.mktemp("fuzz"), checkpoint__aux="copy")


@pytest.fixture(scope="module")
def victim(half: Run) -> Iterator[Victim]:
    jobs = make_jobs(load(half.toml, [("run.runner", "lockstep")]), 2, half.folder)
    victim = Victim(half, jobs, {p.name: p.read_bytes() for p in half.newest.iterdir()})
    assert sorted(victim.intact) == sorted(NAMES)
    with pytest.MonkeyPatch.context() as patch:
        parse_image, parse_file = hdf5.Stored.__init__, hdf5._contents

        def watched_image(self: hdf5.Stored, image: bytes, path: Path) -> None:
            victim.see(path, image)
            parse_image(self, image, path)

        def watched_file(path: Path) -> tuple[Contents, int]:
            victim.see(path, path.read_bytes())
            return parse_file(path)

        patch.setattr(hdf5.Stored, "__init__", watched_image)
        patch.setattr(hdf5, "_contents", watched_file)
        yield victim
    for job in jobs:
        if job.store:
            job.store.close()


def test_the_checkpoint_is_good_and_the_watch_sees(victim: Victim) -> None:
    """A guard for the test below."""
    assert victim.verdict("manifest.h5", victim.intact["manifest.h5"]) == ""
    assert victim.opened == []
    path = victim.run.newest / "manifest.h5"
    path.write_bytes(victim.intact["stage-000.h5"])
    hdf5.read_attributes(path)
    path.write_bytes(victim.intact["manifest.h5"])
    assert victim.opened == ["manifest.h5"]
    victim.opened.clear()


@settings(
    max_examples=CHECKED,
    deadline=20_000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(name=st.sampled_from(NAMES), mutation=st.builds(Mutation, st.sampled_from(KINDS), st.integers(0, 2**32)))
def test_the_checksum_stops_every_damage_first(victim: Victim, name: str, mutation: Mutation) -> None:
    other = victim.intact[NAMES[(NAMES.index(name) + 1) % len(NAMES)]]
    content = mutation.apply(victim.intact[name], other)
    said = victim.verdict(name, content)
    assert victim.opened == []
    if content == victim.intact[name]:
        assert said == ""
    elif name != SUMS:
        assert "is damaged" in said
        assert "Remove that folder and start again" in said
    else:  # sums may lose a line end, or the line of a file, and then that file is missing
        assert said == "" or "is damaged" in said


@pytest.mark.parametrize("number", range(10))
def test_the_command_ends_with_65_and_one_sentence(
    half: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    shutil.copytree(half.folder.parent, tmp_path / "copy", symlinks=True)
    run = Run(tmp_path / "copy" / "c.toml", tmp_path / "copy" / "run")
    path = run.newest / NAMES[number % 4]
    other = run.newest / NAMES[(number + 1) % 4]
    path.write_bytes(damaged(path.read_bytes(), other.read_bytes(), KINDS[number % len(KINDS)], number))
    capsys.readouterr()
    assert run.go() == 65
    said = capsys.readouterr().err
    assert said.startswith("hpcsplit: ")
    assert said.count("\n") == 1
    assert "is damaged" in said


def test_without_the_checksum_it_is_read_or_refused(half: Run, tmp_path: Path) -> None:
    for name in NAMES[:-1]:
        shutil.copy(half.newest / name, tmp_path / name)
    ended = python("-m", "tests.files.reading", tmp_path, READ, limit_s=120 + READ)
    assert ended.code == 0, ended.err
    found = [json.loads(line) for line in ended.out.splitlines()]
    assert [each["n"] for each in found] == list(range(READ))
    print(table(found))
    outcomes = Counter(each["outcome"].split()[0] for each in found)
    assert outcomes.keys() == {"read", "sentence"}, outcomes
    assert min(outcomes["read"], outcomes["sentence"]) > 0.2 * len(found), outcomes
    assert {each["outcome"] for each in found if each["kind"] == "truncate"} == {"sentence"}


def table(found: list[dict[str, Any]]) -> str:
    """Kinds of damage, and what reading them without a checksum has come to."""
    lines = [f"{'damage':<10} {'tried':>6} {'sentence':>9} {'read':>6} {'crash':>6} {'loop':>5}"]
    for kind in KINDS:
        words = [each["outcome"].split()[0] for each in found if each["kind"] == kind]
        counts = [len(words), *(words.count(word) for word in ("sentence", "read", "crash", "loop"))]
        lines.append("{:<10} {:>6} {:>9} {:>6} {:>6} {:>5}".format(kind, *counts))
    return "\n".join(lines)
