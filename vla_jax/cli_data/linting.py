"""The verb lint: what is wrong with a set, before a GPU hour is spent on it."""

import dataclasses
import sys
from typing import Annotated, Literal

import rich.console
import tyro

from data_pipelines import replays
from vla_jax.data.embodiments import embodiment
from vla_jax.data.lint import declared as declaring
from vla_jax.data.lint.checks import lint as run_lint
from vla_jax.data.lint.settings import Declared, LintConfig
from vla_jax.data.look.layout import read_layout
from vla_jax.data.open import open_dataset


@dataclasses.dataclass(frozen=True)
class Lint:
    dataset: Annotated[str, tyro.conf.Positional]  # an RLDS version folder, or the folder of a LeRobot set
    split: str = "train"
    embodiment: str | None = None  # a row of embodiments.toml, which then says everything that is not given here
    action_horizon: int = 16  # steps per chunk of the policy to come
    state_keys: tuple[str, ...] | None = None  # under observation/, joined; by default "state"
    action_keys: tuple[str, ...] | None = None  # joined; by default "action"
    instruction_key: str | None = None  # by default "language_instruction"
    cameras: tuple[str, ...] | None = None  # under observation/, those that must be there; by default all there are
    action_kind: Literal["delta", "absolute"] | None = None  # what you think it is
    control_hz: float | None = None  # likewise
    gripper_action_dim: int | None = None
    gripper_state_dim: int | None = None
    larger_action_opens: bool | None = None  # the gripper
    replay: bool = False  # run recorded actions again, where the set comes from a simulator that is installed
    replay_episodes: int = 10


def lint(arguments: list[str], console: rich.console.Console) -> None:
    """Onboarding checks: conventions of actions, frequency, cameras, words, damage. Exit code 1 on errors."""
    options = tyro.cli(Lint, args=arguments, prog="vla-jax data lint", description=lint.__doc__)
    row = None if options.embodiment is None else embodiment(options.embodiment)
    config = LintConfig() if row is None else declaring.config_of(row)
    config = _overridden(config, options)
    run_again = replays.replay_of(options.dataset, options.split, options.replay_episodes) if options.replay else None
    with console.status("reading columns and some pictures"):
        report = run_lint(open_dataset(options.dataset, options.split), config, row=row, run_again=run_again)
    console.print(report)
    if report.has_errors:
        sys.exit(1)


def _overridden(config: LintConfig, options: Lint) -> LintConfig:
    """What the options say, then the row, then the set's own metadata."""
    layout = read_layout(options.dataset)
    grips = [dim for dim, name in enumerate(layout.action_names) if "grip" in name.lower()]
    said = {
        "action_kind": options.action_kind,
        "control_hz": options.control_hz,
        "cameras": None if options.cameras is None else tuple(f"observation/{name}" for name in options.cameras),
        "gripper_action_dim": options.gripper_action_dim,
        "gripper_state_dim": options.gripper_state_dim,
        "larger_action_opens": options.larger_action_opens,
    }
    metadata = {"control_hz": layout.control_hz, "gripper_action_dim": grips[0] if len(grips) == 1 else None}
    fields = {}
    for name in (field.name for field in dataclasses.fields(Declared)):
        candidates = (said.get(name), getattr(config.declared, name), metadata.get(name))
        fields[name] = next((value for value in candidates if value is not None), None)
    names = {
        "state_names": options.state_keys and tuple(f"observation/{key}" for key in options.state_keys),
        "action_names": options.action_keys,
        "instruction_name": options.instruction_key,
    }
    given = {name: value for name, value in names.items() if value is not None}
    return dataclasses.replace(config, declared=Declared(**fields), action_horizon=options.action_horizon, **given)
