"""Discrete Diffusion VLA on a robot task: success by decoder, into results/discrete_diffusion_place.

    python scripts/reproduce_discrete_diffusion_place.py --seeds 0 1 2

    python scripts/reproduce_discrete_diffusion_place.py --arms discrete_diffusion flow --noise-max 0.1

A seed changes demonstrations and training; all arms are judged on the same 256 initial states, by one chunk drawn per
decision and by the mean of eight, which tells apart what a model knows and what its samples add. Finished trainings are
not run again. About ten minutes per seed and arm on one CPU core. With another number of bins or updates the results
belong elsewhere than in the table: name a folder for them.

    python scripts/reproduce_discrete_diffusion_place.py --seeds 0 --arms discrete_diffusion --num-bins 16 --results X
"""

import dataclasses
from pathlib import Path

import rich.console
import tyro
from jaxtyping import Array, Float, Key

import vla_jax  # noqa: F401  (first: sets XLA's CPU flags before jax starts)
from data_pipelines import tabletop
from recipes import discrete_diffusion_place, tabletop_demo
from vla_jax import experiment
from vla_jax.codecs.bins import uniform_bins
from vla_jax.core import runtime
from vla_jax.core.types import Observation, Params
from vla_jax.evaluation import results
from vla_jax.learners.imitation import Imitation
from vla_jax.policies.bins import BinsConfig
from vla_jax.policies.discrete_diffusion import DiscreteDiffusionConfig
from vla_jax.samplers.maskgit import MaskedOptions, ReleasedOptions
from vla_jax.training import trained
from vla_jax.training.recipe import Recipe

TABLE = "discrete_diffusion_place"
ARMS = {
    "discrete_diffusion": discrete_diffusion_place.quick,
    "flow": discrete_diffusion_place.flow,
    "autoregressive": discrete_diffusion_place.autoregressive,
}
OTHER_DECODERS = {  # of the same weights
    "released": ReleasedOptions(num_rounds=12),
    "one_shot_argmax": MaskedOptions(num_rounds=1),
    "one_shot_sampled": ReleasedOptions(num_rounds=1),
    "ancestral": MaskedOptions(num_rounds=12, score="random", temperature="one", doubt=0),
}
NOISE_MAX = tabletop_demo.data().noise_max
CONSOLE = rich.console.Console(highlight=False)


@dataclasses.dataclass(frozen=True)
class Options:
    seeds: tuple[int, ...] = (0, 1, 2)
    arms: tuple[str, ...] = tuple(ARMS)
    decoders: tuple[str, ...] = ("own", *OTHER_DECODERS)  # of the discrete diffusion that are judged
    draws: tuple[int, ...] = (1, 8)  # chunks per decision, of which the mean acts
    noise_max: float = NOISE_MAX  # of what disturbs the demonstrator, and what its next action takes back
    num_bins: int = discrete_diffusion_place.NUM_BINS
    num_train_steps: int | None = None  # None: as the recipe has it
    out: str = discrete_diffusion_place.FOLDER
    results: str = "results"


@dataclasses.dataclass(frozen=True)
class MeanOfDraws(Imitation):
    """Acts by the mean of several chunks drawn for one observation."""

    num_draws: int = 1

    def act(
        self, actor_params: Params, key: Key[Array, ""], observation: Observation, memory: tuple[()]
    ) -> tuple[Float[Array, "b h a"], tuple[()]]:
        return self.net.bind(actor_params).sample(key, observation, self.num_draws).mean(0), memory


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    runtime.enable_compile_cache()
    for seed in options.seeds:
        folder = f"{options.out}/{_named(options, f'seed{seed}')}"
        demonstrations = dataclasses.replace(tabletop_demo.data(seed), noise_max=options.noise_max)
        tabletop.generate(f"{folder}/data/1.0.0", demonstrations)
        for arm in options.arms:
            recipe = _changed(ARMS[arm](folder, seed), options)
            run_dir = f"{folder}/{arm}_{options.num_bins}_bins_{recipe.fit.num_train_steps}"
            if experiment.train(recipe, run_dir, quiet=True).interrupted:
                return
            decoders = options.decoders if arm == "discrete_diffusion" else ("own",)
            for row, decoding in [(arm, None) if name == "own" else (name, OTHER_DECODERS[name]) for name in decoders]:
                entries = [judge(run_dir, row, decoding, draws, options) for draws in options.draws]
                results.append(Path(options.results), f"seed{seed}", entries)


def judge(
    run_dir: str, row: str, decoding: MaskedOptions | ReleasedOptions | None, num_draws: int, options: Options
) -> results.Entry:
    """Success of a trained arm, its tokens decoded otherwise where `decoding` says so."""
    policy = trained.load(run_dir)
    recipe = policy.recipe if decoding is None else decoded_by(policy.recipe, decoding)
    plain = trained.make_learner(recipe)
    learner = MeanOfDraws(plain.policy, plain.optimizer, plain.config, plain.tuning, num_draws)
    policy = dataclasses.replace(policy, recipe=recipe, learner=learner)
    ((env_name, episodes),) = experiment.evaluate(policy).items()
    cell = _named(options, "success_rate" if num_draws == 1 else f"mean_of_{num_draws}")
    found = experiment.entry(policy, env_name, episodes, table=TABLE, row=row, cell=cell)
    CONSOLE.print(f"  {run_dir}, {row}, {cell}: {found.mean:.1%} of {found.episodes}")
    return found


def _named(options: Options, name: str) -> str:
    return name if options.noise_max == NOISE_MAX else f"noise_{options.noise_max}_{name}"


def _changed(recipe: Recipe, options: Options) -> Recipe:
    steps, decoder = options.num_train_steps or recipe.fit.num_train_steps, recipe.policy.decoder
    if isinstance(decoder, BinsConfig | DiscreteDiffusionConfig):
        decoder = dataclasses.replace(decoder, codec=uniform_bins(decoder.action_dim, options.num_bins))
    return dataclasses.replace(
        recipe,
        policy=dataclasses.replace(recipe.policy, decoder=decoder),
        fit=dataclasses.replace(recipe.fit, num_train_steps=steps),
        optimizer=dataclasses.replace(recipe.optimizer, decay_steps=steps),
    )


def decoded_by(recipe: Recipe, decoding: MaskedOptions | ReleasedOptions) -> Recipe:
    decoder = dataclasses.replace(recipe.policy.decoder, decoding=decoding)
    return dataclasses.replace(recipe, policy=dataclasses.replace(recipe.policy, decoder=decoder))


if __name__ == "__main__":
    main()
