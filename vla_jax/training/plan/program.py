"""The step that `fit` would run for a recipe, on abstract arrays, and its compilation for devices that are not here."""

import dataclasses
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vla_jax.core import errors, placement
from vla_jax.core.types import Demonstrations, Observation
from vla_jax.data.pictures.augment import augment_batch
from vla_jax.learners.base import Learner
from vla_jax.training import sharding, step, trained
from vla_jax.training.plan import counting
from vla_jax.training.plan.chips import Topology
from vla_jax.training.recipe import Recipe

_KINDS = {"params": "parameters", "frozen": "parameters", "ema_params": "averages"}  # of a learner's state


@dataclasses.dataclass(frozen=True)
class Program:
    """A learner and the batch it learns from: all that a plan needs of a recipe."""

    name: str
    learner: Learner
    batch: Any  # abstract, over all devices
    logical_axes: Mapping[str, Any]
    num_train_steps: int
    tokens_per_sample: int | None = None
    augment: step.Augment | None = None
    fsdp_min_size: int = sharding.MeshConfig.fsdp_min_size
    kernel_share: float = 1.0  # of the grid of its Pallas kernels that is not skipped, as a causal mask lets them
    kernel_width: int | None = None  # the smallest dim of their products: the heads'
    passes: int = 3  # over the model's products in one step: forward, and backward for two

    @property
    def batch_size(self) -> int:
        return jax.tree.leaves(self.batch)[0].shape[0]

    @placement.elsewhere()
    def model_flops(self) -> float:
        """The products of `passes` forward passes over the batch. No recomputation."""

        def loss(key: Any, batch: Any) -> Any:
            return self.learner.loss(self.learner.actor(self.learner.init(key, batch)), key, batch)[0]

        key = jax.eval_shape(lambda: jax.random.key(0))
        return self.passes * counting.count(loss, key, self.batch)


def of_recipe(recipe: Recipe, batch_size: int | None = None) -> Program:
    """Of one that imitates: `planner.plan` refuses others."""
    augment = recipe.data.augment
    return Program(
        name=recipe.name,
        learner=trained.make_learner(recipe),
        batch=demonstrations(recipe, batch_size or recipe.data.batch_size),
        logical_axes=trained.logical_axes(recipe),
        num_train_steps=recipe.fit.num_train_steps,
        augment=None if augment is None else lambda key, batch: augment_batch(key, batch, config=augment),
        fsdp_min_size=recipe.fit.mesh.fsdp_min_size,
    )


def demonstrations(recipe: Recipe, batch_size: int) -> Demonstrations:
    """An abstract batch as the recipe's loader makes it: no data is opened."""
    backbone, decoder = recipe.policy.backbone, recipe.policy.decoder

    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

    observation = Observation(
        images={name: array(*backbone.image_size, 3, dtype=jnp.uint8) for name in backbone.cameras},
        image_mask={name: array(dtype=bool) for name in backbone.cameras},
        state=array(backbone.state_dim),
        prompt=array(recipe.text.prompt_length, dtype=jnp.int32),
        prompt_mask=array(recipe.text.prompt_length, dtype=bool),
    )
    chunk = (decoder.action_horizon, decoder.action_dim)
    return Demonstrations(observation, array(*chunk), array(*chunk, dtype=bool), array())


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A step before the compiler: what is known of it without one."""

    stage: Any  # jax.stages.Lowered
    text: str  # StableHLO
    step_flops: float  # products of the whole step over all devices, recomputation included
    kernels: dict[str, float]  # products of one call of each Pallas kernel, on one device
    state_bytes: dict[str, int]  # on each device: parameters, optimizer, averages, batch
    coordinates: list[tuple[int, ...]]  # of every partition, in the order of the mesh
    seconds: float


@dataclasses.dataclass(frozen=True)
class Compiled:
    """`hlo` is None when the compiler found that the step does not fit; `facts` then has its message."""

    hlo: str | None
    facts: dict[str, Any]


@placement.elsewhere()
def lower(program: Program, mesh: Mesh) -> Lowered:
    """Trace the step for the devices of `mesh`, abstract or real. Raises ConfigError when the batch does not split."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if program.batch_size % parts:
        raise errors.ConfigError(
            f"{program.name}: the batch cannot be split over the mesh",
            expected=f"a batch divisible by data * fsdp = {parts}",
            found=program.batch_size,
        )
    start = time.monotonic()
    train_step = step.build(
        program.learner,
        program.batch,
        mesh,
        logical_axes=program.logical_axes,
        fsdp_min_size=program.fsdp_min_size,
        augment=program.augment,
    )
    carry = jax.tree.map(_placed, train_step.abstract, train_step.shardings)
    batch = jax.tree.map(lambda leaf: _placed(leaf, sharding.batch_sharding(mesh)), train_step.example)
    stage = train_step.run.lower(carry, batch)
    seconds = time.monotonic() - start
    return Lowered(
        stage=stage,
        text=stage.as_text(),
        step_flops=counting.count(train_step.apply, train_step.abstract, train_step.example),
        kernels={
            name: flops * program.kernel_share
            for name, flops in counting.kernels(train_step.apply, train_step.abstract, train_step.example).items()
        },
        state_bytes=_state_bytes(carry, batch),
        coordinates=[tuple(getattr(d, "coords", (i,))) for i, d in enumerate(mesh.devices.flat)],
        seconds=seconds,
    )


def compile_lowered(lowered: Lowered) -> Compiled:
    start = time.monotonic()
    try:
        compiled = lowered.stage.compile()
    except jax.errors.JaxRuntimeError as error:
        if "memory space hbm" not in str(error):  # a kernel may also ask for more of the chip's own memory
            raise
        return Compiled(None, {"too_large": str(error).partition("\n\n")[0][:600]})
    seconds = time.monotonic() - start
    analysis = compiled.memory_analysis()
    # Arguments padded to the chip's tiles, and results that do not take the place of one, count as temporary.
    kept = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    facts = {
        "temporary": analysis.temp_size_in_bytes + max(0, kept - sum(lowered.state_bytes.values())),
        "program": analysis.generated_code_size_in_bytes,
        "compile_seconds": seconds,
    }
    return Compiled(compiled.as_text(), facts)


def tpu_devices(topology: Topology) -> list[jax.Device]:
    """Abstract devices of a TPU slice, for the real compiler. Raises ConfigError without libtpu or for another grid."""
    from jax.experimental import topologies

    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise errors.ConfigError(
            f"no TPU compiler on this machine for {topology.name}",
            expected="the package libtpu",
            fix="pip install 'vla-jax[plan]', or plan with --compiler cpu, which needs none",
        ) from None
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU here to ask about
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nor one that two compilations could quarrel about
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology.name).devices)
    except jax.errors.JaxRuntimeError as error:
        raise errors.ConfigError(f"the TPU compiler refuses topology {topology.name}", found=str(error)) from error


def _placed(leaf: jax.ShapeDtypeStruct, place: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def _state_bytes(carry: step.Carry, batch: Any) -> dict[str, int]:
    kinds = {"parameters": 0, "optimizer": 0, "averages": 0, "batch": sum(map(_device_bytes, jax.tree.leaves(batch)))}
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry.learner):
        name = sharding.path_name(path).split("/")[0]
        kinds[_KINDS.get(name, "optimizer")] += _device_bytes(leaf)
    return kinds


def _device_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    size = 1
    for dim in leaf.sharding.shard_shape(leaf.shape):
        size *= dim
    return size * leaf.dtype.itemsize
