"""One thread: the networks here are tiny, and on a shared machine more threads wait for each other.  No example of
hypothesis has a deadline there, either, and how many there are is said by tests/fuzz.py."""

from __future__ import annotations

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
    """They have torch's compiler all the same, which torchvision and DistributedDataParallel look at."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
