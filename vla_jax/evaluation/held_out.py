"""How a policy does on recorded episodes it was not trained on: its own loss, and how far its actions are off.

Open loop: at frames spread over the held-out episodes, the recorded observation goes in and the sampled chunk is
compared with the recorded one, in the units of the robot. The same frames and the same noise at every evaluation, so
that a curve over training shows the policy and not the draw.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int64, Key

from vla_jax.core import errors, keys
from vla_jax.core.types import Demonstrations, Metrics, Observation, Params
from vla_jax.data.action_space import ActionSpace
from vla_jax.data.demonstrations import DemonstrationDataset
from vla_jax.data.normalization import Normalizer
from vla_jax.data.observations import Tokenizer
from vla_jax.data.schema import DatasetConfig


class Imitator(Protocol):
    """A learner whose loss is one of demonstrations."""

    def loss(self, params: Params, key: Key[Array, ""], batch: Demonstrations) -> tuple[Float[Array, ""], Metrics]:
        """The mean over the batch, weighted by `batch.weight`."""
        ...

    def initial_memory(self, batch_size: int) -> Any: ...

    def act(
        self, actor_params: Params, key: Key[Array, ""], observation: Observation, memory: Any
    ) -> tuple[Float[Array, "b h a"], Any]: ...


@dataclasses.dataclass(frozen=True)
class HeldOutSet:
    """The held-out frames of one dataset. Sets of one embodiment are reported together."""

    embodiment: str
    num_frames: int
    batch: Callable[[Int64[np.ndarray, "b"]], Demonstrations]  # of these of its frames, normalized
    action_space: ActionSpace  # that the batches are in: sets may have statistics and kinds of their own


@dataclasses.dataclass(frozen=True)
class HeldOutConfig:
    max_frames: int = 512  # of every set, evenly spread over its held-out frames
    batch_size: int = 64
    seed: int = 0  # of the policy's noise

    def __post_init__(self):
        if self.max_frames < 1 or self.batch_size < 1:
            raise errors.ConfigError(
                "HeldOutConfig",
                expected="max_frames and batch_size of 1 or more",
                found=(self.max_frames, self.batch_size),
            )


@dataclasses.dataclass(frozen=True)
class _Sums:
    """Over frames (loss) and over real action steps (error); they add up over batches and sets. A robot with fewer dims
    counts in those it has."""

    loss: float
    weight: float
    error: Float64[np.ndarray, "a"]
    steps: Float64[np.ndarray, "a"]

    def __add__(self, other: "_Sums") -> "_Sums":
        return _Sums(
            self.loss + other.loss,
            self.weight + other.weight,
            _add_padded(self.error, other.error),
            _add_padded(self.steps, other.steps),
        )


class HeldOut:
    """Call it with the actor's parameters, as `fit` does with `evaluate`."""

    def __init__(
        self,
        learner: Imitator,
        sets: Sequence[HeldOutSet],
        action_names: Sequence[str],
        config: HeldOutConfig = HeldOutConfig(),
    ):
        """`action_names` are those of the robot's dims, in order; of several robots, of the one with the most. Raises
        DataError when a set holds out nothing."""
        for held_out in sets:
            if held_out.num_frames == 0:
                raise errors.DataError(
                    f"{held_out.embodiment}: no held-out episode",
                    expected="at least one episode in the validation subset",
                    fix="raise DatasetConfig.holdout, or set it to 0 to do without validation",
                )
        self._sets, self._names, self._config = tuple(sets), tuple(action_names), config
        self._key = keys.stream(config.seed, "held_out")
        self._judge = jax.jit(_judge(learner))

    def __call__(self, actor_params: Params, step: int) -> dict[str, float]:
        """`validation/loss`, `validation/action_error` (mean absolute, over dims, in the robot's units) and the same
        per dim, over all sets; with several embodiments also for each, under `validation/<embodiment>/`."""
        by_embodiment: dict[str, _Sums] = {}
        for held_out in self._sets:
            sums = self._measure(held_out, actor_params)
            found = by_embodiment.get(held_out.embodiment)
            by_embodiment[held_out.embodiment] = sums if found is None else found + sums
        totals = list(by_embodiment.values())
        total = sum(totals[1:], totals[0])
        if len(total.error) != len(self._names):
            raise errors.ConfigError(
                "held-out action error", expected=f"{len(total.error)} action names, one per dim", found=self._names
            )
        metrics = self._metrics("validation", total)
        if len(by_embodiment) > 1:
            for name, sums in by_embodiment.items():
                metrics |= self._metrics(f"validation/{name}", sums)
        return metrics

    def _measure(self, held_out: HeldOutSet, actor_params: Params) -> _Sums:
        count, size = min(held_out.num_frames, self._config.max_frames), self._config.batch_size
        frames = np.linspace(0, held_out.num_frames - 1, count).round().astype(np.int64)
        sums = []
        for number, start in enumerate(range(0, count, size)):
            rows = frames[start : start + size]
            batch = held_out.batch(np.resize(rows, size))  # one size, one program: what repeats weighs nothing
            is_real = np.arange(size) < len(rows)
            key = keys.at_step(self._key, number)
            sums.append(jax.device_get(self._judge(actor_params, held_out.action_space, key, batch, is_real)))
        return _Sums(*(np.sum([np.asarray(part[i], np.float64) for part in sums], axis=0) for i in range(4)))

    def _metrics(self, prefix: str, sums: _Sums) -> dict[str, float]:
        by_dim = sums.error / np.maximum(sums.steps, 1)
        return {
            f"{prefix}/loss": float(sums.loss / max(sums.weight, 1e-9)),
            f"{prefix}/action_error": float(by_dim.mean()),
            **{f"{prefix}/action_error_{name}": float(e) for name, e in zip(self._names, by_dim, strict=False)},
        }


def sets_of(
    configs: Sequence[DatasetConfig],
    normalizers: Sequence[Normalizer],
    tokenizer: Tokenizer,
    cache_folder: str | None = None,
) -> tuple[HeldOutSet, ...]:
    """The validation sides of the datasets that hold episodes out of training, each with the normalizer that it is
    trained with. A dataset that names no embodiment is one of its own. Raises DataError when a held-out side is
    empty."""
    return tuple(
        _held_out_set(config, normalizer, tokenizer, cache_folder)
        for config, normalizer in zip(configs, normalizers, strict=True)
        if config.holdout > 0 and config.transitions is None
    )


def _held_out_set(
    config: DatasetConfig, normalizer: Normalizer, tokenizer: Tokenizer, cache_folder: str | None
) -> HeldOutSet:
    held_out = dataclasses.replace(config, subset="validation")
    data = DemonstrationDataset(held_out, normalizer, tokenizer, cache_folder=cache_folder)
    name = config.embodiment or data.dataset.place.partition(",")[0].replace("/", "_")
    space = ActionSpace.create(normalizer, config.action_kind, config.relative_dims, data.dataset.place)
    return HeldOutSet(name, data.num_frames, lambda numbers: data.batch(data.selection.frame(numbers)), space)


def _add_padded(a: Float64[np.ndarray, "a"], b: Float64[np.ndarray, "b"]) -> Float64[np.ndarray, "c"]:
    width = max(len(a), len(b))
    return np.pad(a, (0, width - len(a))) + np.pad(b, (0, width - len(b)))


def _judge(learner: Imitator) -> Callable:
    def judge(
        params: Params, space: ActionSpace, key: Key[Array, ""], batch: Demonstrations, is_real: Bool[Array, "b"]
    ):
        """Sums of loss and weight over the batch, and of error and steps over it per dim."""
        loss_key, act_key = jax.random.split(key)
        batch = batch.replace(weight=batch.weight * is_real)
        loss, _ = learner.loss(params, loss_key, batch)
        actions, _ = learner.act(params, act_key, batch.observation, learner.initial_memory(len(is_real)))
        # Both sides are measured from the same state, which cancels; the batch's own may hide dims.
        state = jnp.zeros((len(is_real), space.normalizer.state_dim))
        error = jnp.abs(space.to_robot(actions, state) - space.to_robot(batch.actions, state))
        counted = batch.action_mask[..., : error.shape[-1]] * batch.weight[:, None, None]
        weight = batch.weight.sum()
        return loss * weight, weight, (error * counted).sum((0, 1)), counted.sum((0, 1))

    return judge


def together(*parts: Callable[[Params, int], Mapping[str, float]]) -> Callable[[Params, int], dict[str, float]]:
    """Several evaluations as one, for `fit`."""
    return lambda actor_params, step: {k: v for part in parts for k, v in part(actor_params, step).items()}
