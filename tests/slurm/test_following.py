"""What follows the end of the program, on a real Slurm; a stand-in takes the program's place, so jobs take a second."""

from __future__ import annotations

import re

import pytest
import torch

from hpcsplit.plan.setting import Setting
from tests.engine.small import config
from tests.slurm.cluster import Desk, Job

pytestmark = pytest.mark.slow
ALONE = "--ntasks-per-node=1"


def test_exit_75_is_requeued_and_goes_on_in_the_same_run_directory(mock_desk: Desk) -> None:
    """The ranks leave a second apart; srun ends the later one by TERM, which it survives."""
    job = mock_desk.sbatch("jobs/one-node.sbatch", "some/c.toml", "--run.seed", 3, STANDIN="uneven 0")
    assert job.until_over() == ("COMPLETED", "0:0", "1")
    assert mock_desk.started(f"c-{job.id}") == [f"train some/c.toml --run-dir runs/c-{job.id} --run.seed 3"] * 2


@pytest.mark.parametrize(("end", "code"), [("70", "70:0"), ("65", "65:0"), ("137", "137:0"), ("143", "143:0")])
def test_a_failure_is_not_requeued(end: str, code: str, mock_desk: Desk) -> None:
    job = mock_desk.sbatch(ALONE, "jobs/one-node.sbatch", "c.toml", STANDIN=end)
    assert job.until_over() == ("FAILED", code, "0")


def test_a_killed_rank_is_a_failure_and_ends_the_others(mock_desk: Desk) -> None:
    job = mock_desk.sbatch("jobs/one-node.sbatch", "c.toml", STANDIN="killed 0")
    state, _, restarts = job.until_over()
    assert (state, restarts) == ("FAILED", "0")


def test_too_many_restarts(mock_desk: Desk) -> None:
    job = mock_desk.sbatch(ALONE, "jobs/one-node.sbatch", "c.toml", STANDIN="75", HPCSPLIT_RESTARTS="0")
    assert job.until_over() == ("FAILED", "75:0", "0")
    assert "exit 75, but not requeued: started again 0 times, HPCSPLIT_RESTARTS = 0" in job.out()


def test_without_the_right_to_requeue(mock_desk: Desk) -> None:
    job = mock_desk.sbatch(ALONE, "--no-requeue", "jobs/one-node.sbatch", "c.toml", STANDIN="75")
    assert job.until_over() == ("FAILED", "75:0", "0")
    assert "this job may not be requeued: submit it again with --run-dir, or use jobs/chain" in job.out()


@pytest.mark.parametrize(("launcher", "plan"), [("pmi2", "late 0"), ("mpirun", "asked 0")])
def test_a_signal_reaches_the_ranks_even_before_they_listen(launcher: str, plan: str, mock_desk: Desk) -> None:
    job = mock_desk.sbatch("jobs/one-node.sbatch", "c.toml", STANDIN=plan, HPCSPLIT_PMI=launcher)
    job.until_said("rank 0")
    job.ask()
    assert job.until_over() == ("COMPLETED", "0:0", "1")


def test_cancelled_is_not_requeued_even_if_there_was_time_for_a_checkpoint(mock_desk: Desk) -> None:
    job = mock_desk.sbatch("jobs/one-node.sbatch", "c.toml", STANDIN="asked")
    job.until_said("rank 0")
    job.until_said("rank 1")
    mock_desk.cluster.say("scancel", job.id)
    assert job.until_over() == ("CANCELLED", "75:0", "0")
    job.until_said("exit 75 after TERM; the job is ended by Slurm")


def test_each_task_of_a_sweep_is_requeued_by_itself(mock_desk: Desk) -> None:
    """The last task of an array has the id of the whole array."""
    array = mock_desk.sbatch(
        ALONE, "jobs/sweep.sbatch", "c.toml", STANDIN="75 0", HPCSPLIT_SWEEP="schedule.ratio 1:1 1:2 1:3 1:4"
    )
    tasks = [Job(mock_desk, f"{array.id}_{n}") for n in range(4)]
    for n, task in enumerate(tasks):
        assert task.until_over() == ("COMPLETED", "0:0", "1")
        words = f"train c.toml --run-dir runs/c-{task.id} --schedule.ratio 1:{n + 1}"
        assert mock_desk.started(f"c-{task.id}") == [words] * 2


def test_evaluation_and_report_wait_for_a_requeued_training_job(mock_desk: Desk) -> None:
    said = mock_desk.submit(
        "jobs/pipeline", "runs/x", ALONE, "jobs/one-node.sbatch", "c.toml", "--run.seed", 1, STANDIN="asked 0"
    )
    train, evaluate, report = (Job(mock_desk, line.split()[1]) for line in said)
    assert [line.split()[0] for line in said] == ["train", "evaluate", "report"]
    train.until_said("rank 0")
    train.ask()
    train.until(lambda: train.facts()["Restarts"] == "1", "requeued")
    assert evaluate.facts()["JobState"] == report.facts()["JobState"] == "PENDING"
    assert [job.until_over() for job in (train, evaluate, report)] == [
        ("COMPLETED", "0:0", "1"),
        ("COMPLETED", "0:0", "0"),
        ("COMPLETED", "0:0", "0"),
    ]
    training = f"train c.toml --run-dir runs/c-{train.id} --run.seed 1 --run-dir runs/x"
    assert mock_desk.started("x") == [
        training,
        training,
        "evaluate runs/x --config c.toml",
        "report runs/x --out runs/x.png",
    ]


def test_nothing_follows_a_training_job_that_fails(mock_desk: Desk) -> None:
    said = mock_desk.submit("jobs/pipeline", "runs/x", ALONE, "jobs/one-node.sbatch", "c.toml", STANDIN="70")
    train, evaluate, report = (Job(mock_desk, line.split()[1]) for line in said)
    assert train.until_over() == ("FAILED", "70:0", "0")
    assert [job.until_over()[0] for job in (evaluate, report)] == ["CANCELLED", "CANCELLED"]
    assert len(mock_desk.started("x")) == 1


def test_each_task_of_an_experiment_is_requeued_by_itself_and_the_table_waits(mock_desk: Desk) -> None:
    """Nothing is trained, so the table says what is missing."""
    rows = ["--only", "adam,gsadmm-2", "--seeds", 1, "--out", mock_desk.place / "out"]
    words = ["jobs/experiment.sbatch", "tssm-stages", *rows, "--", "--comment=x"]
    said = mock_desk.submit(*words, STANDIN="asked 0")
    assert [line.split()[0] for line in said] == ["array", "array", "table"]
    one, two, table = (Job(mock_desk, line.split()[1]) for line in said)
    tasks = {"adam-0": Job(mock_desk, f"{one.id}_0"), "gsadmm-2-0": Job(mock_desk, f"{two.id}_1")}
    tasks["adam-0"].until_state("RUNNING")
    tasks["adam-0"].ask()  # too early
    for task in tasks.values():
        task.until_said("rank 0")
        task.ask()
    for name, task in tasks.items():
        assert task.until_over() == ("COMPLETED", "0:0", "1")
        facts = task.facts()
        assert (facts["NumTasks"], facts["Comment"]) == ("2" if name == "gsadmm-2-0" else "1", "x")
        first, second = mock_desk.started(name)
        assert first == second
        assert first.startswith("train ")
        assert "--schedule.epochs" not in first  # the paper's, which the file has
        assert first.endswith(f"--run-dir {mock_desk.place}/out/{name}")
    assert table.until_over() == ("FAILED", "70:0", "0")
    assert all(table.facts()["StartTime"] >= task.facts()["EndTime"] for task in tasks.values())
    text = (mock_desk.place / "out" / "tssm-stages.md").read_text()
    assert "- gsadmm-2-0: not finished, see the output of task 1 of the array\n" in text


def chain(desk: Desk, count: int, plan: str) -> list[Job]:
    name, *ids = desk.submit("jobs/chain", count, "runs/x", ALONE, "jobs/one-node.sbatch", "c.toml", STANDIN=plan)
    assert name.startswith("chain-x-")
    assert len(ids) == count
    return [Job(desk, each) for each in ids]


def test_a_chain_goes_on_until_the_run_is_done(mock_desk: Desk) -> None:
    jobs = chain(mock_desk, 4, "75 75 0")
    assert [job.until_over()[:2] for job in jobs[:3]] == [("FAILED", "75:0"), ("FAILED", "75:0"), ("COMPLETED", "0:0")]
    assert jobs[3].until_over()[0] == "CANCELLED"
    assert len(mock_desk.started("x")) == 3


def test_a_chain_ends_when_the_run_fails(mock_desk: Desk) -> None:
    jobs = chain(mock_desk, 3, "75 70 0")
    assert [job.until_over()[0] for job in jobs] == ["FAILED", "FAILED", "CANCELLED"]
    assert len(mock_desk.started("x")) == 2


def test_a_chain_survives_the_end_of_a_job_by_slurm(mock_desk: Desk) -> None:
    first, second = chain(mock_desk, 2, "asked 0")
    first.until_said("rank 0")
    mock_desk.cluster.say("scancel", "--batch", "--signal=TERM", first.id)
    assert first.until_over()[:2] == ("FAILED", "75:0")
    assert "exit 75 after TERM" in first.out()
    assert second.until_over()[:2] == ("COMPLETED", "0:0")


@pytest.mark.parametrize("launcher", ["pmi2", "mpirun"])
@pytest.mark.parametrize("given", ["--gpus-per-node=2", "--gpus-per-task=1"])
def test_each_rank_gets_a_gpu_of_its_own(
    given: str, launcher: str, mock_desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a rank sees all GPUs of its node or one; the numbers are those of the node."""
    job = mock_desk.sbatch(given, "-N", 2, "jobs/several-nodes.sbatch", "c.toml", HPCSPLIT_PMI=launcher)
    assert job.until_over() == ("COMPLETED", "0:0", "0")
    words = f"train c.toml --run-dir runs/c-{job.id} --store.path scratch --checkpoint.aux copy"
    assert mock_desk.started(f"c-{job.id}") == [words]
    taken = set()
    for rank, node, visible in re.findall(r"rank (\d) on (n\d) gpus (\S+)", job.out()):
        gpus = visible.split(",")
        assert len(gpus) == (1 if given == "--gpus-per-task=1" and launcher == "pmi2" else 2)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", gpus.__len__)
        taken.add((node, gpus[Setting(config(run__device="auto")).device(int(rank) % 2).index]))
    assert taken == {("n1", "0"), ("n1", "1"), ("n2", "0"), ("n2", "1")}


def test_threads_follow_the_cores_of_a_task(mock_desk: Desk) -> None:
    job = mock_desk.sbatch("--cpus-per-task=2", "jobs/one-node.sbatch", "c.toml")
    assert job.until_over() == ("COMPLETED", "0:0", "0")
    assert job.out().count("threads 2") == 2
