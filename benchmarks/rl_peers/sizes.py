"""The sizes that both sides build, the arrays they are given, and the products that an update needs."""

import dataclasses
import itertools

import numpy as np

ADAM_LR = 3e-4
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class DQCSize:
    """OGBench's cube-triple with oracle goals, as the paper's DQC (25, 5), whose networks are the larger ones here."""

    hidden_dims: tuple[int, ...]
    state_dim: int = 46
    action_dim: int = 5
    goal_dim: int = 9
    backup_horizon: int = 25
    action_horizon: int = 5
    batch_size: int = 256
    num_critics: int = 2
    discount: float = 0.999
    kappa_b: float = 0.93
    kappa_d: float = 0.8

    def flops(self) -> float:
        """Multiplications and additions of the matrix products of one update."""
        joint = self.state_dim + self.goal_dim
        chunk, begin = (joint + steps * self.action_dim for steps in (self.backup_horizon, self.action_horizon))
        out = self.action_horizon * self.action_dim
        per_row = self.num_critics * (trained(chunk, self.hidden_dims, 1) + trained(begin, self.hidden_dims, 1))
        per_row += self.num_critics * forward(begin, self.hidden_dims, 1)  # the slow copy
        per_row += trained(joint, self.hidden_dims, 1) + forward(joint, self.hidden_dims, 1)  # V here and where it led
        per_row += trained(self.state_dim + out + 1, self.hidden_dims, out)
        return self.batch_size * per_row

    def arrays(self, leading: tuple[int, ...] = ()) -> Arrays:
        """A batch under the public agent's names; every chunk is whole."""
        rng = np.random.default_rng(0)
        shape = (*leading, self.batch_size)
        success = rng.random(shape) < 0.2
        steps = np.where(success, rng.integers(0, self.backup_horizon, shape), self.backup_horizon)
        chunks = rng.uniform(-1, 1, (*shape, self.backup_horizon * self.action_dim))
        found = {
            "observations": rng.standard_normal((*shape, self.state_dim)),
            "actions": chunks[..., : self.action_dim],
            "high_value_action_chunks": chunks,
            "high_value_next_observations": rng.standard_normal((*shape, self.state_dim)),
            "high_value_goals": rng.standard_normal((*shape, self.goal_dim)),
            "high_value_backup_horizon": steps,
            "high_value_rewards": self.discount**steps * success,
            "high_value_masks": 1.0 - success,
            "valids": np.ones_like(chunks),
        }
        return {name: array.astype(np.float32) for name, array in found.items()}


@dataclasses.dataclass(frozen=True)
class SERLSize:
    """SERL's simulated pick-cube from states, its update of many critic steps for one of the actor."""

    hidden_dims: tuple[int, ...] = (256, 256)
    state_dim: int = 10
    action_dim: int = 4
    num_critics: int = 10
    num_min_critics: int = 2
    critic_updates: int = 20
    batch_size: int = 256  # of each critic update; the actor sees all of them
    discount: float = 0.99

    def flops(self, target_heads: int) -> float:
        """Of one call, with so many heads of the target evaluated."""
        joint = self.state_dim + self.action_dim
        per_row = self.num_critics * trained(joint, self.hidden_dims, 1)
        per_row += target_heads * forward(joint, self.hidden_dims, 1)
        # the actor's part: through the critics to the actions, and next actions for targets and temperature
        per_row += 2 * self.num_critics * forward(joint, self.hidden_dims, 1)
        outputs = 2 * self.action_dim
        per_row += trained(self.state_dim, self.hidden_dims, outputs)
        per_row += 2 * forward(self.state_dim, self.hidden_dims, outputs)
        return self.critic_updates * self.batch_size * per_row

    def arrays(self) -> Arrays:
        """The rows of all critic updates, one minibatch after the other."""
        rng = np.random.default_rng(0)
        rows = self.critic_updates * self.batch_size
        found = {
            "observations": rng.standard_normal((rows, self.state_dim)),
            "next_observations": rng.standard_normal((rows, self.state_dim)),
            "actions": rng.uniform(-1, 1, (rows, self.action_dim)),
            "rewards": rng.random(rows),
            "masks": rng.random(rows) < 0.95,
        }
        return {name: array.astype(np.float32) for name, array in found.items()}


def forward(in_dim: int, hidden_dims: tuple[int, ...], out_dim: int) -> float:
    """Of one row through a multilayer perceptron."""
    return 2.0 * sum(a * b for a, b in itertools.pairwise((in_dim, *hidden_dims, out_dim)))


def trained(in_dim: int, hidden_dims: tuple[int, ...], out_dim: int) -> float:
    """Forward, and the gradients of all weights and of all hidden layers, which the inputs need none of."""
    return 3 * forward(in_dim, hidden_dims, out_dim) - 2.0 * in_dim * hidden_dims[0]


DQC_SIZES = {"2x256": DQCSize((256, 256)), "4x1024": DQCSize((1024,) * 4)}
SCANS = {"2x256": 10, "4x1024": 3}  # updates in one call of the cases that scan
SERL = SERLSize()
DQC_CASES = tuple(f"dqc_{size}{scan}" for size, n in SCANS.items() for scan in ("", f"_scan{n}"))
CASES = (*DQC_CASES, "serl_utd20")


def dqc_case(name: str) -> tuple[DQCSize, int | None]:
    """The size of a case, and how many updates it scans over, if it does."""
    _, size, *scan = name.split("_")
    return DQC_SIZES[size], SCANS[size] if scan else None


def updates_per_call(case: str) -> int:
    """Gradient steps of the critics."""
    return SERL.critic_updates if case.startswith("serl") else dqc_case(case)[1] or 1


def flops(case: str, is_peer: bool) -> float:
    """Of one call. SERL evaluates all heads of the target and uses some."""
    if case.startswith("serl"):
        return SERL.flops(SERL.num_critics if is_peer else SERL.num_min_critics)
    return dqc_case(case)[0].flops() * updates_per_call(case)
