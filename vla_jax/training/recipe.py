"""What an experiment is: one frozen dataclass of plain values, stored whole in every checkpoint.

`recipes/<name>.py` builds one with plain functions; `vla_jax/experiment.py` runs it. Values may be overridden on the
command line (`--optimizer.peak-lr 3e-4`), so a recipe holds numbers and names, never arrays or functions.
"""

import dataclasses
from collections.abc import Callable

from flax import nnx

from vla_jax.codecs import text
from vla_jax.core import errors
from vla_jax.data.formats.faults import FaultPolicy
from vla_jax.data.normalization import NormalizationConfig
from vla_jax.data.pictures.augment import AugmentConfig
from vla_jax.data.schema import DatasetConfig
from vla_jax.envs.libero import LiberoTasks
from vla_jax.envs.mjx.panda import PandaConfig
from vla_jax.envs.mjx.pick_cube import PickCubeConfig
from vla_jax.envs.mjx.tabletop import TabletopConfig
from vla_jax.envs.ogbench import OgbenchConfig
from vla_jax.envs.planar.maze import MazeConfig
from vla_jax.envs.planar.reach import ReachConfig
from vla_jax.learners.dqc import DQCConfig
from vla_jax.learners.expo import EXPOConfig
from vla_jax.learners.hil_serl import HilSerlConfig
from vla_jax.learners.imitation import ImitationConfig
from vla_jax.learners.pa_rl import CalQL, PARLConfig
from vla_jax.learners.rlpd import RLPDConfig
from vla_jax.nets.backbone import Backbone
from vla_jax.nets.conv_film import ConvFilm, ConvFilmConfig
from vla_jax.nets.paligemma import PaliGemma, PaliGemmaConfig
from vla_jax.nets.pixels import PixelConfig
from vla_jax.nets.qwen_vl import QwenVL, QwenVLConfig
from vla_jax.nets.state_mlp import StateMLP, StateMLPConfig
from vla_jax.nets.vla_transformer import VlaTransformer, VlaTransformerConfig
from vla_jax.policies.base import Policy
from vla_jax.policies.bins import BinsConfig, BinsPolicy
from vla_jax.policies.diffusion import DiffusionConfig, DiffusionPolicy
from vla_jax.policies.discrete_diffusion import DiscreteDiffusionConfig, DiscreteDiffusionPolicy
from vla_jax.policies.fast_tokens import FastConfig, FastPolicy
from vla_jax.policies.flow import FlowConfig, FlowPolicy
from vla_jax.policies.gaussian import GaussianConfig, GaussianPolicy
from vla_jax.policies.regression import RegressionConfig, RegressionPolicy
from vla_jax.training.fit import FitConfig
from vla_jax.training.online import ReplayConfig
from vla_jax.training.optimizers import Adam, AdamW
from vla_jax.training.recorded import RecordedConfig
from vla_jax.training.tuning import TuningConfig

_BACKBONES = {
    ConvFilmConfig: ConvFilm,
    VlaTransformerConfig: VlaTransformer,
    PaliGemmaConfig: PaliGemma,
    QwenVLConfig: QwenVL,
    StateMLPConfig: StateMLP,
}
_DECODERS = {
    FlowConfig: FlowPolicy,
    DiffusionConfig: DiffusionPolicy,
    BinsConfig: BinsPolicy,
    DiscreteDiffusionConfig: DiscreteDiffusionPolicy,
    FastConfig: FastPolicy,
    GaussianConfig: GaussianPolicy,
    RegressionConfig: RegressionPolicy,
}

LearnerConfig = ImitationConfig | EXPOConfig | RLPDConfig | HilSerlConfig | PARLConfig | DQCConfig
PureEnvConfig = TabletopConfig | PandaConfig | PickCubeConfig | ReachConfig | MazeConfig  # environments that are JAX
AROUND_A_POLICY = (EXPOConfig, PARLConfig)  # learners that fine-tune one, which is in their actor's "base"
WITHOUT_A_POLICY = (RLPDConfig, HilSerlConfig)  # learners with an actor of their own


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """How instructions become tokens: bytes, or whole known words, or a vocabulary file (.model, tokenizer.json)."""

    vocabulary: str | None = None  # path
    words: tuple[str, ...] = ()
    prompt_length: int = 48  # tokens; longer instructions are refused
    template: str | None = None  # around "{instruction}", for pi0-FAST and pi0.5 "Task: {instruction}, State:"
    lower_case: bool = True  # with a template: whether instructions lose their capitals

    def __post_init__(self):
        if self.vocabulary is not None and self.words:
            raise errors.ConfigError("TextConfig", expected="vocabulary or words", found="both")

    def tokenizer(self) -> text.Tokenizer:
        plain = self._plain_tokenizer()
        return plain if self.template is None else text.TemplateTokenizer(plain, self.template, self.lower_case)

    def _plain_tokenizer(self) -> text.Tokenizer:
        if self.words:
            return text.WordTokenizer(self.words)
        if self.vocabulary is None:
            return text.ByteTokenizer()
        if self.vocabulary.endswith(".json"):
            return text.JsonTokenizer(self.vocabulary)
        # A line break would end pi0's prompt; with a template the state comes first.
        return text.SentencePieceTokenizer(self.vocabulary, end="\n" if self.template is None else "")


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """A backbone that sees and a decoder that acts; any pair works, but action words need a backbone that writes, and
    SERL's encoder of pictures (`PixelConfig`) sees for learners with an actor of their own alone."""

    backbone: ConvFilmConfig | VlaTransformerConfig | PaliGemmaConfig | QwenVLConfig | StateMLPConfig | PixelConfig
    decoder: (
        FlowConfig
        | DiffusionConfig
        | BinsConfig
        | DiscreteDiffusionConfig
        | FastConfig
        | GaussianConfig
        | RegressionConfig
    )

    def constructor(self) -> Callable[[nnx.Rngs], Policy]:
        decoder, sees = _DECODERS[type(self.decoder)], self.perception()
        return lambda rngs: decoder(self.decoder, sees(rngs), rngs)

    def perception(self) -> Callable[[nnx.Rngs], Backbone]:
        """The backbone alone."""
        return lambda rngs: _BACKBONES[type(self.backbone)](self.backbone, rngs)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Recorded demonstrations."""

    datasets: tuple[DatasetConfig, ...]
    batch_size: int  # over all processes
    normalization: NormalizationConfig = NormalizationConfig()
    per_dataset: bool = False  # every dataset by its own statistics; acting takes those of the first, or names one
    weights: tuple[float, ...] | None = None  # of a mixture; None: in proportion to the samples
    temperature: float = 1.0  # of the mixture, weights ** (1 / temperature): above 1 evens them out
    balance_embodiments: bool = False  # every robot (DatasetConfig.embodiment) gets the same share
    augment: AugmentConfig | None = None  # of pictures, in training only
    faults: FaultPolicy = FaultPolicy()  # damaged records and pictures: skipped and counted, up to a limit
    image_cache_bytes: int = 2 << 30  # of memory for decoded pictures, where all of them fit; 0: keep none
    num_threads: int = 2  # that decode
    seed: int = 0

    def __post_init__(self):
        if self.num_threads < 1 or self.image_cache_bytes < 0:
            raise errors.ConfigError(
                "DataConfig",
                expected="num_threads of 1 or more, image_cache_bytes of 0 or more",
                found=(self.num_threads, self.image_cache_bytes),
            )
        keys = [dataset.key for dataset in self.datasets]
        if self.per_dataset and len(set(keys)) != len(keys):
            raise errors.ConfigError(
                "DataConfig.per_dataset needs datasets that can be told apart",
                expected="a different path, split or embodiment for each",
                found=keys,
            )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Episodes that a checkpoint is judged by; online learners act in the first environment."""

    envs: tuple[PureEnvConfig | LiberoTasks | OgbenchConfig, ...]
    execution_horizon: int  # control steps between two looks
    num_episodes: int = 256  # in each environment that draws its initial states; LiberoTasks lists its own
    batch_size: int = 128  # likewise: episodes side by side, on the host each in a process of its own
    seed: int = 1000  # of the initial states and the policy's noise: never one that training used


@dataclasses.dataclass(frozen=True)
class Recipe:
    name: str
    # of learners with an actor of their own (RLPD, HIL-SERL) the backbone sees for it and the critics, and the decoder
    # gives the sizes
    policy: PolicyConfig
    learner: LearnerConfig
    optimizer: AdamW | Adam
    fit: FitConfig
    evaluation: EvaluationConfig
    data: DataConfig  # trained on, or, with `start_from`, what the policy was trained on; RLPD needs none
    text: TextConfig = TextConfig()
    base_optimizer: AdamW | Adam | None = None  # of the policy that EXPO or PA-RL fine-tunes; None: as `optimizer`
    replay: ReplayConfig | None = None  # of learners that collect: they act in `evaluation.envs[0]`
    recorded: RecordedConfig | None = None  # episodes for learners of values, beside what they collect or alone
    # a run folder or checkpoint whose policy this run begins with; other learners than EXPO bring their critics, too
    start_from: str | None = None
    tuning: TuningConfig = TuningConfig()  # of what imitates: adapters, freezing, dtypes

    def __post_init__(self):
        self._check_experience()
        self._check_pixels()
        is_frozen = isinstance(self.learner, EXPOConfig) and self.learner.base == "frozen"
        if self.base_optimizer is not None and (is_frozen or not isinstance(self.learner, AROUND_A_POLICY)):
            raise errors.ConfigError(
                f"recipe {self.name}: base_optimizer",
                expected="none: this learner fine-tunes no policy beside its critics",
                found=self.base_optimizer,
                fix="set learner.base to 'imitation'" if is_frozen else "set optimizer, of all that it trains",
            )
        if self.tuning != TuningConfig() and is_frozen:
            raise errors.ConfigError(
                f"recipe {self.name}: tuning",
                expected="the default: with learner.base='frozen' EXPO trains nothing of the policy",
                found=self.tuning,
                fix="set learner.base to 'imitation', or fine-tune with imitation first and start from its checkpoint",
            )
        if self.tuning.freezes and self.start_from is None:
            raise errors.ConfigError(
                f"recipe {self.name}: start_from",
                expected="a checkpoint, because tuning freezes parameters, which checkpoints of this run leave out",
                found=None,
                fix='set start_from, or train everything: lora=(), train=("*",)',
            )
        horizon, executed = self.policy.decoder.action_horizon, self.evaluation.execution_horizon
        if executed > horizon:
            raise errors.ConfigError(
                f"recipe {self.name}: evaluation.execution_horizon",
                expected=f"at most policy.decoder.action_horizon = {horizon}",
                found=executed,
            )
        for dataset in self.data.datasets:
            if dataset.action_horizon != horizon:
                raise errors.ConfigError(
                    f"recipe {self.name}: data.datasets, {dataset.path}",
                    expected=f"action_horizon = {horizon}, as policy.decoder says",
                    found=dataset.action_horizon,
                )

    def _check_pixels(self) -> None:
        if not isinstance(self.policy.backbone, PixelConfig):
            return
        if not isinstance(self.learner, WITHOUT_A_POLICY):
            raise errors.ConfigError(
                f"recipe {self.name}: policy.backbone",
                expected="a backbone that a decoder acts on: PixelConfig only sees",
                found=type(self.learner).__name__,
                fix="take RLPD or HIL-SERL, or ConvFilmConfig",
            )
        arm = self.learner.arm if isinstance(self.learner, HilSerlConfig) else self.learner
        if arm.frozen_trunk:
            raise errors.ConfigError(
                f"recipe {self.name}: {type(self.learner).__name__}.frozen_trunk",
                expected="False: a recipe brings no weights for the trunk, and a random one sees little",
                found=True,
                fix="set it to False, or give the weights in Python: `RLPD.with_trunk` (docs/serl.md)",
            )

    def _check_experience(self) -> None:
        """That the learner has something to learn from, and is one for it."""
        name, kind = type(self.learner).__name__, type(self.learner)
        found = f"replay={self.replay}, recorded={self.recorded}, start_from={self.start_from!r}"

        def refuse(expected: str, fix: str = "") -> None:
            raise errors.ConfigError(f"recipe {self.name}: {name}", expected=expected, found=found, fix=fix)

        if kind is ImitationConfig:
            if self.recorded is not None or self.replay is not None:
                refuse("neither replay nor recorded: it learns from data.datasets")
            return
        if kind in AROUND_A_POLICY and self.start_from is None:
            refuse("start_from, because it fine-tunes a policy")
        if kind is EXPOConfig and self.replay is None:
            refuse("replay, because it acts in an environment")
        if kind is DQCConfig and self.replay is not None:
            if self.replay.returns or (self.recorded is not None and self.recorded.hindsight is not None):
                refuse("neither replay.returns nor recorded.hindsight beside replay: experience has no goals")
            if self.learner.backup_horizon % self.learner.steps_run:
                refuse("a backup_horizon of whole decisions, because windows of experience begin and end at one")
        if self.replay is None and self.recorded is None:
            refuse("replay or recorded: what it learns from")
        acts_in = next(iter(self.evaluation.envs), None)
        if self.replay is not None and not isinstance(acts_in, PureEnvConfig):
            refuse(f"an environment that is a JAX program in evaluation.envs[0], not {acts_in}")
        if self.recorded is not None and (self.replay is None) != (self.recorded.fraction == 1):
            refuse("recorded.fraction of 1 without replay, below 1 or None with it")
        if self.recorded is not None and self.recorded.hindsight is not None and kind is not DQCConfig:
            refuse("no recorded.hindsight: it has no goals")
        has_returns = {each.returns for each in (self.recorded, self.replay) if each is not None}
        if len(has_returns) > 1:
            refuse("returns of recorded and of replay, or of neither: their rows are mixed")
        is_cal_ql = kind is PARLConfig and isinstance(self.learner.critic_kind, CalQL)
        if is_cal_ql and self.learner.critic_kind.conservative.calibrated and has_returns != {True}:
            refuse(
                "recorded.returns and replay.returns: calibration needs the return behind every step",
                "or set critic_kind.conservative.calibrated=False, or critic_kind=IQL()",
            )


def chunk_steps(learner: LearnerConfig) -> int:
    """How many steps one row of a learner's batch has."""
    for name in ("backup_horizon", "execution_horizon", "action_horizon"):
        if (steps := getattr(learner, name, None)) is not None:
            return steps
    raise errors.ConfigError(f"{type(learner).__name__} learns from no transitions", expected="a learner of values")
