"""`vla-jax`: train, evaluate, compare and tabulate recipes, and look after data. Thin: parse, call, print."""

import dataclasses
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import rich.console
import tyro

from vla_jax.core import cluster, errors

USAGE = """\
vla-jax train RECIPE[:FUNCTION] --run DIR [--FIELD VALUE ...]   train a recipe; the same command resumes
vla-jax eval CHECKPOINT [--doctor] [--FIELD VALUE ...]          judge a checkpoint by its recipe's evaluation
vla-jax serve CHECKPOINT [--FIELD VALUE ...]                    answer robots over the network
vla-jax learn RECIPE[:FUNCTION] --run DIR [--port N ...]        train from what actors in other processes send
vla-jax act RECIPE[:FUNCTION] --connect ws://... --actor ARM    act in an environment or with a robot for a learner
vla-jax plan RECIPE[:FUNCTION] --topology v5e:16x16 [--sweep]   memory, step time and utilization on a pod
vla-jax import SOURCE OUT --layout L --recipe R [...]          weights of openpi, LeRobot, Hugging Face as a checkpoint
vla-jax export RUN OUT --layout L                               a checkpoint as safetensors in their layouts
vla-jax merge RUN OUT                                           adapters and their base as one checkpoint
vla-jax compare RUN_A RUN_B                                     two evaluations, episode by episode
vla-jax table NAME                                              a benchmark table from results/
vla-jax data generate|inspect|index|stats|convert|cache|view|lint ...  demonstrations on disk
vla-jax doctor                                                  what this machine has and lacks

`vla-jax COMMAND --help` says more."""

_DOCTOR_EPISODES = 10
_console = rich.console.Console(highlight=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; errors that a user can mend are printed without a traceback and exit with 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = {
        "train": train, "eval": evaluate, "compare": compare, "table": table, "data": data, "doctor": doctor,
        "serve": serve, "plan": plan, "learn": learn, "act": act,
    }  # fmt: skip
    commands |= {"import": import_, "export": export, "merge": merge}
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(USAGE)
        elif arguments[0] not in commands:
            raise errors.ConfigError(f"no command {arguments[0]!r}", fix=errors.closest(arguments[0], commands))
        else:
            commands[arguments[0]](arguments[1:])
    except errors.VlaError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)


def train(arguments: list[str]) -> None:
    """RECIPE is a file that builds one, with the function to call (default: quick)."""
    from vla_jax import experiment
    from vla_jax.training.recipe import Recipe

    cluster.join(cluster.detect(os.environ))
    name, rest = _positional(arguments, "train", "RECIPE[:FUNCTION]")
    built = load_recipe(name)

    @dataclasses.dataclass(frozen=True)
    class Train:
        run: str  # folder of checkpoints and metrics; training goes on from the latest checkpoint in it
        accept: tuple[str, ...] = ()  # differences from the checkpoint it starts from that are meant
        recipe: Annotated[Recipe, tyro.conf.arg(name="")] = built

    options = _parse(Train, rest, f"vla-jax train {name}")
    result = experiment.train(options.recipe, options.run, accept=options.accept)
    if result.interrupted:
        return
    _console.print(f"{options.run}: {result.train_step} updates done")


def evaluate(arguments: list[str]) -> None:
    """Success rate with its interval, appended to results/; the recipe inside the checkpoint says where."""
    from vla_jax import experiment
    from vla_jax.evaluation import results
    from vla_jax.training import trained
    from vla_jax.training.recipe import EvaluationConfig

    name, rest = _positional(arguments, "eval", "CHECKPOINT")
    policy = trained.load(name)

    @dataclasses.dataclass(frozen=True)
    class Eval:
        table: str = "adhoc"  # results/<table>/<run>.json
        run: str = Path(name).name
        row: str = policy.recipe.name
        results: str = "results"
        swap_instructions: bool = False  # tell the policy another instruction than the one it is judged by
        accept: tuple[str, ...] = ()  # differences from what the checkpoint was made for that are meant
        int8: bool = False  # weights in 8 bits, as `vla-jax serve --int8` runs them
        doctor: bool = False  # LIBERO: first, do recorded episodes of the training data still succeed here?
        evaluation: Annotated[EvaluationConfig, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff] = (
            policy.recipe.evaluation
        )

    options = _parse(Eval, rest, f"vla-jax eval {name}", markers=())
    config = options.evaluation
    policy = policy.quantized() if options.int8 else policy
    if options.doctor:
        _console.print(f"running {_DOCTOR_EPISODES} recorded episodes of every training dataset again")
    checks = experiment.check_simulators(policy, config, num_replays=_DOCTOR_EPISODES if options.doctor else 0)
    for check in checks.values():
        _print_check(check)
    with _console.status("compiling, then running episodes") as status:

        def show(done: int, total: int, successes: int) -> None:
            status.update(f"{done} of {total} episodes, {successes} succeeded")

        by_env = experiment.evaluate(
            policy, config, swap_instructions=options.swap_instructions, accept=options.accept, progress=show
        )
    suffix = ("/int8" if options.int8 else "") + ("/swapped_instructions" if options.swap_instructions else "")
    labels = {"table": options.table, "row": options.row, "suffix": suffix}
    entries = [
        entry
        for name, episodes in by_env.items()
        for entry in experiment.entries(policy, name, episodes, **labels, check=checks.get(name))
    ]
    (path,) = results.append(Path(options.results), options.run, entries)
    for entry in entries:
        low, high = entry.interval
        _console.print(
            f"{entry.cell}: success rate {entry.mean:.1%} [{low:.1%}, {high:.1%}], {entry.episodes} episodes"
        )
    _console.print(f"written to {path}")


def _print_check(check: Any) -> None:
    """What speaks for and against the simulator, before it judges."""
    for path, replays in check.replays.items():
        _console.print(f"{path}: {sum(each.success for each in replays)} of {len(replays)} episodes succeed again")
    for warning in check.warnings:
        _console.print(warning, style="bold red", markup=False)
    if not check.warnings:
        _console.print("simulator: as that of the training data, golden frames included")


def serve(arguments: list[str]) -> None:
    """A policy server, as openpi's clients know it."""
    from vla_jax import cli_serve

    name, rest = _positional(arguments, "serve", "CHECKPOINT")
    cli_serve.serve(name, _parse(cli_serve.Serve, rest, f"vla-jax serve {name}"), _console)


def learn(arguments: list[str]) -> None:
    """The learner of a recipe, for actors that `vla-jax act` starts elsewhere."""
    from vla_jax import cli_actors

    name, rest = _positional(arguments, "learn", "RECIPE[:FUNCTION]")
    options = _parse(cli_actors.with_recipe(cli_actors.Learn, load_recipe(name)), rest, f"vla-jax learn {name}")
    cli_actors.learn(options, _console)


def act(arguments: list[str]) -> None:
    """An actor of a recipe, with the same overrides as its learner has."""
    from vla_jax import cli_actors

    name, rest = _positional(arguments, "act", "RECIPE[:FUNCTION]")
    options = _parse(cli_actors.with_recipe(cli_actors.Act, load_recipe(name)), rest, f"vla-jax act {name}")
    cli_actors.act(options, None if options.env is None else _function(options.env), _console)


def plan(arguments: list[str]) -> None:
    """RECIPE may be a published transformer to hold the plan against: reference:llama3.1-8b."""
    from vla_jax import cli_plan

    name, rest = _positional(arguments, "plan", "RECIPE[:FUNCTION]")
    recipe = None if name.startswith(cli_plan.REFERENCE) else load_recipe(name)
    options = _parse(cli_plan.options_with(recipe), rest, f"vla-jax plan {name}")
    cli_plan.run(name, options, _console)


def import_(arguments: list[str]) -> None:
    """SOURCE is a safetensors file or folder, or openpi's params folder."""
    from vla_jax import cli_models

    source, rest = _positional(arguments, "import", "SOURCE")
    out, rest = _positional(rest, "import", "SOURCE OUT")
    options = _parse(cli_models.Import, rest, "vla-jax import SOURCE OUT", markers=())
    cli_models.import_(source, out, load_recipe(options.recipe), options, _console)


def merge(arguments: list[str]) -> None:
    """RUN was trained with adapters or frozen parts; OUT needs no other checkpoint."""
    from vla_jax import cli_models

    run, rest = _positional(arguments, "merge", "RUN")
    out, rest = _positional(rest, "merge", "RUN OUT")
    _parse(dataclasses.make_dataclass("Merge", []), rest, "vla-jax merge RUN OUT")
    cli_models.merge(run, out, _console)


def export(arguments: list[str]) -> None:
    """RUN is a run folder or one checkpoint."""
    from vla_jax import cli_models

    run, rest = _positional(arguments, "export", "RUN")
    out, rest = _positional(rest, "export", "RUN OUT")
    cli_models.export(run, out, _parse(cli_models.Export, rest, "vla-jax export RUN OUT"), _console)


def compare(arguments: list[str]) -> None:
    from vla_jax.evaluation import compare as comparing

    @dataclasses.dataclass(frozen=True)
    class Compare:
        run_a: Annotated[str, tyro.conf.Positional]  # a results file, or file:row
        run_b: Annotated[str, tyro.conf.Positional]

    options = _parse(Compare, arguments, "vla-jax compare")
    _console.print(comparing.to_text(comparing.compare(options.run_a, options.run_b)))


def table(arguments: list[str]) -> None:
    from vla_jax.evaluation import results, table_specs, tables

    @dataclasses.dataclass(frozen=True)
    class Table:
        name: Annotated[str, tyro.conf.Positional]
        results: str = "results"
        html: str | None = None  # also write it as an HTML file

    options = _parse(Table, arguments, "vla-jax table")
    spec, entries = table_specs.TABLES[options.name], results.load_table(Path(options.results), options.name)
    print(tables.to_markdown(spec, entries))
    if options.html is not None:
        Path(options.html).write_text(tables.to_html(spec, entries), encoding="utf-8")


def doctor(arguments: list[str]) -> None:
    from vla_jax.evaluation import doctor as doctors

    _parse(dataclasses.make_dataclass("Doctor", []), arguments, "vla-jax doctor")
    _console.print(doctors.to_table(doctors.doctor()))


def data(arguments: list[str]) -> None:
    """Demonstrations on disk: make, look at, measure, convert and check them."""
    from vla_jax.cli_data.verbs import VERBS

    verb, rest = _positional(arguments, "data", "|".join(VERBS))
    if verb not in VERBS:
        raise errors.ConfigError(f"no command data {verb!r}", fix=errors.closest(verb, VERBS))
    VERBS[verb](rest, _console)


def load_recipe(name: str) -> Any:
    """The recipe that `path/to/file.py:function` builds; the function defaults to `quick`."""
    path, _, function = name.partition(":")
    module = _load_file(Path(path))
    builders = recipe_functions(module)
    chosen = function or "quick"
    if chosen not in builders:
        raise errors.ConfigError(f"{path}: no recipe function {chosen!r}", fix=errors.closest(chosen, builders))
    return builders[chosen]()


def _function(name: str) -> Callable[..., Any]:
    """`path/to/file.py:function`, or its function `make`."""
    path, _, function = name.partition(":")
    known = {found: each for found, each in vars(_load_file(Path(path))).items() if inspect.isfunction(each)}
    chosen = function or "make"
    if chosen not in known:
        raise errors.ConfigError(f"{path}: no function {chosen!r}", fix=errors.closest(chosen, known))
    return known[chosen]


def recipe_functions(module: Any) -> dict[str, Callable[[], Any]]:
    """The functions of a recipe file that return a Recipe and need no argument."""
    from vla_jax.training.recipe import Recipe

    return {
        name: function
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and function.__module__ == module.__name__
        and inspect.signature(function).return_annotation is Recipe
        and all(p.default is not p.empty for p in inspect.signature(function).parameters.values())
    }


def _load_file(path: Path) -> Any:
    if not path.is_file():
        known = [str(file) for file in sorted(Path("recipes").glob("*.py")) if file.name != "__init__.py"]
        raise errors.ConfigError(f"no recipe file {path}", fix=errors.closest(str(path), known))
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _positional(arguments: list[str], command: str, what: str) -> tuple[str, list[str]]:
    if not arguments or arguments[0].startswith("-"):
        print(USAGE)
        if arguments and arguments[0] in ("-h", "--help"):
            sys.exit(0)
        raise errors.ConfigError(f"vla-jax {command}", expected=f"{what} first", found=arguments[:1] or "nothing")
    return arguments[0], arguments[1:]


def _parse(kind: type, arguments: list[str], program: str, markers: tuple = (tyro.conf.FlagConversionOff,)) -> Any:
    """Where a field may be of several classes, its default's class is kept and its fields are plain options."""
    return tyro.cli(kind, args=arguments, prog=program, config=(*markers, tyro.conf.AvoidSubcommands))
