"""What a plan recommends: stages, cuts, ratio, downsampling, the store's type and place, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hpcsplit.config import Config
from hpcsplit.config.declared import declared_methods
from hpcsplit.methods.contract import Advice, Advises
from hpcsplit.plan.feasibility import memory_limit_bytes
from hpcsplit.plan.forecast import hybrid
from hpcsplit.plan.setting import Setting

EFFICIENT = 0.75  # of K, which the speed-up of parallel epochs with K stages should reach
KEEPS = 0.9  # of the speed-up of the shortest exact phases
RATIOS = ((4, 1), (3, 2), (2, 3), (1, 4))  # serial : parallel, as in the paper's Tables 3 and 4, most exact first
GAPS = {(4, 1): "0.1", (3, 2): "0.1", (2, 3): "0.9", (1, 4): "2.0"}  # points, ResNet-110, DS-SPH-P, 3 stages
CACHE_SHARE = 0.5  # of the memory, that the kernel may keep rows in


def advice(config: Config, plans: Sequence[Mapping[str, Any]]) -> Advice:
    """(item, choice, reason) for each, from the plans of one or several numbers of ranks."""
    possible = [p for p in plans if not p["refused"]]
    if not possible:
        return [("ranks", "none", plans[0]["refused"])]
    efficient = [p for p in possible if speed_ups(p)[0] >= EFFICIENT * p["ranks"]]
    best = max(efficient or possible[:1], key=lambda p: p["ranks"])
    gain, count = speed_ups(best)[0], best["ranks"]
    source = "predicted" if best["forecast"] else "by balance alone (--measure times it)"
    among = f"the most of {len(plans)} choices with" if len(plans) > 1 else "with"
    largest = max(stage["share"] for stage in best["stages"])
    result = [
        ("ranks", str(count), f"{among} parallel epochs {gain:.2f} x as fast, {gain / count:.0%} of {count}, {source}"),
        ("cuts", str(best["cuts"]), f"the largest stage has {largest:.1%} of the cost, {1 / count:.1%} would be even"),
    ]
    if count == 1 or "parallel" not in best["phases"]:
        return result
    if declared_methods()[config.method.name].augments:
        why = f"{gain:.2f} x in every epoch; its parallel epochs augment as exact ones do and keep no variables"
        return [*result, ("schedule.ratio", "0:1", why), *_own(config, best)]
    return [*result, _ratio(best), *_rows(config, best)]


def speed_ups(p: Mapping[str, Any]) -> tuple[float, float, float]:
    """Of parallel epochs, exact ones and the whole schedule: predicted, or if nothing but balance cost time."""
    if f := p["forecast"]:
        return f["parallel_speed_up"], f["exact_speed_up"], f["hybrid_speed_up"]
    return p["parallel_speed_up_bound"], p["pipeline"]["speed_up_bound"], p["hybrid_speed_up_bound"]


def _ratio(p: Mapping[str, Any]) -> tuple[str, str, str]:
    parallel_gain, exact_gain, _ = speed_ups(p)
    gains = {ratio: hybrid(ratio[0] / ratio[1], parallel_gain, exact_gain) for ratio in RATIOS}
    fastest = max(gains.values())
    serial, parallel = next(ratio for ratio in RATIOS if gains[ratio] >= KEEPS * fastest)
    return (
        "schedule.ratio",
        f"{serial}:{parallel}",
        f"{gains[serial, parallel]:.2f} x with exact epochs of {p['pipeline']['microbatches']} micro-batches, at most "
        f"{fastest:.2f} with another; the paper's gap to exact training was {GAPS[serial, parallel]} points there",
    )


def _own(config: Config, p: Mapping[str, Any], rows: str = "", *, cached: bool = True) -> Advice:
    """What the method says of its own options."""
    method = Setting(config).method
    return method.advice(config.optim, p, rows, cached=cached) if isinstance(method, Advises) else []


def _rows(config: Config, p: Mapping[str, Any]) -> Advice:
    """Of the variables' rows: how many, of what type, where."""
    store = 2 * sum(stage["store_bytes"] for stage in p["stages"])
    if not store:
        return []
    spare = max(0.0, memory_limit_bytes() - sum(stage["memory"]["peak"] for stage in p["stages"]))
    cached, size = store <= CACHE_SHARE * spare, f"{store / 2**30:.2f} GiB of rows in both generations"
    dtype = "bfloat16" if p["dtype"] == "float32" and not cached else p["dtype"]
    fits = "fits the memory that is left" if cached else "half the bytes of float32 on the disk"
    place = "any disk" if cached else 'store.path = "scratch"'
    need = f"{size} stay in this machine's memory" if cached else f"{size} need a fast disk of the node"
    if p["forecast"]:
        step_bytes = 2 * p["batch_size"] * store / 2 / p["samples"]
        need += f"; {step_bytes / p['forecast']['parallel_s'] / 1e9:.2f} GB/s are read and written"
    return [*_own(config, p, size, cached=cached), ("store.dtype", dtype, fits), ("the store", place, need)]
