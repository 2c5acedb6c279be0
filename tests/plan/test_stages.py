"""What the plan says of layer-wise methods, whose variables stand at every block, and of gradients that come late."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from hpcsplit.plan.advice import advice
from tests.engine.small import config, planned

ROWS, WIDTH, CLASSES = 100, 8, 10
PDADMM: dict[str, Any] = {
    "data__batch_size": 0,
    "data__limit_train": ROWS,
    "data__augment": False,
    "model__name": "mlp",
    "model__depth": 3,
    "model__width": WIDTH,
    "method__name": "pdadmm",
    "schedule__ratio": "0:1",
    "schedule__epochs": 1,
    "schedule__warmup": 0,
    "split__cuts": [2],  # hidden1 hidden2 | hidden3 head
}
INDEX_BYTES = 8  # beside each stored row


def stages(**changes: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = planned(config(2, **PDADMM | changes), 2)["stages"]
    return rows


@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("bfloat16", 2)])
def test_the_store_has_a_row_for_each_variable_of_each_layer(dtype: str, itemsize: int) -> None:
    first, last = stages(store__dtype=dtype)
    # z q u of hidden1, whose input is the image; p z q u of hidden2
    assert first["store_bytes"] == ROWS * (7 * WIDTH * itemsize + 7 * INDEX_BYTES)
    # p z q u of hidden3; p z of the head
    assert last["store_bytes"] == ROWS * ((5 * WIDTH + CLASSES) * itemsize + 6 * INDEX_BYTES)


def test_one_stage_alone_has_all_variables_and_no_traffic() -> None:
    (alone,) = planned(config(1, **PDADMM | {"split__cuts": "flops"}), 1)["stages"]
    # z q u, p z q u, p z q u; p z of the head
    assert alone["store_bytes"] == ROWS * ((12 * WIDTH + CLASSES) * 4 + 13 * INDEX_BYTES)
    assert (alone["to_next_bytes"], alone["to_prev_bytes"]) == (0, 0)


@pytest.mark.parametrize(
    ("exchange", "row_bytes"),
    [("float32", 4 * WIDTH), ("float16", 2 * WIDTH), ("int8", WIDTH + 2)],  # 2 of its scale
)
def test_p_goes_back_and_q_with_u_goes_on(exchange: str, row_bytes: int) -> None:
    first, last = stages(method__exchange=exchange)
    assert (first["to_prev_bytes"], first["to_next_bytes"]) == (0, ROWS * (row_bytes + 4 * WIDTH))
    assert (last["to_prev_bytes"], last["to_next_bytes"]) == (ROWS * row_bytes, 0)


def test_delayed_gradients_keep_mini_batches_in_flight() -> None:
    found = planned(config(3, method__name="delayed"), 3)
    assert found["delays"] == [2, 1, 0]
    assert planned(config(3, method__name="delayed", method__timetable="step"), 3)["delays"] == [4, 2, 0]
    assert planned(config(3, method__name="delayed", method__microbatches=4), 3)["delays"] == [0.5, 0.25, 0]
    assert planned(config(3), 3)["delays"] == [0, 0, 0]
    assert [s["store_bytes"] for s in found["stages"]] == [0, 0, 0]
    assert all(s["to_prev_bytes"] == before["to_next_bytes"] > 0 for before, s in pairwise(found["stages"]))


def test_old_gradients_are_advised_to_be_younger_and_corrected() -> None:
    def advised(**changes: Any) -> dict[str, str]:
        c = config(3, method__name="delayed", run__baseline=False, **changes)
        return {item: choice for item, choice, _ in advice(c, [planned(c, 3)]) if item.startswith("method")}

    assert advised() == {"method.microbatches": "2", "method.predict, method.spike": "true"}
    assert advised(method__timetable="step", method__microbatches=2, optim__name="adam") == {"method.microbatches": "4"}
    assert advised(method__microbatches=2, method__predict=True, method__spike=True) == {}
    assert advised(method__microbatches=4, method__weights="stale") == {}


def test_only_methods_that_keep_variables_are_advised_to_have_exact_epochs() -> None:
    delayed, penalty = (config(3, method__name=name, run__baseline=False) for name in ("delayed", "penalty"))
    choices = [{item: choice for item, choice, _ in advice(c, [planned(c, 3)])} for c in (delayed, penalty)]
    assert choices[0]["schedule.ratio"] == "0:1"
    assert choices[1]["schedule.ratio"] in ("4:1", "3:2", "2:3", "1:4")
    assert ["store.dtype" in choice for choice in choices] == [False, True]
