"""`vla-jax learn` and `vla-jax act`: one recipe in processes of their own, a learner here and actors where robots are.

Both sides build what they need from the recipe: the learner its buffer and batches, an actor its policy and an
environment, that of the recipe on the host or another one with the same signature, such as a robot.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import rich.console
import tyro

from vla_jax import experiment
from vla_jax.core import errors
from vla_jax.core.access import API_KEY_VARIABLE, AccessOptions, make_access, read_keys
from vla_jax.core.types import PromptTable, Transitions
from vla_jax.data.replay.host import HostBuffer
from vla_jax.envs.base import EnvSpec
from vla_jax.envs.host import HostEnv
from vla_jax.envs.hosted import HostedEnv
from vla_jax.learners.base import Learner
from vla_jax.learners.rlpd import RLPDConfig
from vla_jax.training import contract, recipe_sources, recorded, trained
from vla_jax.training.actor_learner import actor as actors
from vla_jax.training.actor_learner.inbox import Inbox
from vla_jax.training.actor_learner.link import ActorLink, run
from vla_jax.training.actor_learner.server import LearnerServer, ServerConfig
from vla_jax.training.actor_learner.sources import ActorLearnerConfig, ActorLearnerSource, RecordedRows
from vla_jax.training.actor_learner.spool import Spool
from vla_jax.training.interrupts import Interrupts
from vla_jax.training.recipe import Recipe
from vla_jax.training.trained import Edges

MakeEnv = Callable[[PromptTable], HostEnv]
_DRAIN = 30.0  # seconds that an actor that stops waits for its last rows to be acknowledged


@dataclasses.dataclass(frozen=True)
class Learn:
    """Of `recipe.replay` all but num_envs and warmup_decisions counts; how much is acted is the actors' matter."""

    run: str  # folder of checkpoints, metrics and the buffer; the same command goes on with all of them
    access: Annotated[AccessOptions, tyro.conf.arg(name="")] = AccessOptions()
    training_starts: int = 300  # rows that must be there before the first update
    publish_every: int = 30  # updates between two versions of the parameters
    patience: float = 3600.0  # seconds to wait for those first rows
    server: Annotated[ServerConfig, tyro.conf.arg(name="")] = ServerConfig()


@dataclasses.dataclass(frozen=True)
class Act:
    connect: str  # the learner's address, ws://host:port
    actor: str  # its name, and no other's: two of one name push each other out
    env: str | None = None  # FILE:FUNCTION, which makes a HostEnv of the prompts; None: the recipe's environment
    spool: str | None = None  # folder of rows that are not acknowledged yet; None: in memory, lost with the process
    decisions: int | None = None  # None: until it is stopped
    seed: int = 0  # of what it draws and of its episodes
    api_key_file: str | None = None  # as the learner's, with one key in it
    timeout: float = 600.0  # seconds to wait for the first parameters


def with_recipe(options: type, built: Recipe) -> type:
    """The options and, beside them, every field of the recipe."""
    field = ("recipe", Annotated[Recipe, tyro.conf.arg(name="")], dataclasses.field(default=built))
    return dataclasses.make_dataclass(options.__name__, [field], bases=(options,), frozen=True)


def learn(options: Learn, console: rich.console.Console) -> None:
    """Wait for rows, train, judge and save as `vla-jax train` does, until the recipe's number of updates is done."""
    recipe: Recipe = options.recipe
    _require_rlpd(recipe)
    access = make_access(**dataclasses.asdict(options.access))

    def make_source(learner: Learner, edges: Edges) -> ActorLearnerSource:
        row = _row(recipe, learner, edges, _simulator(recipe, edges).spec)
        inbox = Inbox(HostBuffer(row, recipe.replay.capacity, Path(options.run) / "replay"))
        server = LearnerServer(inbox, row, access, options.server)
        replay, fraction = recipe.replay, 0.0 if recipe.recorded is None else recipe.recorded.fraction
        config = ActorLearnerConfig(
            shape=(replay.rounds, replay.critic_updates, replay.batch_size),
            training_starts=options.training_starts,
            publish_every=options.publish_every,
            demonstration_fraction=fraction,
            seed=replay.seed,
        )
        rows = None if recipe.recorded is None else RecordedRows(_recorded(recipe, learner, edges))
        print(f"listening {server.address}", flush=True)  # one plain line, for programs that wait for it
        return ActorLearnerSource(server, config, rows, patience=options.patience)

    result = experiment.train(recipe, options.run, make_source=make_source)
    if not result.interrupted:
        console.print(f"{options.run}: {result.train_step} updates done")


def act(options: Act, make_env: MakeEnv | None, console: rich.console.Console) -> None:
    """Act until `decisions` are made, or until SIGTERM or SIGINT; says how many rows could not be sent."""
    recipe: Recipe = options.recipe
    _require_rlpd(recipe)
    edges, learner = trained.make_edges(recipe, experiment.data_statistics(recipe)), trained.make_learner(recipe)
    simulator = _simulator(recipe, edges)
    env = HostedEnv(simulator) if make_env is None else make_env(edges.prompts(simulator.spec.instructions))
    row = _row(recipe, learner, edges, env.spec)
    if make_env is not None:
        ours = contract.of_recipe(recipe, edges.normalizer.robot_action_dim)
        contract.require(ours, contract.of_environment(env.spec), raises=errors.ConfigError)
    actor, spool = actors.Actor(env, learner, seed=options.seed, edges=_actor_edges(edges)), Spool(row, options.spool)
    link = ActorLink(options.connect, options.actor, row, spool, api_key=_api_key(options))
    with link, Interrupts() as asked:
        made = run(
            actor,
            link,
            spool,
            num_decisions=options.decisions,
            should_stop=lambda: asked.agreed(now=False),
            timeout=options.timeout,
        )
        link.drain(_DRAIN)
    env.close()
    console.print(f"{options.actor}: {made} decisions, {len(spool)} rows not acknowledged, {spool.num_lost} lost")


def _require_rlpd(recipe: Recipe) -> None:
    if not isinstance(recipe.learner, RLPDConfig) or recipe.replay is None:
        raise errors.ConfigError(
            f"recipe {recipe.name}: a learner and actors in processes of their own",
            expected="RLPD with replay: what its actors store is no matter of its parameters",
            found=f"{type(recipe.learner).__name__}, replay={recipe.replay}",
            fix="train it with `vla-jax train`, or build the source in Python (docs/replay_and_actors.md)",
        )
    if recipe.recorded is not None and recipe.recorded.fraction is None:
        raise errors.ConfigError(
            f"recipe {recipe.name}: recorded.fraction", expected="a share of every batch", found=None, fix="set it: 0.5"
        )


def _simulator(recipe: Recipe, edges: Edges):
    return experiment.make_env(recipe, recipe.evaluation.envs[0], edges)


def _row(recipe: Recipe, learner: Learner, edges: Edges, spec: EnvSpec) -> Transitions:
    acting = jax.eval_shape(lambda key: learner.actor(learner.init(key)), jax.random.key(0))
    return actors.row_of(learner, acting, spec, prompt_length=recipe.text.prompt_length, edges=_actor_edges(edges))


def _actor_edges(edges: Edges) -> actors.Edges:
    return actors.Edges(edges.normalize, edges.unnormalize)


def _recorded(recipe: Recipe, learner: Learner, edges: Edges) -> Transitions:
    """The recorded rows with what actors store of observations in their place."""
    acting = learner.actor(learner.init(jax.random.key(0)))
    rows = recipe_sources.recorded_rows(recipe, edges)
    look = jax.jit(lambda rows, key: recorded.seen(rows, key, lambda k, o: learner.observe(acting, k, o)[1]))
    return jax.tree.map(np.asarray, look(rows, jax.random.key(0)))


def _api_key(options: Act) -> str | None:
    if options.api_key_file is None:
        return os.environ.get(API_KEY_VARIABLE)
    return read_keys(options.api_key_file)[0].secret
