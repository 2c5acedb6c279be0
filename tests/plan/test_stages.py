"""What the plan says of layer-wise methods, whose variables stand at every block, of gradients that come late, and of
the memory of a rank: what autograd keeps, what an optimizer keeps, what is in flight."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from hpcsplit.plan.advice import advice
from hpcsplit.plan.blocks import kept_bytes
from hpcsplit.plan.feasibility import _group_files
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


def test_autograd_keeps_what_backward_needs_once() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.Sequential(nn.ReLU(), nn.Linear(5, 7)), nn.Flatten())
    # the image for the first weight; the result of ReLU, which its own gradient and the second weight share
    assert kept_bytes(net, (3,)) == [4 * 3, 4 * 5, 0]


def test_what_is_kept_once_a_batch_is_no_sample_s() -> None:
    few, norm = kept_bytes(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)), (1, 4, 4))
    assert few == 4 * 16  # the image
    assert norm == 4 * 32  # what the convolution returns, and not the mean and variance of each channel


def test_counting_leaves_the_network_as_it_is() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    kept_bytes(net, (1, 4, 4))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not net.training


@pytest.mark.parametrize(("name", "states"), [("sgd", 1), ("adam", 2), ("adagrad", 1), ("rmsprop", 2)])
def test_optimizers_keep_numbers_for_each_parameter(name: str, states: int) -> None:
    plan = planned(config(1, optim__name=name, optim__momentum=0.9), 1)["stages"][0]
    assert plan["memory"]["weights"] == 4 * (2 + states) * plan["params"]


def memory(ranks: int, **changes: Any) -> list[dict[str, int]]:
    return [stage["memory"] for stage in planned(config(ranks, **changes), ranks)["stages"]]


def test_weights_have_gradients_and_momentum() -> None:
    plan = planned(config(2), 2)
    assert [s["memory"]["weights"] for s in plan["stages"]] == [12 * s["params"] for s in plan["stages"]]


def test_a_pipeline_keeps_what_is_in_flight() -> None:
    # all mini-batches of parallel epochs at once, so that exact epochs alone are seen without them
    exact = {"method__name": "backprop", "schedule__ratio": "1:0", "schedule__warmup": 0}
    whole, gpipe, flushed, small = (
        memory(2, **exact, **changes)[0]["activations"]
        for changes in (
            {},
            {"schedule__microbatches": 4, "schedule__pipeline": "gpipe"},
            {"schedule__microbatches": 4},
            {"schedule__microbatches": 4, "schedule__recompute": True},
        )
    )
    assert gpipe == whole
    assert small < flushed < whole  # two of four micro-batches in flight, and of one of them its input only


@pytest.mark.parametrize(("ranks", "times"), [(1, 1), (2, 1 + 2)])
def test_deferred_weight_gradients_keep_micro_batches_alive(ranks: int, times: int) -> None:
    exact = {"method__name": "backprop", "schedule__ratio": "1:0", "schedule__warmup": 0, "schedule__microbatches": 4}
    plain = memory(ranks, **exact, schedule__deferred=False)[-1]["activations"]  # of one micro-batch on the last stage
    assert memory(ranks, **exact)[-1]["activations"] == plain * times
    assert memory(ranks, **exact, schedule__waiting=1)[-1]["activations"] == plain * min(times, 2)


def test_deferred_weight_gradients_keep_no_more_than_the_mini_batch() -> None:
    """With as many micro-batches as stages: the last stage keeps both, of which one waits; the first has passed both
    forward before it goes backward, so none is left to wait."""
    exact = {"method__name": "backprop", "schedule__ratio": "1:0", "schedule__warmup": 0, "schedule__microbatches": 2}
    late, plain = (memory(2, **exact, schedule__deferred=on) for on in (True, False))
    assert late[0]["activations"] == plain[0]["activations"]
    assert late[1]["activations"] == 2 * plain[1]["activations"]


def test_delayed_gradients_keep_more_mini_batches_on_earlier_stages() -> None:
    penalty, delayed = (memory(3, method__name=name) for name in ("penalty", "delayed"))
    assert delayed[2]["activations"] == penalty[2]["activations"]
    assert delayed[0]["activations"] > 2.5 * penalty[0]["activations"]
    assert delayed[1]["rows"] < penalty[1]["rows"]
    pieces = memory(3, method__name="delayed", method__microbatches=4, schedule__microbatches=8)
    assert pieces[0]["activations"] == pytest.approx(penalty[0]["activations"] * 3 / 4, rel=0.01)


def test_images_are_where_they_are_seen_and_a_store_in_memory_counts() -> None:
    on_disk, in_memory = memory(3), memory(3, store__kind="memory")
    assert [m["images"] > 0 for m in on_disk] == [True, False, True]
    assert on_disk[0]["images"] == 160 * 3 * 32 * 32
    assert [m["store"] for m in on_disk] == [0, 0, 0]
    assert [m["store"] > 0 for m in in_memory] == [False, True, True]
    held = [m["weights"] + m["store"] + m["images"] for m in in_memory]
    assert [m["peak"] for m in in_memory] == [
        h + m["activations"] + m["rows"] for h, m in zip(held, in_memory, strict=True)
    ]


def test_a_checkpoint_is_made_in_memory_between_steps() -> None:
    small, large = memory(2), memory(2, model__name="mlp", model__width=2000, data__batch_size=2)
    assert all(3 * m["checkpoint"] == 2 * m["weights"] for m in small + large)  # without the gradients
    for m, hungrier in ((small[1], small[1]["activations"] + small[1]["rows"]), (large[1], large[1]["checkpoint"])):
        assert m["peak"] == m["weights"] + m["images"] + hungrier


def test_the_groups_above_limit_a_process_too(tmp_path: Any) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/job/step\n4:cpu,memory:/batch\n3:pids:/batch\n")
    names = [str(file.relative_to(tmp_path)) for file in _group_files(own, tmp_path)]
    assert names == [
        "job/step/memory.max",
        "job/memory.max",
        "memory.max",
        "memory/batch/memory.limit_in_bytes",
        "memory/memory.limit_in_bytes",
    ]
