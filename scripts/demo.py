"""The main job on the embedded suite, as `make demo` runs it: `python scripts/demo.py --out runs/demo`."""

import dataclasses
import signal
import sys

import rich.console
import tyro

import vla_jax  # noqa: F401  (first: sets XLA's CPU flags before jax starts)
from recipes import tabletop_demo
from vla_jax import main_job
from vla_jax.core import errors, runtime


@dataclasses.dataclass(frozen=True)
class Options:
    out: str = tabletop_demo.FOLDER  # folder of the dataset, checkpoints, metrics and the report
    seed: int = 0


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    console = rich.console.Console(highlight=False)
    runtime.enable_compile_cache()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # outside training both just stop: stages are atomic
    try:
        main_job.run(tabletop_demo.job(options.out, options.seed), console)
    except (main_job.Interrupted, KeyboardInterrupt):
        console.print("stopped; run the same command to go on from here")
    except errors.VlaError as error:
        console.print(f"{type(error).__name__}: {error}", style="red")
        sys.exit(2)


if __name__ == "__main__":
    main()
