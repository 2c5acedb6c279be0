"""One thread: the networks here are tiny, and on a shared machine more threads wait for each other.  No example of
hypothesis has a deadline there, either, and how many there are is said by tests/fuzz.py."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from tests.fuzz import SHARE, examples
from tests.wire.launch import PYTHONPATH, ROOT

settings.register_profile("shared machine", deadline=None, max_examples=examples(100))
settings.load_profile("shared machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SHARE < 1 and item.get_closest_marker("weekly"):
            item.add_marker(pytest.mark.skip(reason="HPCSPLIT_FUZZ=full tries it"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    slow_files = list(dict.fromkeys(item.path for item in items if item.get_closest_marker("slow")))
    others = [item for item in items if item.path not in slow_files]
    edges = [k * len(others) // workers for k in range(workers + 1)]
    # Each worker begins with some of the files that have slow tests, so that none is left for the end.
    items[:] = [
        item
        for k in range(workers)
        for item in (*(i for i in items if i.path in slow_files[k::workers]), *others[edges[k] : edges[k + 1]])
    ]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def lean_processes() -> Iterator[None]:
    """Those that tests start find the repository, and start sooner (tests/lean)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHONPATH)
        yield


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have torch's compiler all the same, which FSDP looks into."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
