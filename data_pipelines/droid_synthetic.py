"""Generated episodes in the exact schema of DROID 1.0.1, for tests and for measuring loaders.

    generate("data/droid_synthetic/1.0.1", DroidSyntheticConfig(num_episodes=20))

What is real: names, types, shapes, record format, JPEG settings and sizes (10 to 20 kB a picture), 15 Hz, smooth motion
with stretches where the operator waits. What is not: the pictures are moving textures and the arm has no geometry; its
hand moves linearly with the joints.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import simplejpeg
from jaxtyping import Float, UInt8
from PIL import Image

from data_pipelines.droid import CONTROL_HZ, DATASET_NAME, EXTERIOR_CAMERAS, IMAGE_SIZE, VERSION, WRIST_CAMERA, features
from vla_jax.core import errors
from vla_jax.data.formats.features import Episode, demonstration_flags
from vla_jax.data.formats.rlds_writer import RldsWriter

JPEG_QUALITY = 95  # with halved colour, as TFDS encodes

_HEIGHT, _WIDTH = IMAGE_SIZE
_MARGIN = 64  # pixels that the camera may drift over the texture
_NUM_TEXTURES = 6
_COLOUR = ((64, 30), (20, 8))  # size in pixels and strength in levels of each layer
_LIGHT = ((64, 50), (24, 20), (8, 12), (3, 6), (1, 1.5))
_HOME = np.array([0.0, -0.6, 0.0, -2.2, 0.0, 1.6, 0.0])  # rad
_TASKS = (
    ("put the marker in the cup", "place the pen into the mug", "marker to cup"),
    ("open the top drawer", "pull the upper drawer open", "open the drawer at the top"),
    ("wipe the table with the towel", "use the towel to clean the table", "wipe the surface"),
    ("stack the blue bowl on the plate", "put the bowl onto the plate", "bowl on plate"),
)


@dataclasses.dataclass(frozen=True)
class DroidSyntheticConfig:
    """What is generated; deterministic in these values."""

    num_episodes: int = 20
    shortest: int = 60  # steps
    longest: int = 180
    success_rate: float = 0.8  # of the episodes, evenly spread
    idle_fraction: float = 0.25  # of the steps, in stretches of 8 to 24
    seed: int = 0
    max_shard_bytes: int = 32 << 20

    def __post_init__(self):
        if self.num_episodes < 1 or not 1 <= self.shortest <= self.longest:
            raise errors.ConfigError(
                "DroidSyntheticConfig",
                expected="num_episodes of 1 or more and 1 <= shortest <= longest",
                found=(self.num_episodes, self.shortest, self.longest),
            )
        for name in ("success_rate", "idle_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise errors.ConfigError(
                    f"DroidSyntheticConfig.{name}", expected="in [0, 1]", found=getattr(self, name)
                )


def generate(folder: str | Path, config: DroidSyntheticConfig = DroidSyntheticConfig()) -> Path:
    """Write the dataset as TFRecord into `folder`, which becomes its version folder. Raises DataError when `folder`
    already holds something."""
    folder = Path(folder)
    with RldsWriter(
        folder,
        features(),
        DATASET_NAME,
        version=VERSION,
        file_format="tfrecord",
        description="Generated episodes in the schema of DROID 1.0.1; not recorded from a robot.",
        max_shard_bytes=config.max_shard_bytes,
    ) as writer:
        for number in range(config.num_episodes):
            writer.write(make_episode(config, number))
    return folder


def make_episode(config: DroidSyntheticConfig, number: int) -> Episode:
    """Episode `number` of the config, a pure function of both."""
    rng = np.random.default_rng((config.seed, number))
    num_steps = int(rng.integers(config.shortest, config.longest + 1))
    motion = _motion(rng, num_steps, config.idle_fraction)
    first, second, third = _TASKS[int(rng.integers(len(_TASKS)))]
    hand = motion["observation/cartesian_position"][:, :3]
    cameras = {name: _pictures(rng, hand, sways=False) for name in EXTERIOR_CAMERAS}
    cameras[WRIST_CAMERA] = _pictures(rng, hand, sways=True)
    # Bresenham: successes are spread evenly, and their number is exact to one.
    is_success = int((number + 1) * config.success_rate) > int(number * config.success_rate)
    recording = f"LAB/{'success' if is_success else 'failure'}/2023-07-{number % 28 + 1:02d}/episode_{number:06d}"
    return Episode(
        steps={
            **motion,
            **{f"observation/{name}": pictures for name, pictures in cameras.items()},
            "language_instruction": first,
            "language_instruction_2": second,
            "language_instruction_3": third,
            **demonstration_flags(num_steps),
        },
        metadata={
            "episode_metadata/file_path": f"/data/{recording}/trajectory.h5",
            "episode_metadata/recording_folderpath": f"/data/{recording}/recordings/MP4",
        },
    )


def _motion(rng: np.random.Generator, num_steps: int, idle_fraction: float) -> dict[str, Float[np.ndarray, "t d"]]:
    """Positions and commands of one episode; joints integrate the joint velocity command exactly."""
    period = 1 / CONTROL_HZ
    seconds = np.arange(num_steps) * period
    frequency = rng.uniform(0.2, 0.6, 7)  # Hz: slower than an arm's own dynamics
    joint_velocity = rng.uniform(0.1, 0.5, 7) * np.sin(2 * np.pi * (frequency * seconds[:, None] + rng.random(7)))
    joint_velocity[_idle_steps(rng, num_steps, idle_fraction)] = 0
    moved = np.concatenate([np.zeros((1, 7)), np.cumsum(joint_velocity[:-1] * period, axis=0)])
    joint_position = _HOME + rng.normal(0, 0.1, 7) + moved
    hand_per_joint = rng.normal(0, 0.15, (7, 6))
    cartesian_velocity = joint_velocity @ hand_per_joint
    cartesian_position = np.array([0.5, 0, 0.4, np.pi, 0, 0]) + moved @ hand_per_joint
    # 0 is open and 1 is closed; it closes once and opens again.
    closing, opening = np.sort(rng.uniform(0.2, 0.9, 2)) * num_steps
    gripper = np.clip(np.minimum((np.arange(num_steps) - closing) / 5, (opening - np.arange(num_steps)) / 5), 0, 1)
    gripper = gripper[:, None]
    gripper_velocity = np.diff(gripper, axis=0, append=gripper[-1:]) * CONTROL_HZ
    return {
        "observation/joint_position": joint_position,
        "observation/cartesian_position": cartesian_position,
        "observation/gripper_position": gripper,
        "action_dict/joint_velocity": joint_velocity,
        "action_dict/joint_position": joint_position + joint_velocity * period,
        "action_dict/cartesian_velocity": cartesian_velocity,
        "action_dict/cartesian_position": cartesian_position + cartesian_velocity * period,
        "action_dict/gripper_position": gripper + gripper_velocity * period,
        "action_dict/gripper_velocity": gripper_velocity,
        "action": np.concatenate([cartesian_velocity, gripper], axis=1),
    }


def _idle_steps(rng: np.random.Generator, num_steps: int, fraction: float) -> np.ndarray:
    """Steps of disjoint stretches of 8 to 24 steps that together are about `fraction` of the episode."""
    idle = np.zeros(num_steps, bool)
    while idle.mean() < fraction:
        length = int(rng.integers(8, 25))
        start = int(rng.integers(0, max(num_steps - length, 1)))
        idle[start : start + length] = True
    return np.flatnonzero(idle)


def _pictures(rng: np.random.Generator, hand: Float[np.ndarray, "t 3"], sways: bool) -> list[bytes]:
    """JPEGs of a scene with something in it that follows the hand; with `sways` the camera follows it too."""
    texture = _textures()[int(rng.integers(_NUM_TEXTURES))]
    thing = _textures()[int(rng.integers(_NUM_TEXTURES))][:48, :48]
    offset = rng.integers(0, _MARGIN, 2)
    # One metre is 200 pixels; what leaves the picture stops at its edge.
    moved = np.round((hand[:, :2] - hand[0, :2]) * 200).astype(int)
    encoded = []
    for step in moved:
        top, left = np.clip(offset + step * sways, 0, _MARGIN)
        picture = texture[top : top + _HEIGHT, left : left + _WIDTH].copy()
        row, column = np.clip(np.array([60, 130]) + step, 0, [_HEIGHT - 48, _WIDTH - 48])
        picture[row : row + 48, column : column + 48] = thing
        encoded.append(simplejpeg.encode_jpeg(picture, quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="420"))
    return encoded


@functools.cache
def _textures() -> tuple[UInt8[np.ndarray, "height width 3"], ...]:
    """Scenes whose JPEGs are as large as those of a real room: strong in the large, weak in the small, some colour."""
    rng = np.random.default_rng(0)
    height, width = _HEIGHT + _MARGIN, _WIDTH + _MARGIN

    def noise(cell: int) -> Float[np.ndarray, "height width 1"]:
        coarse = rng.normal(0, 1, (height // cell + 2, width // cell + 2)).astype(np.float32)
        return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))[..., None]

    scenes = []
    for detail in np.linspace(0.3, 1.1, _NUM_TEXTURES):
        colour = sum(strength * np.concatenate([noise(cell) for _ in range(3)], -1) for cell, strength in _COLOUR)
        light = sum(strength * detail * noise(cell) for cell, strength in _LIGHT)
        scenes.append(np.clip(120 + colour + light, 0, 255).astype(np.uint8))
    return tuple(scenes)
