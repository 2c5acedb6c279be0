"""tools/slurm/up and down."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.cluster import NODES, Cluster

OWN = Path("/etc/slurm/slurm.conf")


def test_all_nodes_are_there(cluster: Cluster) -> None:
    assert cluster.say("sinfo", "-h", "-N", "-o", "%N").split() == [f"n{n + 1}" for n in range(NODES)]


def test_up_again_only_looks(cluster: Cluster) -> None:
    pids = {path: path.read_text() for path in (cluster.folder / "pid").iterdir()}
    assert len(pids) == NODES + 2
    assert cluster.say("tools/slurm/up") == f"export SLURM_CONF={cluster.folder}/slurm.conf\n"
    assert {path: path.read_text() for path in (cluster.folder / "pid").iterdir()} == pids


def test_other_settings_are_refused_while_it_runs(cluster: Cluster) -> None:
    up = cluster.run("tools/slurm/up", TEST_SLURM_CPUS="3")
    assert (up.returncode, up.stdout) == (4, "")
    assert "one with other settings runs in" in up.stderr
    cluster.say("sinfo")


def test_it_leaves_the_machine_s_own_slurm_alone(cluster: Cluster) -> None:
    assert not OWN.is_symlink() or cluster.folder not in OWN.readlink().parents


def test_down_ends_jobs_and_daemons_and_leaves_nothing(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = Cluster.start(tmp_path_factory.mktemp("other"))
    pids = [int(path.read_text()) for path in (other.folder / "pid").iterdir()]
    other.say("sbatch", "-o", "/dev/null", "--wrap", "sleep 100")
    other.stop()
    assert not other.folder.exists()
    for pid in pids:
        status = Path(f"/proc/{pid}/status")
        assert not status.exists() or "State:\tZ" in status.read_text()
    assert other.run("tools/slurm/down").returncode == 0
    cluster.say("sinfo")
