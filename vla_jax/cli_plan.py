"""`vla-jax plan`: what a recipe needs and how fast it would run on a slice that is not here."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import rich.console
import tyro

from vla_jax.core import errors
from vla_jax.training.plan import planner, reference, report, worker
from vla_jax.training.plan.acting import Weights
from vla_jax.training.plan.chips import Topology, parse_topology
from vla_jax.training.recipe import Recipe

REFERENCE = "reference:"  # in the place of a recipe: a transformer of training/plan/reference.py


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    topology: str  # v5e:16x16, v5p:4x4x4, v6e:4x4, h100:8, ...
    mesh: str = "fsdp=-1"  # data=2,fsdp=8,tensor=1; one of them may be -1: all that are left
    compiler: Literal["tpu", "cpu"] = "tpu"  # cpu: virtual devices, no libtpu; memory and traffic are upper bounds
    batch_size: int | None = None  # over all devices; None: the recipe's, and 1 per device with --acting
    microbatches: str | None = None  # 2, or with --sweep 1,2,4
    acting: Weights | None = None  # plan one call of the policy, its weights in this form, and not a train step
    sweep: bool = False  # try every mesh whose data * fsdp divides the batch, and name the best that fits
    meshes: tuple[str, ...] = ()  # with --sweep: these instead
    budget: float | None = None  # samples that the days are for; None: the recipe's steps
    token_budget: float | None = None  # likewise, in tokens that the transformer reads
    timeout: float = planner.TIMEOUT_S  # seconds for one compilation
    cache: str = worker.CACHE  # folder of compiled programs
    json: str | None = None  # also write the plans here
    markdown: str | None = None  # also write the tables here


def options_with(built: Recipe | None) -> type:
    """`PlanOptions` and, beside them, every field of the recipe."""
    if built is None:
        return PlanOptions

    @dataclasses.dataclass(frozen=True)
    class WithRecipe(PlanOptions):
        recipe: Annotated[Recipe, tyro.conf.arg(name="")] = built

    return WithRecipe


def run(source: str, options: PlanOptions, console: rich.console.Console) -> None:
    """Plan the recipe among the options, or the reference transformer that `source` names, and print it."""
    recipe = None if source.startswith(REFERENCE) else options.recipe
    topology = parse_topology(options.topology)
    parts = tuple(int(part) for part in (options.microbatches or "").split(",") if part) or (None,)
    if options.acting is not None and recipe is None:
        raise errors.ConfigError("--acting", expected="a recipe, whose policy acts", found=source)
    batch_size = options.batch_size or (topology.num_chips if options.acting else _batch_size(source, recipe, topology))
    budget = options.budget
    if options.token_budget is not None:
        budget = options.token_budget / tokens_per_sample(source, recipe)
    meshes = [parse_mesh(text, topology.num_chips) for text in (options.meshes or (options.mesh,))]
    if options.sweep and not options.meshes:
        meshes = list(planner.candidates(topology.num_chips, batch_size))

    def done(plan: planner.Plan) -> None:
        console.print(f"planned {plan.mesh} in {plan.seconds[0]:.0f} + {plan.seconds[1]:.0f} s", style="dim")

    plans = planner.sweep(
        _program(source, recipe),
        topology,
        meshes,
        parts,
        done=done,
        batch_size=batch_size,
        compiler=options.compiler,
        timeout_s=options.timeout,
        cache=options.cache,
        acting=options.acting,
    )
    text = report.details(plans[0], budget)
    if len(plans) > 1:
        text = f"{report.table(plans, budget)}\n\n{text}"
    rows = report.to_json(plans, budget)
    if recipe is None and plans[0].time is not None:
        name, best = source.removeprefix(REFERENCE), plans[0]
        held = reference.against_published(name, best.batch_size, best.time.total, best.topology)
        rows[0]["published"] = held
        line = (
            f"{held['predicted_tokens_per_second']:,.0f} tokens per second and chip; "
            f"published {held['published_tokens_per_second']:,.0f}: error {held['error']:+.1%}"
        )
        text = f"{text}\n\n{line}"
    print(text)
    if options.json is not None:
        report.write_json(options.json, rows)
    if options.markdown is not None:
        Path(options.markdown).write_text(text + "\n", encoding="utf-8")


def parse_mesh(text: str, num_chips: int) -> tuple[int, int, int]:
    """`data=2,fsdp=8` as (data, fsdp, tensor). Raises ConfigError unless the sizes make the slice."""
    sizes = {"data": 1, "fsdp": 1, "tensor": 1}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name.strip() not in sizes:
            raise errors.ConfigError(f"--mesh {text}: no axis {name!r}", fix=errors.closest(name, sizes))
        if not size.strip().lstrip("-").isdigit():
            raise errors.ConfigError(f"--mesh {text}", expected="axis=size,axis=size", found=part)
        sizes[name.strip()] = int(size)
    fixed = 1
    for size in sizes.values():
        fixed *= 1 if size == -1 else size
    found = tuple(num_chips // fixed if size == -1 and fixed else size for size in sizes.values())
    if min(found) < 1 or found[0] * found[1] * found[2] != num_chips:
        raise errors.ConfigError(f"--mesh {text}", expected=f"sizes whose product is {num_chips}", found=found)
    return found


def tokens_per_sample(source: str, recipe: Any) -> int:
    """Tokens that the transformer reads of one sample, image patches and actions included."""
    if source.startswith(REFERENCE):
        return reference.PUBLISHED[source.removeprefix(REFERENCE)].sequence
    backbone = recipe.policy.backbone
    per_image = getattr(getattr(backbone, "vision", None), "num_tokens", None)
    if per_image is None:
        raise errors.ConfigError("--token-budget", expected="a transformer", found=type(backbone).__name__)
    per_image //= backbone.reading.pool**2
    return per_image * len(backbone.cameras) + recipe.text.prompt_length + recipe.policy.decoder.action_horizon


def _program(source: str, recipe: Any) -> Any:
    return source.removeprefix(REFERENCE) if source.startswith(REFERENCE) else recipe


def _batch_size(source: str, recipe: Any, topology: Topology) -> int:
    if not source.startswith(REFERENCE):
        return recipe.data.batch_size
    name = source.removeprefix(REFERENCE)
    if name not in reference.PUBLISHED:
        raise errors.ConfigError(f"no reference transformer {name!r}", fix=errors.closest(name, reference.PUBLISHED))
    return reference.PUBLISHED[name].per_chip_batch * topology.num_chips
