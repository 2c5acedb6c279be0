"""The MPI runner gives the answers of the lockstep runner, and does not block where MPI alone would."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcsplit.wire import lockstep
from hpcsplit.wire.port import Program
from tests.wire.launch import needs_mpi, python
from tests.wire.programs import PROGRAMS

pytestmark = [needs_mpi, pytest.mark.mpi]


SETTINGS = [
    (2, "at once"),
    (3, "late"),
    *(pytest.param(each, marks=pytest.mark.weekly) for each in ((2, "late"), (3, "at once"))),
]


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda setting: f"{setting[0]} ranks, {setting[1]}")
def setting(request: pytest.FixtureRequest) -> tuple[int, str]:
    """How many ranks there are, and when their copies to the host end."""
    chosen: tuple[int, str] = request.param
    return chosen


@pytest.fixture(scope="module")
def ranks(setting: tuple[int, str]) -> int:
    return setting[0]


@pytest.fixture(scope="module")
def answers(setting: tuple[int, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What the programs have answered."""
    path: Path = tmp_path_factory.mktemp("wire") / "answers.json"
    ended = python("-m", "tests.wire.over_mpi", path, setting[1], ranks=setting[0], limit_s=60)
    assert ended.code == 0, ended.err
    answers: dict[str, list[Any]] = json.loads(path.read_text())
    return answers


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_same_answers_as_lockstep(
    answers: dict[str, list[Any]], ranks: int, program: Callable[[int, int], Program]
) -> None:
    expected = lockstep.run([program(rank, ranks) for rank in range(ranks)])
    assert answers[program.__name__] == json.loads(json.dumps(expected))


def test_big_messages_both_ways_at_once(answers: dict[str, list[Any]], ranks: int) -> None:
    assert answers["big_both_ways"] == [True] * ranks
    assert answers["many_big_both_ways"] == [True] * ranks


def test_many_unread_messages(answers: dict[str, list[Any]], ranks: int) -> None:
    assert answers["many_unread"] == [True] * ranks


def test_messages_on_their_way_are_bounded(answers: dict[str, list[Any]]) -> None:
    """Memory for messages does not grow with how far a stage is ahead; the bounds are used, too."""
    assert answers["flood"][0] == 8
    assert answers["taken_in"][1] == 16


def test_nothing_is_on_its_way_when_a_program_has_ended(answers: dict[str, list[Any]], ranks: int) -> None:
    assert answers["on_their_way"] == [0] * ranks


def test_the_library_is_named(answers: dict[str, str]) -> None:
    assert re.fullmatch(r"(MPICH|Open MPI|Intel).*\d\.\d.*", answers["library"])


def test_an_import_does_not_begin_with_mpi() -> None:
    """Under a launcher that belongs to another MPI, that may hang."""
    ended = python("-c", "import hpcsplit.wire.mpi; from mpi4py import MPI; print(MPI.Is_initialized())")
    assert ended.out == "False\n"


def test_clocks_of_other_hosts_are_compared_with_ours(answers: dict[str, list[Any]], ranks: int) -> None:
    for rank, (one_host, many) in enumerate(answers["clock_offset"]):
        assert one_host == [0.0] * ranks
        assert many == pytest.approx([100 * (other - rank) for other in range(ranks)], abs=1.0)


def test_shared_memory_has_no_name_that_could_be_left_behind(answers: dict[str, list[Any]], ranks: int) -> None:
    assert answers["names_left"] == [[]] * ranks


def test_waiting_for_a_late_sender_is_imbalance(answers: dict[str, list[Any]]) -> None:
    receiver = answers["late_sender"][1]
    assert 0.3 < receiver["imbalance_s"] < 1.0
    assert receiver["exposed_s"] < 0.1


def test_a_rank_that_waits_works(answers: dict[str, list[Any]]) -> None:
    """What it does meanwhile is no wait."""
    left, imbalance_s = answers["has_work"][1]
    assert left == 0
    assert 0.1 < imbalance_s < 0.35


def test_waiting_for_a_slow_message_is_no_imbalance(answers: dict[str, list[Any]]) -> None:
    receiver = answers["slow_message"][1]
    if answers["late"]:  # its values came to the sender's host only after the computation
        assert receiver["imbalance_s"] > 0.3
    else:
        assert receiver["imbalance_s"] < 0.25
    assert receiver["exposed_s"] > 0.0


def test_a_sender_does_not_wait_for_a_late_receiver(answers: dict[str, list[Any]]) -> None:
    assert answers["late_sender"][0]["exposed_s"] < 0.1


def test_a_wrong_message_is_named_on_the_rank_that_got_it(answers: dict[str, list[Any]]) -> None:
    sentence = "stage 1 waits for 'x' of shape (3,) (torch.float32) from stage 0, got (2,) (torch.float32)"
    assert answers["wrong_shape"][:2] == [None, sentence]
