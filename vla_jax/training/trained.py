"""From a recipe to its learner, and from a checkpoint to a policy that acts: nothing else is needed to evaluate it."""

import contextlib
import dataclasses
import json
import zlib
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from vla_jax.codecs.text import Tokenizer, prompt_table
from vla_jax.core import errors
from vla_jax.core.images import average_blocks
from vla_jax.core.types import Observation, Params, PromptTable
from vla_jax.data.action_space import ActionSpace
from vla_jax.data.normalization import Normalizer, Statistics
from vla_jax.data.pictures.resize import Size
from vla_jax.data.pictures.resize_traced import resize_batch
from vla_jax.learners.base import Learner
from vla_jax.learners.dqc import DQC, DQCConfig
from vla_jax.learners.expo import EXPO, EXPOConfig
from vla_jax.learners.hil_serl import HilSerl, HilSerlConfig
from vla_jax.learners.imitation import Imitation, ImitationConfig
from vla_jax.learners.pa_rl import PARL, PARLConfig
from vla_jax.learners.rlpd import RLPD, RLPDConfig
from vla_jax.nets.backbone import Encoder
from vla_jax.nets.pixels import PixelConfig, PixelEncoder
from vla_jax.nets.state_mlp import StateMLPConfig
from vla_jax.policies.base import Policy
from vla_jax.training import checkpoints
from vla_jax.training.plain import from_plain, to_plain
from vla_jax.training.quantize import quantize
from vla_jax.training.recipe import AROUND_A_POLICY, WITHOUT_A_POLICY, PolicyConfig, Recipe
from vla_jax.training.tuning import Tuning, TuningConfig

BASE = "base"  # in the metadata, where a part of the policy was frozen: which checkpoint it was read from
_POLICY_PARTS = {EXPOConfig: "base", PARLConfig: "base", DQCConfig: "policy"}  # of what their actors need
_BY_DATASET = "normalization_by_dataset"  # in the metadata, where every dataset has its own


def make_learner(recipe: Recipe) -> Learner:
    """The learner a recipe names, around its policy and optimizers."""
    constructor, optimizer = recipe.policy.constructor(), recipe.optimizer.build()
    base_optimizer = optimizer if recipe.base_optimizer is None else recipe.base_optimizer.build()
    tuning = None if recipe.tuning == TuningConfig() else Tuning(recipe.tuning, constructor)
    backbone, action_dim = recipe.policy.backbone, recipe.policy.decoder.action_dim
    match recipe.learner:
        case ImitationConfig():
            return Imitation(constructor, optimizer, recipe.learner, tuning)
        case EXPOConfig():
            feature_dim = backbone.feature_dim + backbone.state_dim
            return EXPO(constructor, action_dim, feature_dim, optimizer, base_optimizer, recipe.learner, tuning)
        case PARLConfig(critic_sees=seen):
            feature_dim = backbone.state_dim + (backbone.feature_dim if seen == "features" else 0)
            return PARL(constructor, action_dim, feature_dim, optimizer, base_optimizer, recipe.learner, tuning)
        case DQCConfig():
            goal_dim = 0 if recipe.recorded is None else len(recipe.recorded.goal_dims)
            return DQC(constructor, action_dim, backbone.feature_dim, goal_dim, optimizer, recipe.learner)
        case RLPDConfig():
            feature_dim, encoder = _sees(recipe.policy)
            return RLPD(action_dim, feature_dim, optimizer, recipe.learner, encoder)
        case HilSerlConfig(arm, grasp):
            feature_dim, encoder = _sees(recipe.policy)
            moves = RLPD(action_dim - 1, feature_dim, optimizer, arm, encoder)
            return HilSerl(moves, feature_dim, optimizer, grasp)
    raise errors.ConfigError(f"recipe {recipe.name}: learner", expected="one of ours", found=recipe.learner)


def _sees(policy: PolicyConfig) -> tuple[int, Callable[[nnx.Rngs], nnx.Module] | None]:
    """The width of what a learner with an actor of its own sees, and the encoder of it; None: the state as it is."""
    backbone = policy.backbone
    if isinstance(backbone, StateMLPConfig):
        return backbone.state_dim, None
    if isinstance(backbone, PixelConfig):
        return backbone.feature_dim, lambda rngs: PixelEncoder(backbone, rngs)
    sees = policy.perception()
    return backbone.feature_dim + backbone.state_dim, lambda rngs: Encoder(sees(rngs))


def logical_axes(recipe: Recipe) -> dict[str, tuple[str | None, ...]]:
    """The names of the dims of the policy's parameters, adapters and 8-bit kernels, for `sharding.param_shardings`."""
    if isinstance(recipe.policy.backbone, PixelConfig):  # no decoder acts on it, so there is no policy to ask
        return {}
    return Tuning(recipe.tuning, recipe.policy.constructor()).logical_axes


@dataclasses.dataclass(frozen=True)
class Edges:
    """What stands between an environment and a policy: the instruction's tokens, and the saved statistics."""

    tokenizer: Tokenizer
    prompt_length: int
    action_space: ActionSpace
    image_size: tuple[int, int]  # height and width the policy sees
    resize: Size | None = None  # how the pictures of the training data came to that size, where they were resized
    goal_dims: tuple[int, ...] = ()  # of the state, which make up a goal, for learners of goals
    cameras: tuple[str, ...] | None = None  # that the policy sees, None: all; pictures of others are dropped

    @property
    def normalizer(self) -> Normalizer:
        return self.action_space.normalizer

    def encode(self, instruction: str) -> tuple[Any, Any]:
        return self.tokenizer.encode(instruction, self.prompt_length)

    def prompts(self, instructions: tuple[str, ...]) -> PromptTable:
        return prompt_table(self.tokenizer, instructions, self.prompt_length)

    def normalize(self, observation: Observation) -> Observation:
        """States by the statistics; pictures resized as in training, or, without that, averaged down where they are a
        whole number of times too large."""
        seen = [name for name in observation.images if self.cameras is None or name in self.cameras]
        return observation.replace(
            images={name: self._fit(name, observation.images[name]) for name in seen},
            image_mask={name: observation.image_mask[name] for name in seen},
            state=self.normalizer.normalize_state(observation.state),
        )

    def normalize_goal(self, goal: Float[Array, "*b g"]) -> Float[Array, "*b g"]:
        """Those dims of a state, by its statistics."""
        state = jnp.zeros((*goal.shape[:-1], self.normalizer.state_dim), goal.dtype)
        dims = jnp.asarray(self.goal_dims)
        return self.normalizer.normalize_state(state.at[..., dims].set(goal))[..., dims]

    def unnormalize(
        self, actions: Float[Array, "*b h action_dim"], state: Float[Array, "*b s"]
    ) -> Float[Array, "*b h a"]:
        """The policy's chunks as the robot takes them. `state` is the one the policy acted on, before `normalize`."""
        return self.action_space.to_robot(actions, state)

    def _fit(self, camera: str, image: UInt8[Array, "*b height width 3"]) -> UInt8[Array, "*b h w 3"]:
        if self.resize is not None:
            return resize_batch(image, self.resize)
        factor = max(1, image.shape[-3] // self.image_size[0])
        if tuple(image.shape[-3:-1]) != (self.image_size[0] * factor, self.image_size[1] * factor):
            raise errors.ConfigError(
                f"camera {camera!r} does not fit the policy",
                expected=f"pictures of {list(self.image_size)} or a whole multiple of it",
                found=list(image.shape[-3:-1]),
            )
        return average_blocks(image, factor)


def make_edges(recipe: Recipe, statistics: Statistics, dataset: str | None = None) -> Edges:
    """Those of one of the recipe's datasets, by its key; without it, of the first: environments and robots take actions
    of the kind that it recorded, and show pictures that become the policy's as its own did.

    Raises ConfigError when the statistics are not of the policy's state and actions, when the dataset's pictures do not
    have the policy's size, or its actions cannot be turned back.
    """
    expected = (recipe.policy.backbone.state_dim, recipe.policy.decoder.action_dim)
    found = (statistics.state.dim, statistics.actions.dim)
    if expected[0] != found[0] or expected[1] < found[1]:
        raise errors.ConfigError(
            f"recipe {recipe.name}: the policy does not fit the data",
            expected=f"state_dim {expected[0]} (policy.backbone) and action_dim {expected[1]} (policy.decoder)",
            found=f"{found[0]} state dims and {found[1]} action dims in the data's statistics",
            fix="set policy.backbone.state_dim and policy.decoder.action_dim to those of the data",
        )
    normalizer = Normalizer.create(statistics, recipe.data.normalization)
    image_size = tuple(recipe.policy.backbone.image_size)
    rest = dict(
        goal_dims=() if recipe.recorded is None else recipe.recorded.goal_dims,
        cameras=tuple(recipe.policy.backbone.cameras),
    )
    data = next((each for each in recipe.data.datasets if dataset in (None, each.key)), None)
    if data is None:  # weights from elsewhere
        space = ActionSpace(normalizer)
        return Edges(recipe.text.tokenizer(), recipe.text.prompt_length, space, image_size, **rest)
    place = f"recipe {recipe.name}: data.datasets, {data.path}"
    if data.resize is not None and tuple(data.resize[:2]) != image_size:
        raise errors.ConfigError(
            f"{place}: resize", expected=f"{list(image_size)}, policy.backbone.image_size", found=data.resize
        )
    space = ActionSpace.create(normalizer, data.action_kind, data.relative_dims, place)
    return Edges(recipe.text.tokenizer(), recipe.text.prompt_length, space, image_size, data.resize, **rest)


def contract(
    recipe: Recipe,
    statistics: Statistics,
    action_names: tuple[str, ...],
    control_hz: float | None,
    by_dataset: Mapping[str, Statistics] | None = None,
) -> dict:
    """What travels with the weights: recipe, statistics, cameras, actions. `by_dataset` are those of every dataset, by
    its key, where each was normalized by its own."""
    return {
        "recipe": to_plain(recipe),
        "normalization": dataclasses.asdict(statistics),
        **({_BY_DATASET: {key: dataclasses.asdict(own) for key, own in by_dataset.items()}} if by_dataset else {}),
        "cameras": list(recipe.policy.backbone.cameras),
        "action": {
            "names": list(action_names),
            "horizon": recipe.policy.decoder.action_horizon,
            "control_hz": control_hz,
        },
    }


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedPolicy:
    """A checkpoint, ready to act. `params` are the actor's; `act` takes normalized observations (see `edges`)."""

    path: Path
    recipe: Recipe
    learner: Learner
    params: Params
    edges: Edges
    metadata: dict[str, Any]

    @property
    def act(self) -> Callable:
        return self.learner.act

    @cached_property
    def base_params(self) -> Params:
        """The parameters of the policy network alone, whatever trained it."""
        part = _POLICY_PARTS.get(type(self.recipe.learner))
        if isinstance(self.recipe.learner, WITHOUT_A_POLICY):
            found = type(self.recipe.learner).__name__
            raise errors.ConfigError(
                f"{self.path}: no policy network", expected="a learner around a policy", found=f"the actor of {found}"
            )
        return self.params if part is None else self.params[part]

    def quantized(self) -> "TrainedPolicy":
        """The policy with its kernels in int8 and the rest in bfloat16: a quarter of the memory (training/quantize.py).

        Raises ConfigError for learners whose parameters are more than a policy's.
        """
        if not isinstance(self.recipe.learner, ImitationConfig):
            found = type(self.recipe.learner).__name__.removesuffix("Config")
            raise errors.ConfigError(f"{self.path}: int8 weights", expected="an imitation policy", found=found)
        kernels = Tuning(TuningConfig(), self.constructor).kernels
        return dataclasses.replace(self, params=quantize(self.params, kernels, others="bfloat16"))

    @property
    def constructor(self) -> Callable[[nnx.Rngs], Policy]:
        return self.recipe.policy.constructor()


def load(
    path: str | Path, step: int | None = None, *, dataset: str | None = None, base: str | Path | None = None
) -> TrainedPolicy:
    """A checkpoint as a policy. Of one trained on several datasets, `dataset` is the key of the one to act as:
    its kind of actions, its way of resizing and, where every dataset had its own, its statistics; without it, the
    first. A checkpoint with adapters or frozen parts is merged with the
    checkpoint that its run started from, `base` where that has moved.

    Raises CheckpointError when `path` is no complete checkpoint of ours, was trained on no such dataset, or when its
    base is another than it was trained on.
    """
    params, metadata = checkpoints.load_actor(path, step=step)
    recipe = from_plain(Recipe, metadata["recipe"], f"{path}: recipe")
    learner = make_learner(recipe)
    if recipe.tuning != TuningConfig():
        frozen = load_base(base or recipe.start_from, metadata[BASE], path) if recipe.tuning.freezes else {}
        is_inside = isinstance(recipe.learner, AROUND_A_POLICY)
        merged = learner.tuning.merge(frozen, (params["base"] if is_inside else params)["trained"])
        params = params | {"base": merged} if is_inside else merged
        learner = dataclasses.replace(learner, tuning=None)
    known = [each.key for each in recipe.data.datasets]
    if dataset is not None and dataset not in known:
        raise errors.CheckpointError(f"{path}: not trained on dataset {dataset!r}", fix=errors.closest(dataset, known))
    statistics = _by_dataset(path, metadata).get(dataset) or _statistics(path, metadata)
    edges = make_edges(recipe, statistics, dataset)
    return TrainedPolicy(Path(path), recipe, learner, params, edges, metadata)


def save_merged(path: str | Path, out: str | Path) -> None:
    """Write a checkpoint that was trained with adapters or frozen parts as one that needs no base: a run folder that
    evaluates, serves and may be started from. Raises CheckpointError when `out` holds checkpoints already, and as
    `load`."""
    policy = load(path)
    recipe = dataclasses.replace(policy.recipe, tuning=TuningConfig())
    own = ("fit", "format", "leaves", "log_interval", "shared", "step", "versions", "watched", BASE)
    metadata = {name: value for name, value in policy.metadata.items() if name not in own}
    store = checkpoints.Checkpoints(out)
    with contextlib.closing(store):
        if store.steps():
            raise errors.CheckpointError(
                f"{out}: not empty", found=f"checkpoints of steps {store.steps()}", fix="name a new folder"
            )
        store.save(policy.metadata["step"], {}, policy.params, {}, metadata | {"recipe": to_plain(recipe)})
        store.wait()


def base_mark(recipe: Recipe, run_dir: str | Path) -> dict[str, Any]:
    """Which checkpoint the frozen part of a run comes from: that of the run's own checkpoints, and for a new run the
    latest in `start_from`."""
    steps = [int(child.name) for child in (Path(run_dir) / checkpoints.FOLDER).glob("[0-9]*") if child.name.isdigit()]
    if steps:
        return checkpoints.read_metadata(checkpoints.step_folder(run_dir))[BASE]
    return _mark(checkpoints.step_folder(recipe.start_from))


def load_base(path: str | Path, mark: Mapping[str, Any], place: str | Path) -> Params:
    """The parameters of the policy at `path` that has this `base_mark`. Raises CheckpointError, naming `place`, when it
    is not there: adapters fit no other."""
    is_step = (Path(path) / "metadata").is_dir()
    folder = checkpoints.step_folder(path, None if is_step else mark["step"])
    found = _mark(folder)
    if found != mark:
        raise errors.CheckpointError(
            f"{place}: its frozen part is not the one in {folder}",
            expected=f"step {mark['step']} with fingerprint {mark['fingerprint']}",
            found=f"step {found['step']} with fingerprint {found['fingerprint']}",
            fix="name the checkpoint that the run started from: its start_from, or trained.load(..., base=...)",
        )
    return load(folder).base_params


def _mark(folder: Path) -> dict[str, Any]:
    """What tells a checkpoint from all others: orbax gives the files of every write random names of their own."""
    files = sorted(file for file in (folder / "actor").rglob("*") if file.is_file())
    listing = "\n".join(f"{file.relative_to(folder)} {file.stat().st_size}" for file in files)
    step = checkpoints.read_metadata(folder)["step"]
    return {"step": step, "fingerprint": f"{zlib.crc32(listing.encode()):08x}"}


def load_statistics(path: str | Path, step: int | None = None) -> Statistics:
    """The statistics a checkpoint carries."""
    return _statistics(path, checkpoints.read_metadata(checkpoints.step_folder(path, step)))


def load_dataset_statistics(path: str | Path, step: int | None = None) -> dict[str, Statistics]:
    """Those of every dataset by its key; empty where the policy was trained with one for all."""
    return _by_dataset(path, checkpoints.read_metadata(checkpoints.step_folder(path, step)))


def _by_dataset(path: str | Path, metadata: dict[str, Any]) -> dict[str, Statistics]:
    return {
        key: Statistics.from_json(json.dumps(own), f"{path}: {_BY_DATASET}, {key}")
        for key, own in metadata.get(_BY_DATASET, {}).items()
    }


def _statistics(path: str | Path, metadata: dict[str, Any]) -> Statistics:
    return Statistics.from_json(json.dumps(metadata["normalization"]), f"{path}: normalization")
