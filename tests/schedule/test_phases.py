"""Which epochs are serial and which parallel: erratum 8, said once more by writing the cycles down."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcsplit.schedule.hybrid import phases

Parameters = tuple[int, int, int, str, int]
ORDERS = ("alternate", "parallel-first")


def short(plan: tuple[str, ...]) -> str:
    """S and P, one letter an epoch."""
    return "".join({"serial": "S", "parallel": "P"}[phase] for phase in plan)


def expected(epochs: int, serial: int, parallel: int, order: str, warmup: int) -> str:
    """Whole cycles, then the serial remainder; a warm-up longer than the first group borrows from the end."""
    if parallel == 0:
        return "S" * epochs
    if serial == 0:
        return "S" * warmup + "P" * (epochs - warmup)
    cycles = epochs // (serial + parallel)
    plan = ("S" * serial + "P" * parallel) * cycles
    plan += "S" * (epochs - len(plan))
    if order == "parallel-first":
        all_serial = plan.count("S")
        return "S" * warmup + "P" * plan.count("P") + "S" * (all_serial - warmup)
    while len(plan) - len(plan.lstrip("S")) < warmup:
        last = plan.rindex("S")
        plan = "S" + plan[:last] + plan[last + 1 :]
    return plan


@st.composite
def parameters(draw: st.DrawFn) -> Parameters:
    """Anything that the configuration lets through."""
    serial, parallel = draw(st.tuples(st.integers(0, 5), st.integers(0, 6)).filter(any))
    epochs = draw(st.integers(0, 60))
    most = epochs
    if serial and parallel:
        cycles, rest = divmod(epochs, serial + parallel)
        most = cycles * serial + rest
    return epochs, serial, parallel, draw(st.sampled_from(ORDERS)), draw(st.integers(0, most))


@given(parameters())
def test_the_plan_is_that_of_the_written_out_cycles(given_parameters: Parameters) -> None:
    assert short(phases(*given_parameters)) == expected(*given_parameters)


@given(parameters())
def test_the_ratio_fixes_the_number_of_parallel_epochs_whatever_the_warm_up_and_the_order(
    given_parameters: Parameters,
) -> None:
    """The warm-up comes first; no parallel phase is shorter than a cycle's parallel epochs."""
    epochs, serial, parallel, _, warmup = given_parameters
    plan = short(phases(*given_parameters))
    assert len(plan) == epochs
    assert plan.startswith("S" * warmup)
    if serial and parallel:
        assert plan.count("P") == epochs // (serial + parallel) * parallel
        assert all(len(phase) % parallel == 0 for phase in plan.split("S"))
    else:
        assert plan.count("P") == (epochs - warmup if parallel else 0)


@pytest.mark.parametrize(
    ("given_parameters", "plan"),
    [
        ((11, 1, 4, "alternate", 1), "SPPPPSPPPPS"),
        ((11, 1, 4, "parallel-first", 1), "SPPPPPPPPSS"),
        ((10, 1, 4, "alternate", 0), "SPPPPSPPPP"),
        ((10, 1, 4, "parallel-first", 0), "PPPPPPPPSS"),  # section 4.1: 80 %, then 20 %
        ((10, 0, 1, "alternate", 1), "SPPPPPPPPP"),
        ((4, 1, 4, "alternate", 1), "SSSS"),  # no whole cycle
        ((11, 1, 4, "alternate", 3), "SSSPPPPPPPP"),
        ((5, 1, 0, "alternate", 2), "SSSSS"),
        ((0, 1, 4, "alternate", 0), ""),
    ],
)
def test_plans_by_hand(given_parameters: Parameters, plan: str) -> None:
    assert short(phases(*given_parameters)) == plan


def test_a_long_plan_takes_no_longer_than_its_epochs() -> None:
    plan = phases(10**6, 1, 1, "alternate", 4 * 10**5)
    assert len(plan) == 10**6
    assert plan.count("parallel") == 5 * 10**5
