"""One loop for every learner: restore or init, then pull, update, log, evaluate, save, until done or told to stop.

    source.next(step) -> batch -> TrainStep.run(carry, batch) -> carry        (dispatched, never waited for; or both in
                                                  |                            one program: training/feeding.py)
                                                  |
    every log_every steps: fetch the sums, look for NaN, write metrics.jsonl
    every eval_every: evaluate(actor_params)      every checkpoint_every: save

A run killed at any moment and started again gives the same parameters and the same `metrics.jsonl`, bit for bit, on the
same mesh: batches come from the source's state, keys from the step, and sums of a half-finished log interval are saved.
A run that collapses (`FitConfig.collapse`) goes on from the last good checkpoint with other keys.
"""

import contextlib
import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from vla_jax.core import errors, runtime
from vla_jax.core.types import Params, Transitions
from vla_jax.learners.base import HasFrozen, Learner, LearnerState
from vla_jax.training import checkpoints, collapse, feeding, interrupts, sharding, step
from vla_jax.training import logging as logs
from vla_jax.training.collapse import CollapseConfig, Collapsed
from vla_jax.training.sources import Closes, Source, UsesMesh

_MAX_IN_FLIGHT = 2  # updates dispatched but not done: enough to hide the host, few enough to bound the batches held

Evaluate = Callable[[Params, int], Mapping[str, float]]
WarmStart = Callable[[LearnerState], LearnerState]


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How long, how often and where. Steps are updates, one batch each."""

    num_train_steps: int
    log_every: int = 100
    eval_every: int | None = None  # None: never, although `evaluate` is given
    checkpoint_every: int = 1000  # the last step is always saved
    seed: int = 0
    mesh: sharding.MeshConfig = dataclasses.field(default_factory=sharding.MeshConfig)
    max_to_keep: int = 3  # latest checkpoints; the best one is kept besides
    best_metric: str | None = None  # as logged or evaluated, for example "eval/success_rate"
    best_mode: Literal["max", "min"] = "max"
    nan_guard: bool = True
    scan_updates: int = 1  # per dispatch, also making their batches where the source can; pays on accelerators
    collapse: CollapseConfig | None = None  # watch a metric, and go back to the last good checkpoint when it collapses
    log: logs.LogConfig = dataclasses.field(default_factory=logs.LogConfig)

    def __post_init__(self):
        counts = {name: getattr(self, name) for name in ("num_train_steps", "log_every", "checkpoint_every")}
        counts |= {"max_to_keep": self.max_to_keep, "scan_updates": self.scan_updates}
        counts |= {} if self.eval_every is None else {"eval_every": self.eval_every}
        for name, value in counts.items():
            if value < 1:
                raise errors.ConfigError(f"FitConfig.{name}", expected="at least 1", found=value)
            if name != "max_to_keep" and value % self.scan_updates:
                raise errors.ConfigError(
                    f"FitConfig.{name} falls between two dispatches",
                    expected=f"a multiple of scan_updates={self.scan_updates}",
                    found=value,
                )
        if self.best_mode not in ("max", "min"):
            raise errors.ConfigError("FitConfig.best_mode", expected="max or min", found=self.best_mode)


@dataclasses.dataclass(frozen=True)
class FitResult:
    state: LearnerState
    train_step: int  # updates done
    interrupted: bool  # stopped by a signal and saved; the same command goes on
    metrics: dict[str, float]  # the last value of everything that was logged or evaluated


def fit(
    learner: Learner,
    source: Source,
    config: FitConfig,
    run_dir: str | Path,
    *,
    evaluate: Evaluate | None = None,
    metadata: Mapping[str, Any],
    logical_axes: Mapping[str, Any] | None = None,
    warm_start: WarmStart | None = None,
    thaw: WarmStart | None = None,
    augment: step.Augment | None = None,
    devices: Sequence[jax.Device] | None = None,
    quiet: bool = False,
) -> FitResult:
    """Train until `num_train_steps`, going on from the latest checkpoint in `run_dir` if there is one.

    With `config.collapse` a run whose metric collapses goes back, for which `rollbacks.jsonl` gives the reasons.

    `metadata` is stored beside the weights and must have the entries `checkpoints.REQUIRED`. `logical_axes` names the
    parameters' dims for the mesh. `warm_start` maps the fresh state to the one to begin with (pretrained weights); it
    is not called on resume; `thaw` is, where the learner has frozen parameters (`HasFrozen`): it puts them back into a
    state from a checkpoint, which leaves them out. `augment` changes every batch inside the compiled step, with a key
    folded from the step. SIGTERM and SIGINT save and return with `interrupted=True`; a second one kills.

    Raises TrainingError at the first non-finite metric (with `nan_guard`) or when a run collapses too often or before
    its first checkpoint, CheckpointError when the latest checkpoint
    does not fit the learner or the source, ConfigError for impossible settings.
    """
    runtime.enable_compile_cache()
    checkpoints.check_metadata(metadata)
    with contextlib.ExitStack() as stack:
        if isinstance(source, Closes):
            stack.callback(source.close)
        mesh = sharding.make_mesh(config.mesh, devices)
        if isinstance(source, UsesMesh):
            source.use_mesh(mesh)
        example = source.example()
        train_step = step.build(
            learner,
            example,
            mesh,
            seed=collapse.seed_of(config.seed, Path(run_dir)),
            logical_axes=logical_axes,
            fsdp_min_size=config.mesh.fsdp_min_size,
            scan_updates=config.scan_updates,
            augment=augment,
        )
        store = stack.enter_context(
            contextlib.closing(
                checkpoints.Checkpoints(
                    run_dir,
                    max_to_keep=config.max_to_keep,
                    best_metric=config.best_metric,
                    best_mode=config.best_mode,
                )
            )
        )
        run = _Run(learner, source, config, Path(run_dir), evaluate, dict(metadata), train_step, store, quiet)
        with run.opened(example, warm_start, thaw):
            try:
                return run.loop()
            except Collapsed as collapsed:
                found = collapsed.collapse
    collapse.roll_back(Path(run_dir), found, config.collapse)
    return fit(
        learner,
        source,
        config,
        run_dir,
        evaluate=evaluate,
        metadata=metadata,
        logical_axes=logical_axes,
        warm_start=warm_start,
        thaw=thaw,
        augment=augment,
        devices=devices,
        quiet=quiet,
    )


class _Run:
    """The state of one call of `fit`."""

    def __init__(
        self,
        learner: Learner,
        source: Source,
        config: FitConfig,
        run_dir: Path,
        evaluate: Evaluate | None,
        metadata: dict[str, Any],
        train_step: step.TrainStep,
        store: checkpoints.Checkpoints,
        quiet: bool,
    ):
        self.learner, self.source, self.config, self.run_dir = learner, source, config, run_dir
        self.evaluate, self.metadata, self.train_step, self.store = evaluate, metadata, train_step, store
        self.quiet = quiet
        self.feed = feeding.feed(source, train_step)
        self.carry: step.Carry
        self.step = 0  # updates dispatched
        self.source_values: dict[str, list] = {}  # the source's metrics since the last log
        self.last_metrics: dict[str, float] = {}
        self.step_metrics: dict[str, float] = {}  # logged or evaluated at exactly this step
        self.watched: list[tuple[int, float]] = []  # the metric that may collapse, by step
        self.saved_step: int | None = None
        self.in_flight: deque[jax.Array] = deque()

    @contextlib.contextmanager
    def opened(self, example: Any, warm_start: WarmStart | None, thaw: WarmStart | None) -> Iterator[None]:
        """With a carry, fresh or restored, and the logs at its step."""
        latest = self.store.latest_step()
        if latest is None:
            self.carry = self.train_step.init(example)
            if warm_start is not None:
                warm = warm_start(self.carry.learner)
                self.carry = self.carry.replace(learner=sharding.shard_state(warm, self.train_step.shardings.learner))
        else:
            self._restore(latest, thaw)
        is_main = jax.process_index() == 0
        log = logs.RunLog(
            self.run_dir,
            self.config.log,
            resume_step=self.step,
            recipe=checkpoints.plain(self.metadata["recipe"]),
            is_main=is_main,
        )
        with contextlib.closing(log):
            self.log = log
            for record in logs.read(self.run_dir) if is_main else ():
                self.last_metrics |= {name: value for name, value in record.items() if name != "step"}
            quiet = self.quiet or not is_main
            self.progress = logs.Progress(
                self.config.num_train_steps, self.step, _num_samples(example), self.config.log, quiet=quiet
            )
            with contextlib.closing(self.progress):
                if latest is not None:
                    self._say_where(latest)
                yield

    def loop(self) -> FitResult:
        config = self.config
        with interrupts.Interrupts() as signals:
            while self.step < config.num_train_steps:
                self._advance()
                is_last = self.step >= config.num_train_steps
                self.step_metrics = {}
                if is_last or self.step % config.log_every == 0:
                    self._log()
                if self.evaluate is not None and config.eval_every and (is_last or self.step % config.eval_every == 0):
                    self._evaluate()
                self._check_collapse()
                if is_last or self.step % config.checkpoint_every == 0:
                    self._save()
                # Several processes must stop at the same step, so they compare notes, at the log interval only.
                if signals.agreed(now=self.step % config.log_every == 0) and not is_last:
                    self._save()
                    self.progress.say(
                        f"stopped by a signal at step {self.step}, saved; the same command goes on from here"
                    )
                    return self._result(interrupted=True)
            self.store.wait()
        return self._result(interrupted=False)

    def _advance(self) -> None:
        """Dispatch some updates; waits only for the dispatch before the last one."""
        self.carry, done, said = self.feed.advance(self.carry, self.step)
        for values in said:
            for name, value in values.items():
                self.source_values.setdefault(name, []).append(value)
        self.step += self.config.scan_updates
        self.in_flight.append(done)
        if len(self.in_flight) > _MAX_IN_FLIGHT:
            self.in_flight.popleft().block_until_ready()
        self.progress.advance(self.step)

    def _log(self) -> None:
        sums, count, values = jax.device_get((self.carry.sums, self.carry.count, self.source_values))
        self._check_finite()
        metrics = {name: float(total) / int(count) for name, total in sorted(sums.items())}
        metrics |= {name: sum(map(float, items)) / len(items) for name, items in sorted(values.items())}
        self.carry, self.source_values = self.train_step.clear(self.carry), {}
        self.log.metrics(self.step, metrics)
        self.log.timing(self.step, self.progress.logged(self.step, metrics))
        self._remember(metrics)

    def _evaluate(self) -> None:
        with self._pause():
            metrics = {
                name: float(value)
                for name, value in self.evaluate(self.learner.actor(self.carry.learner), self.step).items()
            }
        self.log.metrics(self.step, metrics)
        self._remember(metrics)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self.progress.say(f"step {self.step}  {shown}")

    def _remember(self, metrics: dict[str, float]) -> None:
        self.step_metrics |= metrics
        self.last_metrics |= metrics

    def _check_collapse(self) -> None:
        config = self.config.collapse
        if config is None or config.metric not in self.step_metrics:
            return
        self.watched.append((self.step, self.step_metrics[config.metric]))
        if (found := collapse.find(self.watched, config)) is not None:
            self.progress.say(
                f"step {self.step}: {config.metric} {found.found:.4g}, was {found.good:.4g} until step "
                f"{found.good_step}: going back"
            )
            self.store.wait()
            raise Collapsed(found)

    def _save(self) -> None:
        if self.saved_step == self.step:
            return
        self._check_finite()
        self._check_best_metric()
        with self._pause():
            sums, count, values = jax.device_get((self.carry.sums, self.carry.count, self.source_values))
            interval = {"sums": sums, "count": count, "source_values": values}
            self.log.sync()
            stored = self._without_frozen(self.carry.learner)
            self.store.save(
                self.step,
                stored,
                self.learner.actor(stored),
                self.source.state(),
                {**self.metadata, "fit": self.config, "log_interval": interval, "watched": self.watched},
                self.step_metrics,
            )
        self.saved_step = self.step

    def _without_frozen(self, state: LearnerState) -> LearnerState:
        return self.learner.without_frozen(state) if isinstance(self.learner, HasFrozen) else state

    def _restore(self, latest: int, thaw: WarmStart | None) -> None:
        abstract = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            self.train_step.abstract.learner,
            self.train_step.shardings.learner,
        )
        # What a source has not tied to a device (zeros, before its first batch) belongs to the whole mesh.
        copied = sharding.replicated(self.train_step.mesh)
        source_template = jax.tree.map(
            lambda leaf: (
                jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=copied)
                if isinstance(leaf, jax.Array) and not leaf.committed
                else leaf
            ),
            self.source.state(),
        )
        state, source_state = self.store.restore(latest, self._without_frozen(abstract), source_template)
        self.source.restore(source_state)
        if thaw is not None:
            state = sharding.shard_state(thaw(state), self.train_step.shardings.learner)
        interval = self.store.metadata(latest)["log_interval"]
        self.carry = self.train_step.resumed(state, latest, interval["sums"], interval["count"])
        self.source_values = interval["source_values"]
        self.watched = [tuple(each) for each in self.store.metadata(latest).get("watched", [])]
        self.step = self.saved_step = latest

    def _say_where(self, latest: int) -> None:
        if latest >= self.config.num_train_steps:
            self.progress.say(f"{self.run_dir}: already done, {latest} of {self.config.num_train_steps} steps")
            return
        self.progress.say(f"{self.run_dir}: going on from step {latest}")
        saved = self.store.metadata(latest)
        for part, ours in (("recipe", self.metadata["recipe"]), ("fit", self.config)):
            for row in _changes(saved[part], checkpoints.plain(ours), part):
                self.progress.say(f"  changed since the checkpoint: {row}")

    def _check_finite(self) -> None:
        """Raise at the first update whose metrics were not finite; waits for the updates so far."""
        if not self.config.nan_guard or (bad_step := int(self.carry.bad_step)) < 0:
            return
        found = {name: float(value) for name, value in sorted(jax.device_get(self.carry.bad_metrics).items())}
        bad = {name: value for name, value in found.items() if not abs(value) < float("inf")}
        good = {name: value for name, value in found.items() if name not in bad}
        kept = self.store.latest_step()
        raise errors.TrainingError(
            f"{self.run_dir}: update {bad_step} gave a metric that is not finite",
            expected="finite metrics at every update",
            found=f"{_listed(bad)}" + (f"; beside {_listed(good)}" if good else ""),
            fix=f"the parameters before it are in {'no checkpoint' if kept is None else f'checkpoint {kept}'}; lower "
            "peak_lr, clip the gradient, or look at that batch; nan_guard=False trains on",
        )

    def _check_best_metric(self) -> None:
        """A best_metric nobody measures must not surface as a missing checkpoint at the end of a run."""
        name, config = self.config.best_metric, self.config
        has_evaluated = self.evaluate is None or config.eval_every is None or self.step >= config.eval_every
        if name is None or name in self.last_metrics or not has_evaluated or self.step < config.log_every:
            return
        raise errors.ConfigError(
            f"FitConfig.best_metric {name!r} is not measured", fix=errors.closest(name, self.last_metrics)
        )

    @contextlib.contextmanager
    def _pause(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.progress.paused(time.monotonic() - start)

    def _result(self, *, interrupted: bool) -> FitResult:
        self.store.wait()
        return FitResult(self.carry.learner, self.step, interrupted, self.last_metrics)


def _num_samples(batch: Any) -> int:
    """Examples in one update's batch; a replay batch may hold those of several gradient steps."""
    if isinstance(batch, Transitions):
        return math.prod(batch.rewards.shape[:-1])
    return jax.tree.leaves(batch)[0].shape[0]


def _changes(old: Any, new: Any, path: str) -> list[str]:
    """One row per value that differs between two JSON trees."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        return [row for name in names for row in _changes(old.get(name), new.get(name), f"{path}.{name}")]
    return [] if old == new else [f"{path} {old} -> {new}"]


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in values.items())
