"""Train on Slurm: one process per node, requeued when preempted or out of time, going on from its last checkpoint.

python scripts/launch_slurm.py recipes/pi0_droid.py:paper runs/pi0_droid --nodes 4 --gpus-per-node 8 --dry-run
"""

import dataclasses
from typing import Annotated

import tyro

from scripts.launching import Job, submit

_SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task={cpus}
{resources}#SBATCH --time={time}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={run}/slurm-%j.log
#SBATCH --signal=B:TERM@{grace}

# Slurm tells this script alone, by SIGTERM, that the job is preempted or has {grace} s left. Training saves and ends
# with 0 on SIGTERM; the job then goes back into the queue, and the same command goes on from the checkpoint.
stopped=0 again=0 child=
stop() {{
  stopped=1 again=1
  [ -n "$child" ] && kill -TERM "$child"
}}
trap stop TERM

srun --kill-on-bad-exit=1 {command} &
child=$!
[ "$stopped" -eq 1 ] && kill -TERM "$child"  # it came before there was anyone to hand it to
wait "$child"
status=$?
while [ "$again" -eq 1 ] && [ "$status" -gt 128 ]; do  # the signal ended the waiting, not the child
  again=0
  wait "$child"
  status=$?
done

if [ "$stopped" -eq 1 ] && [ "$status" -eq 0 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


@dataclasses.dataclass(frozen=True)
class Slurm:
    recipe: Annotated[str, tyro.conf.Positional]
    run: Annotated[str, tyro.conf.Positional]
    nodes: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 16
    time: str = "24:00:00"
    partition: str | None = None
    account: str | None = None
    grace: int = 120  # seconds between the signal and the end; a checkpoint has to fit into them
    name: str = "vla-jax"
    overrides: tuple[str, ...] = ()
    dry_run: bool = False

    @property
    def job(self) -> Job:
        return Job(self.recipe, self.run, self.name, self.overrides)


def render(options: Slurm) -> str:
    """The batch script."""
    wanted = {"gpus-per-node": options.gpus_per_node, "partition": options.partition, "account": options.account}
    return _SCRIPT.format(
        name=options.job.name,
        nodes=options.nodes,
        cpus=options.cpus_per_task,
        resources="".join(f"#SBATCH --{key}={value}\n" for key, value in wanted.items() if value),
        time=options.time,
        run=options.run,
        grace=options.grace,
        command=options.job.shell,
    )


def main() -> None:
    options = tyro.cli(Slurm, description=__doc__)
    submit(("sbatch",), render(options), dry_run=options.dry_run)


if __name__ == "__main__":
    main()
