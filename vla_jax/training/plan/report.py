"""Plans as Markdown and as JSON."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_jax.core import files
from vla_jax.training.plan.planner import MARGIN, Plan

_HEAD = ("plan", "mesh", "batch", "memory GiB", "fits", "step s", "utilization", "samples/s", "days", "exposed links")


def to_json(plans: Sequence[Plan], budget: float | None = None) -> list[dict[str, Any]]:
    """One object per plan: its fields and what follows from them; `days` are for `budget` samples."""
    return [
        dataclasses.asdict(plan)
        | {
            "fits": plan.fits,
            "memory_total": plan.memory.total,
            "utilization": plan.utilization,
            "samples_per_second": plan.samples_per_second,
            "days": plan.days(budget),
        }
        for plan in plans
    ]


def write_json(path: str | Path, value: Any) -> None:
    files.write_text(path, json.dumps(value, indent=1) + "\n")


def table(plans: Sequence[Plan], budget: float | None = None) -> str:
    """One row per plan."""
    return _markdown(_HEAD, [_row(plan, budget) for plan in plans])


def details(plan: Plan, budget: float | None = None) -> str:
    """Everything about one plan."""
    memory = _markdown(
        ("memory of one device", "GiB"),
        [
            ("parameters", _gib(plan.memory.parameters)),
            ("optimizer", _gib(plan.memory.optimizer)),
            ("averages", _gib(plan.memory.averages)),
            ("batch", _gib(plan.memory.batch)),
            ("activations and other temporaries", _gib(plan.memory.temporary)),
            ("program", _gib(plan.memory.program)),
            ("total", _gib(plan.memory.total)),
            (f"there is, {MARGIN:.0%} kept free", _gib(plan.hbm_bytes * (1 - MARGIN))),
        ],
    )
    lines = [f"# {plan.name} on {plan.topology} ({plan.compiler} compiler)", "", table([plan], budget), "", memory, ""]
    if plan.note:
        return "\n".join([*lines, f"The compiler gave up: {plan.note}"])
    time = plan.time
    operations = _markdown(
        ("operations of a step", "TFLOP", "of the model's"),
        [
            (name, f"{value / 1e12:,.1f}", f"{value / plan.model_flops:.2f}")
            for name, value in (
                (f"model: {plan.passes} x forward products", plan.model_flops),
                ("step as traced, with recomputation", plan.step_flops),
                ("step as compiled, all devices", plan.compiled_flops),
            )
        ],
    )
    roofline = _markdown(
        ("time of a step", "s"),
        [
            ("products", f"{time.compute:.4f}"),
            (f"main memory, {plan.compiled_bytes / 1e9:,.1f} GB", f"{time.hbm:.4f}"),
            ("links", f"{time.links:.4f}"),
            ("links that nothing hides", f"{time.exposed_links:.4f}"),
            ("the compiler's cycles, without links", "-" if time.compiler is None else f"{time.compiler:.4f}"),
            ("step", f"{time.total:.4f}"),
        ],
    )
    links = _markdown(
        ("collective", "runs", "GB", "s alone", "overlapped"),
        [
            (
                each.kind,
                f"{each.count:,.0f}",
                f"{each.bytes / 1e9:,.2f}",
                f"{each.seconds:.4f}",
                f"{each.asynchronous:.0%}",
            )
            for each in plan.collectives
        ],
    )
    return "\n".join([*lines, operations, "", roofline, "", links])


def _row(plan: Plan, budget: float | None) -> tuple[str, ...]:
    data, fsdp, tensor = plan.mesh
    parts = f" in {plan.microbatches}" if plan.microbatches > 1 else ""
    room = f"{_gib(plan.memory.total)} of {_gib(plan.hbm_bytes)}"
    fits = "yes" if plan.fits else "no"
    head = (f"{plan.name} {plan.topology}", f"data={data} fsdp={fsdp} tensor={tensor}", f"{plan.batch_size}{parts}")
    if plan.time is None:
        return (*head, room, fits, *("-",) * 5)
    return (
        *head,
        room,
        fits,
        f"{plan.time.total:.3f}",
        f"{plan.utilization:.1%}",
        f"{plan.samples_per_second:,.0f}",
        f"{plan.days(budget):.2f}",
        f"{plan.time.exposed_links / plan.time.total:.0%}",
    )


def _gib(size: float | None) -> str:
    return "too much" if size is None else f"{size / 2**30:.2f}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])
