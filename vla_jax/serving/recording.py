"""What a robot saw and did, as RLDS episodes that training reads: yesterday's trials are tomorrow's data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float32

from vla_jax.core import errors
from vla_jax.data.formats import features, image_codec
from vla_jax.data.formats.features import Episode
from vla_jax.data.formats.rlds_writer import RldsWriter

_PREFIX, _PROMPT = "observation/", "prompt"


class EpisodeRecorder:
    """Writes one dataset; use it as a context manager.

    Keys are those of the observations that the policy is sent, such as `observation/front`. Pictures are kept as JPEG
    under their key, the numbers of `state_keys` joined as `observation/state`. The set appears under its name when the
    recorder closes; an episode that has not ended by then is left out.
    """

    def __init__(
        self,
        folder: str | Path,
        cameras: Mapping[str, tuple[int, int]],
        state_dim: int,
        action_dim: int,
        *,
        state_keys: Sequence[str] = ("observation/state",),
        metadata: Mapping[str, Any] | None = None,
        jpeg_quality: int = 95,
    ):
        """`folder` is a version folder that does not exist yet, such as trials/1.0.0; `cameras` are (height, width) by
        key; `metadata` is kept beside the data, for example the server's. Raises DataError when the folder is taken."""
        for key in cameras:
            if not key.startswith(_PREFIX) or "/" in key.removeprefix(_PREFIX):
                raise errors.ConfigError("EpisodeRecorder.cameras", expected=f"keys as {_PREFIX}front", found=key)
        self._cameras, self._state_keys = dict(cameras), tuple(state_keys)
        self._state_dim, self._action_dim, self._quality = state_dim, action_dim, jpeg_quality
        version = Path(folder)
        self._writer = RldsWriter(
            version,
            features.episode_features(
                {key.removeprefix(_PREFIX): size for key, size in cameras.items()},
                state_dim,
                action_dim,
                {"success": tfds.features.Scalar(dtype=np.bool_)},
            ),
            version.parent.name,
            version.name,
            description="Recorded by a client of a policy server.",
            metadata=metadata,
        )
        self._rows: list[dict[str, Any]] = []
        self.num_episodes = 0

    def __enter__(self) -> Self:
        self._writer.__enter__()
        return self

    def __exit__(self, error_type: Any, error: Any, traceback: Any) -> None:
        """Close the set. Where an error ends the recording, the episodes that had ended are kept."""
        has_data = self.num_episodes > 0
        self._writer.__exit__(*((None, None, None) if has_data else (error_type, error, traceback)))

    def add(self, observation: Mapping[str, Any], action: Float32[np.ndarray, "a"]) -> None:
        """One control step. Raises DataError that names the field which is missing or of another shape."""
        row: dict[str, Any] = {}
        for key, size in self._cameras.items():
            picture = observation.get(key)
            if not isinstance(picture, np.ndarray) or picture.shape != (*size, 3) or picture.dtype != np.uint8:
                raise errors.DataError(f"recording {key}", expected=f"uint8 {[*size, 3]}", found=_described(picture))
            row[key] = image_codec.encode_jpeg(picture, self._quality)
        parts = [np.asarray(observation.get(key, ()), np.float32).reshape(-1) for key in self._state_keys]
        row["observation/state"] = _vector(" + ".join(self._state_keys), np.concatenate(parts), self._state_dim)
        row["action"] = _vector("action", np.asarray(action, np.float32), self._action_dim)
        row["language_instruction"] = str(observation.get(_PROMPT, ""))
        self._rows.append(row)

    def end_episode(self, *, is_success: bool) -> None:
        """Write the steps since the last end. A success has reward 1 at its last step, which ended the task; a failure
        has none, and was cut off."""
        if not self._rows:
            return
        count = len(self._rows)
        flags = features.demonstration_flags(count)
        if not is_success:
            flags |= {"reward": np.zeros(count, np.float32), "discount": np.ones(count, np.float32)}
            flags["is_terminal"] = np.zeros(count, bool)
        columns: dict[str, Any] = {name: [row[name] for row in self._rows] for name in self._rows[0]}
        for name in ("observation/state", "action"):
            columns[name] = np.stack(columns[name])
        self._writer.write(Episode({**columns, **flags}, {"episode_metadata/success": np.bool_(is_success)}))
        self._rows = []
        self.num_episodes += 1


def _vector(key: str, vector: Float32[np.ndarray, "..."], width: int) -> Float32[np.ndarray, "width"]:
    if vector.shape != (width,) or not np.isfinite(vector).all():
        raise errors.DataError(f"recording {key}", expected=f"{width} finite numbers", found=_described(vector))
    return vector


def _described(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
