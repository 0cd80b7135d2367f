"""A trained policy in the environments a recipe names: one judge per kind of environment, all used alike.

make_judge(config, learner, edges, evaluation).evaluate(actor_params) -> Episodes or LiberoEpisodes
"""

from typing import Protocol

import jax

from vla_jax.core.types import Params
from vla_jax.envs.base import Env, EnvSpec
from vla_jax.envs.libero import LiberoTasks
from vla_jax.evaluation import libero
from vla_jax.evaluation.libero import LiberoEpisodes
from vla_jax.evaluation.rollouts import Episodes, Progress, Rollout, swapped_instructions
from vla_jax.learners.base import Learner
from vla_jax.training.recipe import EvaluationConfig, PureEnvConfig
from vla_jax.training.trained import Edges

EnvConfig = PureEnvConfig | LiberoTasks  # what EvaluationConfig.envs holds


class Judge(Protocol):
    """Keep it: compiled programs may live as long as it does."""

    name: str  # of what it judges on
    spec: EnvSpec
    num_episodes: int

    def evaluate(self, actor_params: Params, progress: Progress | None = None) -> Episodes | LiberoEpisodes: ...


def make_judge(
    config: EnvConfig, learner: Learner, edges: Edges, evaluation: EvaluationConfig, *, swap_instructions: bool = False
) -> Judge:
    """`swap_instructions` tells the policy another instruction than the one it is judged by."""
    judge = LiberoJudge if isinstance(config, LiberoTasks) else PureJudge
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
