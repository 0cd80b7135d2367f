"""The verbs by name."""

from collections.abc import Callable

import rich.console

from vla_jax.cli_data import linting, looking, making

VERBS: dict[str, Callable[[list[str], rich.console.Console], None]] = {
    "generate": making.generate,
    "inspect": looking.inspect,
    "index": looking.index,
    "stats": looking.stats,
    "convert": making.convert,
    "cache": making.cache,
    "view": looking.view,
    "lint": linting.lint,
}
