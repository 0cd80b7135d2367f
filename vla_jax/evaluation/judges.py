"""A trained policy in the environments a recipe names: one judge per kind of environment, all used alike.

make_judge(config, learner, edges, evaluation).evaluate(actor_params) -> Episodes, LiberoEpisodes or HostEpisodes
"""

import contextlib
import dataclasses
from typing import Protocol

import jax

from vla_jax.core import errors
from vla_jax.core.types import Params
from vla_jax.envs import ogbench
from vla_jax.envs.base import Env, EnvSpec
from vla_jax.envs.libero import LiberoTasks
from vla_jax.envs.ogbench import OgbenchConfig
from vla_jax.evaluation import host, libero
from vla_jax.evaluation.host import HostEpisodes, HostPolicy
from vla_jax.evaluation.libero import LiberoEpisodes
from vla_jax.evaluation.rollouts import Episodes, Progress, Rollout, swapped_instructions
from vla_jax.learners.base import Learner
from vla_jax.training.recipe import EvaluationConfig, PureEnvConfig
from vla_jax.training.trained import Edges

EnvConfig = PureEnvConfig | LiberoTasks | OgbenchConfig  # what EvaluationConfig.envs holds

AnyEpisodes = Episodes | LiberoEpisodes | HostEpisodes


class Judge(Protocol):
    """Keep it: compiled programs may live as long as it does."""

    name: str  # of what it judges on
    spec: EnvSpec
    num_episodes: int

    def evaluate(self, actor_params: Params, progress: Progress | None = None) -> AnyEpisodes: ...


def make_judge(
    config: EnvConfig, learner: Learner, edges: Edges, evaluation: EvaluationConfig, *, swap_instructions: bool = False
) -> Judge:
    """`swap_instructions` tells the policy another instruction than the one it is judged by.

    Raises ConfigError where the learner acts for goals that the environment does not tell.
    """
    if edges.goal_dims and not isinstance(config, OgbenchConfig):
        raise errors.ConfigError(
            f"evaluation.envs: {type(config).__name__} tells no goal",
            expected=f"an environment that does, for a learner of goals (recorded.goal_dims={edges.goal_dims})",
            found=config,
        )
    judges = {LiberoTasks: LiberoJudge, OgbenchConfig: HostJudge}
    judge = judges.get(type(config), PureJudge)
    return judge(config, learner, edges, evaluation, swap_instructions)


class PureJudge:
    """Episodes from drawn initial states, many at a time in one compiled program."""

    def __init__(
        self,
        config: PureEnvConfig,
        learner: Learner,
        edges: Edges,
        evaluation: EvaluationConfig,
        swap_instructions: bool,
    ):
        env = config.make(edges.prompts(config.instructions))
        self.name, self.spec, self.num_episodes = env.spec.name, env.spec, evaluation.num_episodes
        self._evaluation = evaluation
        self._rollout = make_rollout(env, learner, edges, evaluation.execution_horizon, swap_instructions)

    def evaluate(self, actor_params: Params, progress: Progress | None = None) -> Episodes:
        key, batch_size = jax.random.key(self._evaluation.seed), self._evaluation.batch_size
        return self._rollout.evaluate(actor_params, key, self.num_episodes, batch_size, progress=progress)


class LiberoJudge:
    """Official initial states in worker processes, which live as long as one evaluation takes."""

    def __init__(
        self,
        config: LiberoTasks,
        learner: Learner,
        edges: Edges,
        evaluation: EvaluationConfig,
        swap_instructions: bool,
    ):
        self.name, self.spec, self.num_episodes = config.name, config.spec, config.num_episodes
        self._config, self._learner, self._edges, self._evaluation = config, learner, edges, evaluation
        self._shown = _next_of(config.tasks) if swap_instructions else None

    def evaluate(self, actor_params: Params, progress: Progress | None = None) -> LiberoEpisodes:
        """Raises EnvError where LIBERO cannot run."""
        config, edges = self._config, self._edges
        policy = libero.Policy(
            self._learner.act,
            actor_params,
            edges.prompts(config.instructions),
            self._learner.initial_memory,
            edges.normalize,
            edges.unnormalize,
        )
        with config.make() as env:
            records = libero.evaluate(
                policy,
                env,
                tasks=config.tasks,
                init_states=range(config.num_init_states),
                execution_horizon=self._evaluation.execution_horizon,
                seed=self._evaluation.seed,
                shown_tasks=self._shown,
                progress=progress,
            )
        return LiberoEpisodes(config, records)


class HostJudge:
    """Every task of a simulator on the host from the same seeds, in worker processes that live as long as one
    evaluation. A learner of goals is told the end of the state, any other sees the whole state."""

    def __init__(
        self,
        config: OgbenchConfig,
        learner: Learner,
        edges: Edges,
        evaluation: EvaluationConfig,
        swap_instructions: bool,
    ):
        """Raises EnvError without the simulator, ConfigError for goals of another size than the learner's, for
        episodes that do not divide into the tasks, and for swapped instructions, since there are none."""
        self._config, self._learner, self._edges, self._evaluation = config, learner, edges, evaluation
        with contextlib.closing(config.make()) as env:
            spec = env.spec
        self.name, self.num_episodes = spec.name, evaluation.num_episodes
        self.spec = spec if not edges.goal_dims else _without_goal(spec, edges)
        if swap_instructions or self.num_episodes % len(spec.instructions):
            raise errors.ConfigError(
                f"evaluation on {spec.name}",
                expected=f"num_episodes a multiple of its {len(spec.instructions)} tasks, no swapped instructions",
                found=f"num_episodes={self.num_episodes}, swap_instructions={swap_instructions}",
            )

    def evaluate(self, actor_params: Params, progress: Progress | None = None) -> HostEpisodes:
        """Initial states are those of the seeds from `evaluation.seed` on, the same for every task."""
        config, edges, evaluation, learner = self._config, self._edges, self._evaluation, self._learner
        policy = HostPolicy(learner.act, actor_params, learner.initial_memory, edges.normalize, edges.unnormalize)
        tasks = range(len(config.instructions))
        num_lanes = min(evaluation.batch_size, self.num_episodes)
        with config.make_lanes(num_lanes, edges.prompts(config.instructions)) as env:
            records = host.evaluate(
                policy if not edges.goal_dims else _told_the_goal(policy, edges),
                env,
                tasks=tasks,
                seeds=range(evaluation.seed, evaluation.seed + self.num_episodes // len(tasks)),
                execution_horizon=evaluation.execution_horizon,
                seed=evaluation.seed,
                progress=progress,
            )
        return HostEpisodes(records)


def _without_goal(spec: EnvSpec, edges: Edges) -> EnvSpec:
    expected, found = len(edges.goal_dims), ogbench.goal_dim(spec.state_names)
    if expected != found:
        raise errors.ConfigError(
            f"evaluation on {spec.name}", expected=f"a goal of {expected} dims, as recorded.goal_dims", found=found
        )
    return dataclasses.replace(spec, state_names=spec.state_names[:-found])


def _told_the_goal(policy: HostPolicy, edges: Edges) -> HostPolicy:
    """The same policy where states end in the goal, which is its memory (see `learners/dqc.py`)."""
    goal_dim = len(edges.goal_dims)

    def act(actor_params, key, observation, memory):
        goal = edges.normalize_goal(observation.state[..., -goal_dim:])
        seen = observation.replace(state=observation.state[..., :-goal_dim])
        actions, _ = policy.act(actor_params, key, policy.normalize(seen), goal)
        return policy.unnormalize(actions, seen.state), memory

    return HostPolicy(act, policy.actor_params)


def make_rollout(
    env: Env, learner: Learner, edges: Edges, execution_horizon: int, swap_instructions: bool = False
) -> Rollout:
    """A policy in a pure environment, with the statistics it was trained with."""
    shown = swapped_instructions(len(env.spec.instructions)) if swap_instructions else None
    return Rollout(
        env, learner.act, execution_horizon, learner.initial_memory, edges.normalize, edges.unnormalize, shown
    )


def _next_of(tasks: tuple[int, ...]) -> dict[int, int]:
    """Every task with the next one, the last with the first; only instructions of tasks that are judged on."""
    order = swapped_instructions(len(tasks))
    return {task: tasks[other] for task, other in zip(tasks, order, strict=True)}
