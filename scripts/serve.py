"""A checkpoint as a policy server: `python scripts/serve.py runs/demo/imitation --port 8000`; as `vla-jax serve`."""

import sys

from vla_jax import cli

if __name__ == "__main__":
    cli.main(["serve", *sys.argv[1:]])
