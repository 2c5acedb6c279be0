"""What a plan recommends: stages, cuts, ratio, downsampling, the store's type and place, each with its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hpcsplit.config import Config
from hpcsplit.config.declared import declared_methods
from hpcsplit.plan.feasibility import memory_limit_bytes
from hpcsplit.plan.forecast import hybrid

EFFICIENT = 0.75  # of K, which the speed-up of parallel epochs with K stages should reach
KEEPS = 0.9  # of the speed-up of the shortest exact phases
RATIOS = ((4, 1), (3, 2), (2, 3), (1, 4))  # serial : parallel, as in the paper's Tables 3 and 4, most exact first
GAPS = {(4, 1): "0.1", (3, 2): "0.1", (2, 3): "0.9", (1, 4): "2.0"}  # points, ResNet-110, DS-SPH-P, 3 stages
CACHE_SHARE = 0.5  # of the memory, that the kernel may keep rows in
EXPENSIVE = 0.05  # of a step, spent on variables

Advice = list[tuple[str, str, str]]


def advice(config: Config, plans: Sequence[Mapping[str, Any]]) -> Advice:
    """(item, choice, reason) for each, from the plans of one or several numbers of ranks."""
    possible = [p for p in plans if not p["refused"]]
    if not possible:
        return [("ranks", "none", plans[0]["refused"])]
    best = max((p for p in possible if _speed_up(p) >= EFFICIENT * p["ranks"]), key=lambda p: p["ranks"], default=None)
    best = best or possible[0]
    gain, count = _speed_up(best), best["ranks"]
    source = "predicted" if best["forecast"] else "by balance alone (--measure times it)"
    among = f"the most of {len(plans)} choices with" if len(plans) > 1 else "with"
    largest = max(stage["share"] for stage in best["stages"])
    found = [
        ("ranks", str(count), f"{among} parallel epochs {gain:.2f} x as fast, {gain / count:.0%} of {count}, {source}"),
        ("cuts", str(best["cuts"]), f"the largest stage has {largest:.1%} of the cost, {1 / count:.1%} would be even"),
    ]
    if count == 1 or "parallel" not in best["phases"]:
        return found
    if declared_methods()[config.method.name].augments:
        why = f"{gain:.2f} x in every epoch; its parallel epochs augment as exact ones do and keep no variables"
        return [*found, ("schedule.ratio", "0:1", why), *_younger(config, best)]
    return [*found, _ratio(best), *_rows(config, best)]


def _speed_up(p: Mapping[str, Any]) -> float:
    return float(p["forecast"]["parallel_speed_up"] if p["forecast"] else p["parallel_speed_up_bound"])


def _ratio(p: Mapping[str, Any]) -> tuple[str, str, str]:
    exact = p["forecast"]["exact_speed_up"] if p["forecast"] else p["pipeline"]["speed_up_bound"]
    gains = {ratio: hybrid(ratio[0] / ratio[1], _speed_up(p), exact) for ratio in RATIOS}
    fastest = max(gains.values())
    serial, parallel = next(ratio for ratio in RATIOS if gains[ratio] >= KEEPS * fastest)
    return (
        "schedule.ratio",
        f"{serial}:{parallel}",
        f"{gains[serial, parallel]:.2f} x with exact epochs of {p['pipeline']['microbatches']} micro-batches, at most "
        f"{fastest:.2f} with another; the paper's gap to exact training was {GAPS[serial, parallel]} points there",
    )


def _younger(config: Config, p: Mapping[str, Any]) -> Advice:
    """Of gradients that are some updates old: fewer updates, and what makes up for the rest."""
    options, optim, oldest = config.method.options, config.optim, max(p["delays"])
    found: Advice = []
    if oldest > 1:
        pieces = min(options["microbatches"] * 2 ** math.ceil(math.log2(oldest)), p["batch_size"])
        then = oldest * options["microbatches"] / pieces
        why = f"gradients of stage 0 are {then:g} updates old then, {oldest:g} now"
        found.append(("method.microbatches", str(pieces), why))
    follows = optim.name == "sgd" and 0 < optim.momentum < 1 and options.get("weights") != "stale"
    if oldest and follows and not (options["predict"] and options["spike"]):
        why = "in docs/results.md they win back what old gradients cost in two stages, with method.lr_anneal"
        found.append(("method.predict, method.spike", "true", why))
    return found


def _rows(config: Config, p: Mapping[str, Any]) -> Advice:
    """Of the variables' rows: how many, of what type, where."""
    store = 2 * sum(stage["store_bytes"] for stage in p["stages"])
    if not store:
        return []
    spare = max(0.0, memory_limit_bytes() - sum(stage["memory"]["peak"] for stage in p["stages"]))
    cached, size = store <= CACHE_SHARE * spare, f"{store / 2**30:.2f} GiB of rows in both generations"
    found: Advice = []
    now = config.method.options.get("downsample")
    if now is not None and all(len(stage["in_shape"]) == 3 for stage in p["stages"][1:]):
        f = p["forecast"]
        share = (f["t_psi"] + f["t_lam"] + f["t_kappa"]) / f["parallel_s"] if f else 0.0
        halve = not cached or share > EXPENSIVE
        why = f"variables take {share:.1%} of a step, " if f else ""
        cost = "a quarter of that, for less than a point in the paper" if halve else "little enough as they are"
        found.append(("method.downsample", "2" if halve and now == 1 else str(now), f"{why}{size}: {cost}"))
    wide = cached or p["dtype"] != "float32"
    found.append(
        (
            "store.dtype",
            p["dtype"] if wide else "bfloat16",
            "fits the memory that is left" if cached else "half the bytes of float32 on the disk",
        )
    )
    place = "any disk" if cached else 'store.path = "scratch"'
    need = ""
    if p["forecast"]:
        step_bytes = 2 * p["batch_size"] * store / 2 / p["samples"]
        need = f"; {step_bytes / p['forecast']['parallel_s'] / 1e9:.2f} GB/s are read and written"
    found.append(
        (
            "the store",
            place,
            (f"{size} stay in this machine's memory" if cached else f"{size} need a fast disk of the node") + need,
        )
    )
    return found
