"""Train on a Cloud TPU slice without a cluster manager: ask for the slice, install on every host, start on every host.

    python scripts/launch_tpu_vm.py recipes/pi0_droid.py:paper /mnt/bucket/pi0 --name pi0 --zone us-west4-a \\
        --accelerator v5litepod-256 --source gs://bucket/vla_jax.tar.gz --spot --dry-run

A spot slice that is taken back saves on SIGTERM; the same command asks for another and goes on from the checkpoint.
"""

import dataclasses
import shlex
from typing import Annotated

import tyro

from scripts.launching import Job, submit
from vla_jax.core import errors

_RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}


@dataclasses.dataclass(frozen=True)
class TpuVm:
    recipe: Annotated[str, tyro.conf.Positional]
    run: Annotated[str, tyro.conf.Positional]  # where every host can write: a mounted bucket or disk
    zone: str
    accelerator: str  # v5litepod-256, v5p-128, v6e-64, ...
    source: str  # gs:// address of an archive of this repository
    name: str = "vla-jax"
    spot: bool = False
    timeout_s: float = 7200.0  # to wait for the slice, then again for the installation
    overrides: tuple[str, ...] = ()
    dry_run: bool = False

    def __post_init__(self):
        if self.kind not in _RUNTIMES:
            raise errors.ConfigError(f"--accelerator {self.accelerator}", fix=errors.closest(self.kind, _RUNTIMES))

    @property
    def kind(self) -> str:
        return self.accelerator.split("-")[0]

    @property
    def job(self) -> Job:
        return Job(self.recipe, self.run, self.name, self.overrides)


def render(options: TpuVm) -> list[tuple[str, ...]]:
    """The commands, in order. The last one returns at once: training runs on in a `tmux` session of each host."""
    name, place = options.job.name, ("--zone", options.zone)
    create = (
        *("gcloud", "compute", "tpus", "tpu-vm", "create", name, *place),
        *("--accelerator-type", options.accelerator),
        *("--version", _RUNTIMES[options.kind]),
        *(("--spot",) if options.spot else ()),
    )
    install = (
        "rm -rf vla_jax_src && mkdir vla_jax_src && "
        f"gcloud storage cp {shlex.quote(options.source)} source.tar.gz && tar -xzf source.tar.gz -C vla_jax_src && "
        "python3 -m venv venv && venv/bin/pip install -q -e './vla_jax_src' 'jax[tpu]'"
    )
    inside = f"cd vla_jax_src && PATH=$HOME/venv/bin:$PATH {options.job.shell} >> $HOME/train.log 2>&1"
    start = f"tmux kill-session -t train 2>/dev/null; tmux new-session -d -s train {shlex.quote(inside)}"
    everywhere = ("gcloud", "compute", "tpus", "tpu-vm", "ssh", name, *place, "--worker=all", "--command")
    return [create, (*everywhere, install), (*everywhere, start)]


def main() -> None:
    options = tyro.cli(TpuVm, description=__doc__)
    for command in render(options):
        submit(command, "", dry_run=options.dry_run, timeout_s=options.timeout_s)


if __name__ == "__main__":
    main()
