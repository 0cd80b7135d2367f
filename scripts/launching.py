"""What the launchers share: the job they start, and how they submit it or only print it."""

import dataclasses
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence

from vla_jax.core import errors


@dataclasses.dataclass(frozen=True)
class Job:
    recipe: str  # recipes/<name>.py[:function], as seen by the processes
    run: str  # folder of checkpoints and metrics, on storage that all processes share
    name: str = "vla-jax"
    overrides: tuple[str, ...] = ()  # further arguments of `vla-jax train`: "--fit.mesh.fsdp=8"

    def __post_init__(self):
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,40}[a-z0-9])?", self.name):
            raise errors.ConfigError(
                "--name", expected="up to 42 of a-z, 0-9 and -, as Kubernetes and gcloud want it", found=self.name
            )
        if "\n" in " ".join((self.recipe, self.run, *self.overrides)):
            raise errors.ConfigError("job", expected="arguments of one line", found=self)

    @property
    def command(self) -> tuple[str, ...]:
        return ("vla-jax", "train", self.recipe, "--run", self.run, *self.overrides)

    @property
    def shell(self) -> str:
        return shlex.join(self.command)


def submit(command: Sequence[str], text: str, *, dry_run: bool, timeout_s: float = 120.0) -> None:
    """Give `text` to the standard input of `command`; a dry run prints both and starts nothing.

    Raises TrainingError when the command is missing, fails or takes longer than `timeout_s`.
    """
    if dry_run:
        print(f"# {shlex.join(command)}", *([text] if text else []), sep="\n")
        return
    try:
        done = subprocess.run(command, input=text, text=True, capture_output=True, timeout=timeout_s, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise errors.TrainingError(
            f"could not submit with {command[0]}", found=error, fix="--dry-run prints what would be submitted"
        ) from error
    if done.returncode:
        raise errors.TrainingError(f"{command[0]} ended with {done.returncode}", found=done.stderr.strip())
    print(done.stdout.strip() or "submitted", file=sys.stderr)
