"""Findings from what the ranks say of themselves: invented places, so that every kind of place can be one."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from hpcsplit.doctor import start
from hpcsplit.doctor.finding import Finding, Status, as_json, show
from hpcsplit.doctor.messages import neighbours
from hpcsplit.doctor.start import Device, Surroundings, look_around, older, required, versions
from hpcsplit.host.launchers import launcher_name
from hpcsplit.host.printable import spans

PLACE = Surroundings(0, 0, "n1", (0, 1), 8, 0.5, None, 0, versions())


def on_gpus(*uuids: str) -> list[Surroundings]:
    return [
        replace(PLACE, rank=r, local_rank=r, cores=(r,), device=Device("H100", uuid)) for r, uuid in enumerate(uuids)
    ]


def test_a_place_survives_the_way_to_rank_0() -> None:
    for place in (look_around(1, 0), *on_gpus("a")):
        assert msgspec.json.decode(msgspec.json.encode(place), type=Surroundings) == place


def test_a_host_with_a_core_and_a_gpu_for_each_rank() -> None:
    [finding] = start.ranks(on_gpus("a", "b"))
    assert finding.status == Status.GOOD
    assert finding.found == "n1: ranks 0-1, 2 of 8 cores (0-1), 1 each, load 0.5, 2 x H100"


@pytest.mark.parametrize(
    ("places", "advice"),
    [
        ([replace(PLACE, rank=r, cores=(3,)) for r in range(2)], "2 ranks share 1 core"),
        (on_gpus("a", "a"), "2 ranks compute on 1 GPU"),
        ([replace(PLACE, hidden_devices=4)], "the host has 4 GPUs, torch sees none"),
    ],
)
def test_a_host_where_something_is_short(places: list[Surroundings], advice: str) -> None:
    [finding] = start.ranks(places)
    assert finding.status == Status.SLOW
    assert advice in finding.advice


def test_every_host_has_its_line() -> None:
    found = start.ranks([replace(PLACE, rank=rank, host=f"n{rank // 2}") for rank in range(4)])
    assert [finding.found[:14] for finding in found] == ["n0: ranks 0-1,", "n1: ranks 2-3,"]


def test_packages() -> None:
    assert required()["torch"]
    assert start.packages([PLACE, replace(PLACE, rank=1)]).status == Status.GOOD
    old = replace(PLACE, versions={**PLACE.versions, "torch": "1.13.1+cu117"})
    assert "torch 1.13.1+cu117 is older than" in start.packages([old]).advice
    absent = replace(PLACE, versions={**PLACE.versions, "rich": ""})
    assert "rich is absent" in start.packages([absent]).advice
    assert "rank 1 on n1 has another version of torch" in start.packages([PLACE, replace(old, rank=1)]).advice


def test_a_slow_start() -> None:
    assert start.start_up(5).status == Status.GOOD
    assert start.start_up(31).status == Status.SLOW


def test_a_slurm_job() -> None:
    job = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_PER_TASK": "2", "HOME": "/home/ada"}
    assert start.slurm(PLACE, {}) == []
    [finding] = start.slurm(PLACE, job)
    assert (finding.status, finding.found) == (Status.GOOD, "job 12 on n[1-2], 2 CPUs a task")
    assert "HOME" not in finding.data
    [finding] = start.slurm(replace(PLACE, cores=(0,)), job)
    assert (finding.status, "SRUN_CPUS_PER_TASK" in finding.advice) == (Status.SLOW, True)


def edge(latency_us: float, gigabytes_s: float) -> dict[str, float]:
    return {"latency_s": latency_us * 1e-6, "bandwidth": gigabytes_s * 1e9}


def test_messages() -> None:
    places = [replace(PLACE, rank=rank, host=f"n{rank // 2}") for rank in range(4)]
    near, far = neighbours([edge(2, 9), edge(40, 2), edge(4, 11), None], places)
    assert near.found == "on a host: 3 µs, 10 GB/s (medians of 2 pairs); slowest 2-3: 4 µs, 11 GB/s"
    assert (near.status, far.status) == (Status.GOOD, Status.GOOD)
    assert far.found == "between hosts: 40 µs, 2 GB/s"
    assert neighbours([None], places[:1]) == []


@pytest.mark.parametrize("numbers", [edge(101, 9), edge(2, 0.9)])
def test_slow_messages(numbers: dict[str, float]) -> None:
    places = [replace(PLACE, rank=rank) for rank in range(3)]
    [finding] = neighbours([edge(2, 9), numbers, None], places)
    assert finding.status == Status.SLOW
    assert finding.advice.startswith("ranks 1-2 need more than 100 µs or less than 1 GB/s")
    assert finding.advice.endswith("give each rank a core of its own")  # three ranks on two cores
    apart = [replace(place, host=f"n{place.rank}") for place in places]
    assert "fast network" in neighbours([edge(2, 9), numbers, None], apart)[0].advice


@pytest.mark.parametrize(("numbers", "text"), [([], ""), ([4], "4"), ([2, 0, 1, 7, 9, 8, 5], "0-2,5,7-9")])
def test_spans(numbers: list[int], text: str) -> None:
    assert spans(numbers) == text


def test_versions_are_compared_as_numbers() -> None:
    assert older("2.6.0", "2.15")
    assert not older("2.15.0+cu132", "2.6")
    assert not older("3.11", "3.11.0")


def test_the_launcher_is_found_among_the_ancestors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)

    def process(pid: int, name: str, parent: int) -> None:
        (tmp_path / str(pid)).mkdir(exist_ok=True)
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) S {parent} 0 0")

    process(30, "python", 20)
    process(20, "sh) (odd", 10)
    process(10, "hydra_pmi_proxy", 1)
    assert launcher_name(tmp_path, 30) == "mpirun of MPICH"
    process(10, "prterun", 1)
    assert launcher_name(tmp_path, 30) == "mpirun of Open MPI"
    process(10, "slurmstepd", 1)
    assert launcher_name(tmp_path, 30) == ""  # a batch script is no step
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert launcher_name(tmp_path, 30) == "srun"
    process(10, "init", 1)
    assert launcher_name(tmp_path, 30) == ""


FINDINGS = [
    Finding("MPI", "MPICH [5.0] :smile:"),
    Finding("scratch", "a " * 200, Status.SLOW, "look for another"),
    Finding("scratch", "b", Status.BROKEN, "ask"),
]


def test_the_table() -> None:
    stream = io.StringIO()
    show(FINDINGS, stream)
    lines = stream.getvalue().splitlines()
    assert "MPICH [5.0] :smile:" in stream.getvalue()
    assert max(map(len, lines)) <= 120
    assert lines == [line.rstrip() for line in lines]
    assert sum(" scratch " in line for line in lines) == 1
    assert lines[-1].startswith("Something is broken")
    assert [line.strip() for line in lines if "->" in line][:2] == ["-> look for another", "-> ask"]


def test_json() -> None:
    answer = json.loads(as_json(FINDINGS))
    assert answer["status"] == "broken"
    assert msgspec.convert(answer["findings"], list[Finding]) == FINDINGS


def test_what_is_not_good_has_an_advice() -> None:
    with pytest.raises(AssertionError):
        Finding("MPI", "absent", Status.BROKEN)
    with pytest.raises(AssertionError):
        Finding("MPI", "there", Status.GOOD, "do nothing")
