"""Three tasks of LIBERO-Object from scripted demonstrations, judged on official initial states.

    python -m data_pipelines.libero generate --tasks 0 1 2 --episodes 25 --out runs/libero/libero_object_scripted_25
    vla-jax train recipes/libero_object.py --run runs/libero_object/quick
    vla-jax eval runs/libero_object/quick --doctor --table libero_object --run quick --row behaviour_cloning

The demonstrations are scripted ones on the official tasks, never the official demonstrations: numbers are not
comparable with published ones. What to expect is in results/libero_object and docs/libero.md.
"""

from vla_jax.data.schema import DatasetConfig
from vla_jax.envs.libero import LiberoTasks
from vla_jax.envs.libero_sim import ACTION_NAMES, STATE_NAMES, RenderOptions
from vla_jax.learners.imitation import ImitationConfig
from vla_jax.nets.conv_film import ConvFilmConfig
from vla_jax.policies.flow import FlowConfig
from vla_jax.training.fit import FitConfig
from vla_jax.training.optimizers import AdamW
from vla_jax.training.recipe import DataConfig, EvaluationConfig, PolicyConfig, Recipe, TextConfig

DATASET = "runs/libero/libero_object_scripted_25/1.0.0"
ACTION_HORIZON, EXECUTION_HORIZON = 16, 8
# Of all ten instructions, so that a policy of three tasks can be told, and fine-tuned on, the others.
WORDS = (
    *("pick", "up", "the", "and", "place", "it", "in", "basket"),
    *("alphabet", "soup", "cream", "cheese", "salad", "dressing", "bbq", "sauce", "ketchup", "tomato", "butter"),
    *("milk", "chocolate", "pudding", "orange", "juice"),
)


def quick(seed: int = 0) -> Recipe:
    """Convolutions with FiLM and a flow decoder, 1.6M parameters: 20 minutes on two busy CPU cores."""
    text = TextConfig(words=WORDS, prompt_length=12)
    backbone = ConvFilmConfig(
        cameras=("front", "wrist"),
        state_dim=len(STATE_NAMES),
        vocab_size=text.tokenizer().vocab_size,
        prompt_length=text.prompt_length,
        num_suffix_tokens=ACTION_HORIZON,
    )
    steps = 3000
    return Recipe(
        name="libero_object/quick",
        policy=PolicyConfig(backbone, FlowConfig(ACTION_HORIZON, len(ACTION_NAMES), loss_samples=8, clip_actions=True)),
        learner=ImitationConfig(ema_decay=0.999),
        optimizer=AdamW(peak_lr=1e-3, warmup_steps=100, decay_steps=steps, end_lr=5e-5),
        fit=FitConfig(num_train_steps=steps, log_every=100, checkpoint_every=500, seed=seed),
        evaluation=EvaluationConfig((tasks(),), EXECUTION_HORIZON),
        data=DataConfig((_dataset(),), batch_size=64, seed=seed),
        text=text,
    )


def tasks(num_init_states: int = 10) -> LiberoTasks:
    """Drawn as the demonstrations were; the first official initial states of each task."""
    return LiberoTasks("libero_object", (0, 1, 2), num_init_states, render=RenderOptions(reflections=False))


def _dataset() -> DatasetConfig:
    return DatasetConfig(
        DATASET,
        ACTION_HORIZON,
        cameras=(("front", "image"), ("wrist", "wrist_image")),
        displacement_dims=tuple(range(len(ACTION_NAMES) - 1)),  # all but the gripper, which keeps its last command
        downscale=4,  # 256 to 64 pixels; at evaluation the policy's edge does the same to what the simulator draws
    )
