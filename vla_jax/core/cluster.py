"""Joining the processes of one run, from what their launcher put into the environment.

    VLA_JAX_COORDINATOR=host:port VLA_JAX_NUM_PROCESSES=2 VLA_JAX_PROCESS_ID=0      said outright (Kubernetes, tests)
    SLURM_JOB_ID, SLURM_NTASKS > 1, ...                                             srun; JAX reads the rest
    TPU_WORKER_HOSTNAMES=a,b,...                                                    a TPU slice of several hosts

Without any of them the process is alone.
"""

import dataclasses
from collections.abc import Mapping

from vla_jax.core import errors

_COORDINATOR, _COUNT, _ID = "VLA_JAX_COORDINATOR", "VLA_JAX_NUM_PROCESSES", "VLA_JAX_PROCESS_ID"
_HEARTBEAT, _START = "VLA_JAX_HEARTBEAT_SECONDS", "VLA_JAX_START_SECONDS"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """`coordinator`, `num_processes` and `process_id` are None where JAX finds them itself."""

    launcher: str  # "environment", "slurm" or "tpu"
    coordinator: str | None = None  # host:port of process 0
    num_processes: int | None = None
    process_id: int | None = None
    heartbeat_seconds: int = 100  # a process that is silent for so long has died, and the others end too
    start_seconds: int = 300  # to wait for the others at the start


def detect(environment: Mapping[str, str]) -> Cluster | None:
    """The cluster that `environment` describes. Raises ConfigError where it says only a part of it."""
    times = {
        "heartbeat_seconds": int(environment.get(_HEARTBEAT, Cluster.heartbeat_seconds)),
        "start_seconds": int(environment.get(_START, Cluster.start_seconds)),
    }
    said = {name: environment[name] for name in (_COORDINATOR, _COUNT, _ID) if name in environment}
    if said:
        return _said_outright(said, times)
    # Under sbatch itself, outside srun, SLURM_NTASKS is there too but no SLURM_PROCID: that process is no rank.
    if "SLURM_PROCID" in environment and int(environment.get("SLURM_NTASKS", 1)) > 1:
        return Cluster("slurm", **times)
    if len([host for host in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]) > 1:
        return Cluster("tpu", **times)
    return None


def join(cluster: Cluster | None) -> None:
    """Wait for the other processes; call it before anything computes. None and a single process do nothing."""
    if cluster is None or cluster.num_processes == 1:
        return
    import jax

    # XLA's CPU back end has no collectives between processes of its own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    local = (cluster.coordinator or "").startswith("127.0.0.1:")
    jax.distributed.initialize(
        cluster.coordinator,
        cluster.num_processes,
        cluster.process_id,
        initialization_timeout=cluster.start_seconds,
        heartbeat_timeout_seconds=cluster.heartbeat_seconds,
        coordinator_bind_address=cluster.coordinator if local else None,
    )


def _said_outright(said: Mapping[str, str], times: Mapping[str, int]) -> Cluster:
    missing = [name for name in (_COORDINATOR, _COUNT, _ID) if name not in said]
    numbers = {name: said.get(name, "") for name in (_COUNT, _ID)}
    if missing or not all(number.isdigit() for number in numbers.values()):
        raise errors.ConfigError(
            "the environment names a part of a cluster",
            expected=f"{_COORDINATOR}=host:port, {_COUNT} and {_ID} as numbers",
            found=dict(said),
            fix=f"set all three, or none for a single process{'; missing: ' + ', '.join(missing) if missing else ''}",
        )
    count, number = int(numbers[_COUNT]), int(numbers[_ID])
    if not 0 <= number < count:
        raise errors.ConfigError(_ID, expected=f"at least 0 and below {_COUNT}={count}", found=number)
    return Cluster("environment", said[_COORDINATOR], count, number, **times)
