"""The numbers stay what they were: the weights after every epoch of every method, and a run of an earlier version."""

from __future__ import annotations

import json

import pytest

from hpcsplit.config.declared import declared_methods
from tests.golden.runs import EXPECTED, METHODS, in_portable_arithmetic


def test_the_weights_of_every_epoch_are_those_of_before() -> None:
    expected, found = json.loads(EXPECTED.read_text()), in_portable_arithmetic()
    assert found["runs"].keys() == expected["runs"].keys()
    for name, epochs in expected["runs"].items():
        losses = [loss for _, loss in found["runs"][name]]
        assert losses == pytest.approx([loss for _, loss in epochs], rel=1e-3, nan_ok=True), name
    if found["torch"] == expected["torch"]:
        assert found["runs"] == expected["runs"]


def test_every_method_is_among_them() -> None:
    assert {name.split()[0] for name in METHODS} == declared_methods().keys()
