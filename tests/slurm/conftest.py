"""One cluster for all tests; a folder to submit from for each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import STANDIN, Cluster, Desk, missing


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    running = Cluster.start(tmp_path_factory.mktemp("slurm"))
    yield running
    running.stop()


@pytest.fixture
def desk(cluster: Cluster, tmp_path: Path) -> Desk:
    """Jobs start the real program."""
    return Desk(cluster, tmp_path, {"HPCSPLIT_VENV": str(Path(sys.executable).parents[1])})


@pytest.fixture
def mock_desk(cluster: Cluster, tmp_path: Path) -> Desk:
    """Jobs start the stand-in, which does what $STANDIN says."""
    return Desk(cluster, tmp_path, {"HPCSPLIT_VENV": str(STANDIN), "STANDIN": "0"})
