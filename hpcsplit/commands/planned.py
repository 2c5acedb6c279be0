"""A plan in words: the whole plan of some ranks, and a line for each of several numbers of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hpcsplit.plan.advice import speed_ups

Plan = Mapping[str, Any]


def summary(plans: Sequence[Plan]) -> list[str]:
    """A line for each number of ranks; bytes and memory are those of the rank that has most."""
    first = plans[0]
    lines = [
        f"{first['params']:,} parameters, {first['flops'] / 1e6:,.1f} M multiply-adds a sample in {first['blocks']} "
        f"blocks; {first['method']}, mini-batches of {first['batch_size']}; balance by {first['balance']}, speed-ups "
        + ("predicted from the times of the parts" if first["forecast"] else "if nothing but balance cost time"),
        f"{'ranks':>5} {'largest share':>13} {'memory':>10} {'store of two':>12} {'sent/epoch':>10} "
        f"{'parallel':>8} {'exact':>6} {'hybrid':>6}  cuts",
    ]
    for p in plans:
        stages, (parallel, exact, hybrid) = p["stages"], speed_ups(p)
        lines.append(
            f"{p['ranks']:>5} {max(s['share'] for s in stages):>13.1%} "
            f"{size(max(s['memory']['peak'] for s in stages)):>10} "
            f"{size(2 * max(s['store_bytes'] for s in stages)):>12} "
            f"{size(max(s['to_next_bytes'] + s['to_prev_bytes'] for s in stages)):>10} "
            f"{parallel:>8.2f} {exact:>6.2f} {hybrid:>6.2f}  {', '.join(map(str, p['cuts'])) or '-'}"
        )
        if p["refused"]:
            lines.append(f"      refused: {p['refused']}")
    return lines


def size(n: float) -> str:
    return f"{n / 2**30:.2f} GiB" if n >= 2**28 else f"{n / 2**20:.2f} MiB"


def text(p: Plan, draw: bool) -> str:
    """The whole plan."""
    lines = [
        f"{p['ranks']} rank{'s' * (p['ranks'] > 1)}: {p['params']:,} parameters in {p['blocks']} blocks, "
        f"cuts {p['cuts']}, shares by {p['balance']}",
        f"{'stage':>5}  {'blocks':<32} {'parameters':>11} {'M mult-adds':>11} {'share':>6}  {'input':<12} "
        f"{'store, one of two':>17} {'to next/epoch':>13} {'to prev/epoch':>13}",
    ]
    for s in p["stages"]:
        blocks = f"{s['first_block']} .. {s['last_block']} ({s['blocks']})"
        lines.append(
            f"{s['stage']:>5}  {blocks:<32} {s['params']:>11,} {s['flops'] / 1e6:>11,.2f} {s['share']:>6.1%}  "
            f"{'x'.join(map(str, s['in_shape'])):<12} {size(s['store_bytes']):>17} "
            f"{size(s['to_next_bytes']):>13} {size(s['to_prev_bytes']):>13}"
        )
    lines += _memory(p)
    both = 2 * sum(s["store_bytes"] for s in p["stages"])
    saved = sum(s["checkpoint_aux_bytes"] for s in p["stages"])
    lines.append(
        f"auxiliary store of {p['method']} in {p['dtype']}, both generations, all ranks: {size(both)}; "
        f"rows in a checkpoint: {size(saved)}"
    )
    if p["ranks"] > 1:
        lines += _several(p, draw)
    lines.append(
        f"speed-up over one core if nothing but balance cost time: parallel epochs {p['parallel_speed_up_bound']:.2f}, "
        f"whole schedule {p['hybrid_speed_up_bound']:.2f}"
    )
    if (finer := p["parallel_speed_up_bound_inside_blocks"]) > 1.02 * p["parallel_speed_up_bound"]:
        lines.append(
            f"(cuts are between blocks; in the middle of blocks, too, they would allow {finer:.2f} in parallel epochs)"
        )
    if p["forecast"]:
        lines += _predicted(p["forecast"])
    return "\n".join(lines)


def _several(p: Plan, draw: bool) -> list[str]:
    """What there is to say of more than one rank."""
    variants = "; ".join(f"{name}: {gib:.2f}" for name, gib in p["aux_float32_gib"].items())
    lines = [f"one generation in float32 for {p['samples']} samples, GiB: {variants}"]
    pipeline, many = p["pipeline"], "es" * (p["pipeline"]["microbatches"] > 1)
    lines.append(
        f"exact step: {pipeline['microbatches']} micro-batch{many} in {pipeline['order']} order, at most "
        f"{pipeline['speed_up_bound']:.2f} with stages of one length; activations kept of "
        f"{', '.join(map(str, pipeline['in_flight']))} of them in stages 0 and on"
    )
    if any(pipeline["waiting"]):
        lines.append(
            f"exact step: weight gradients of {', '.join(map(str, pipeline['waiting']))} micro-batches wait at most in "
            "stages 0 and on, with their activations; the bound takes them for a third of a step"
        )
    sent = ", ".join(size(s["edge_bytes"]) for s in p["stages"][:-1])
    lines.append(f"exact step: activations sent on by stages 0 and on, and as many bytes of gradients back: {sent}")
    if any(p["delays"]):
        lines.append(
            f"parallel step: {', '.join(f'{d:g}' for d in p['delays'])} mini-batches in flight in stages 0 and on, "
            "with their activations; gradients are so many steps old"
        )
    if draw:
        late = any(pipeline["waiting"])
        lines += [pipeline["drawn"], f"(F forward, B backward, {'W weight gradients' if late else 'twice as long'})"]
    return lines


def _memory(p: Plan) -> list[str]:
    """The footprint of each rank; an estimate."""
    columns = ("weights", "activations", "rows", "store", "images", "checkpoint", "peak")
    lines = [
        "memory of a rank at its peak, about (weights with gradients and optimizer; what autograd keeps in float32; "
        "torch and MPI themselves take some 0.3 GiB more)",
        f"{'stage':>5} " + " ".join(f"{name:>12}" for name in columns),
    ]
    return lines + [
        f"{s['stage']:>5} " + " ".join(f"{size(s['memory'][name]):>12}" for name in columns) for s in p["stages"]
    ]


def _predicted(f: Mapping[str, Any]) -> list[str]:
    """Every term of formulas (9) and (11), and the forecast with the stages as they are cut."""
    terms = {"t_f": "t_f", "t_b": "t_b", "t_d": "t_d", "t_ψ": "t_psi", "t_λ": "t_lam", "t_κ": "t_kappa"}
    measured = ", ".join(f"{name} {1000 * f[key]:.2f}" for name, key in terms.items())
    k, m, formula = f["ranks"], f["microbatches"], "no epoch is parallel"
    if (gamma := f["gamma"]) is not None:
        formula = f"ρ_H = (1 + γ)/(1/ρ_K + γ) = {f['rho_h']:.2f}, γ = {gamma:.3g} exact epochs for a parallel one"
    return [
        f"measured on this device, ms a mini-batch: {measured}",
        f"  t_s = t_f + t_b + t_d = {1000 * f['t_s']:.2f}, "
        f"t_p = (t_f + t_b)/{k} + t_ψ + t_λ + t_κ = {1000 * f['t_p']:.2f}",
        f"  (9)  ρ_K = t_s / t_p = {f['rho_k']:.2f}",
        f"  (11) {formula}",
        "predicted with the stages as cut (messages on their way, refreshes and evaluations not charged):",
        f"  parallel step {1000 * f['parallel_s']:.1f} ms, {f['parallel_speed_up']:.2f} x one rank; exact step of {m} "
        f"micro-batch{'es' * (m > 1)} over the ranks {1000 * f['exact_s']:.1f} ms, {f['exact_speed_up']:.2f} x",
        f"  whole schedule {f['hybrid_speed_up_one_device']:.2f} x with exact epochs on one device, "
        f"{f['hybrid_speed_up']:.2f} x with pipelined ones",
    ]
