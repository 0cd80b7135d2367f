"""Train on Kubernetes as a JobSet (jobset.x-k8s.io): one pod per host, all started again when one is lost.

    python scripts/launch_kubernetes.py recipes/pi0_droid.py:paper /data/runs/pi0 --image IMAGE --hosts 2 --gpus 8
    python scripts/launch_kubernetes.py recipes/pi0_droid.py:paper /data/runs/pi0 --image IMAGE --hosts 64 \\
        --tpu-accelerator tpu-v5-lite-podslice --tpu-topology 16x16 --tpus 4 --claim training-data

`--dry-run` prints the manifest and submits nothing.
"""

import dataclasses
import json
from typing import Annotated, Any

import tyro

from scripts.launching import Job, submit
from vla_jax.core import errors

_WORKER, _PORT = "worker", 1234


@dataclasses.dataclass(frozen=True)
class Kubernetes:
    recipe: Annotated[str, tyro.conf.Positional]
    run: Annotated[str, tyro.conf.Positional]  # on the mounted volume
    image: str
    hosts: int = 1
    gpus: int = 0  # per host
    tpus: int = 0  # chips per host
    tpu_accelerator: str | None = None  # of GKE's node label: tpu-v5-lite-podslice, tpu-v5p-slice, ...
    tpu_topology: str | None = None  # 16x16
    claim: str | None = None  # persistent volume claim, mounted at /data
    max_restarts: int = 100
    grace: int = 120  # seconds between SIGTERM and SIGKILL; a checkpoint has to fit into them
    name: str = "vla-jax"
    overrides: tuple[str, ...] = ()
    dry_run: bool = False

    def __post_init__(self):
        if self.gpus and self.tpus:
            raise errors.ConfigError("--gpus and --tpus", expected="one of them", found=(self.gpus, self.tpus))
        if bool(self.tpus) != bool(self.tpu_accelerator and self.tpu_topology):
            raise errors.ConfigError("--tpus", expected="with --tpu-accelerator and --tpu-topology", found=self.tpus)

    @property
    def job(self) -> Job:
        return Job(self.recipe, self.run, self.name, self.overrides)


def render(options: Kubernetes) -> dict[str, Any]:
    """The JobSet, as JSON types."""
    name = options.job.name
    resources = {"nvidia.com/gpu": options.gpus, "google.com/tpu": options.tpus}
    limits = {kind: str(count) for kind, count in resources.items() if count}
    container = {
        "name": "train",
        "image": options.image,
        "command": list(options.job.command),
        # On a TPU slice GKE says who the others are.
        "env": [] if options.tpus else _environment(name, options.hosts),
        "ports": [{"containerPort": _PORT}],
        "resources": {"limits": limits},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}] if options.claim else [],
    }
    tpu = {"accelerator": options.tpu_accelerator, "topology": options.tpu_topology}
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": options.grace,
        "nodeSelector": {f"cloud.google.com/gke-tpu-{key}": value for key, value in tpu.items() if value},
        "containers": [container],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": options.claim}}] if options.claim else [],
    }
    job = {
        "parallelism": options.hosts,
        "completions": options.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # a lost pod fails the job, and the JobSet starts all of them again
        "template": {"spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": {"maxRestarts": options.max_restarts},
            "replicatedJobs": [{"name": _WORKER, "replicas": 1, "template": {"spec": job}}],
        },
    }


def _environment(name: str, hosts: int) -> list[dict[str, Any]]:
    """`core/cluster.py` reads it; pod 0 of a JobSet has a stable host name."""
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    return [
        {"name": "VLA_JAX_COORDINATOR", "value": f"{name}-{_WORKER}-0-0.{name}:{_PORT}"},
        {"name": "VLA_JAX_NUM_PROCESSES", "value": str(hosts)},
        {"name": "VLA_JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}},
    ]


def main() -> None:
    options = tyro.cli(Kubernetes, description=__doc__)
    # kubectl reads JSON as it reads YAML.
    submit(("kubectl", "apply", "-f", "-"), json.dumps(render(options), indent=2), dry_run=options.dry_run)


if __name__ == "__main__":
    main()
