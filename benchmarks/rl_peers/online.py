"""What both sides of online learning share: the scene is pick-cube with the gripper on slides, seen by its state."""

import argparse
import dataclasses


@dataclasses.dataclass(frozen=True)
class Size:
    num_envs: int = 64
    episode_length: int = 100  # control steps
    discount: float = 0.96
    # ours: RLPD
    capacity: int = 20_000
    warmup_decisions: int = 10
    critic_updates: int = 8  # of `batch_size` transitions, per decision of all environments
    batch_size: int = 256
    decisions: int = 20  # of all environments, in a block
    # brax's PPO
    unroll_length: int = 10
    iterations: int = 2  # of collecting and learning, in a block
    num_minibatches: int = 4
    num_updates_per_batch: int = 4
    # both
    blocks: int = 3


def size_from(parser: argparse.ArgumentParser) -> Size:
    parser.add_argument("--num-envs", type=int, default=Size.num_envs)
    return Size(num_envs=parser.parse_args().num_envs)
