"""On the PYTHONPATH of the tests' jobs: Python imports this at its start, and the program starts sooner."""

from tests.whole import lean  # noqa: F401
