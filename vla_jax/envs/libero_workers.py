"""Simulators that live in worker processes and are called in parallel; a dead worker raises, it never hangs.

    with WorkerPool([functools.partial(EpisodeRunner, make_simulator)] * 4, timeout=300) as pool:
        results = pool.call([0, 1, 2, 3], "run", [(chunk,) for chunk in actions])

Processes are spawned, not forked: OpenGL contexts and JAX's threads do not survive a fork. This file imports no JAX, so
that a worker starts in a second.
"""

import multiprocessing
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import connection
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Float32, UInt8

from vla_jax.core import errors

_SHUTDOWN_SECONDS = 5.0


class Simulator(Protocol):
    """What a worker runs; `LiberoSim` is one, tests bring a fake one."""

    def reset(self, suite: str, task: int, init_state: Any, scene_seed: int) -> np.ndarray: ...

    def step(self, action: Float[np.ndarray, "7"]) -> tuple[float, bool]: ...

    def state(self) -> Float32[np.ndarray, "8"]: ...

    def images(self) -> dict[str, UInt8[np.ndarray, "h w 3"]]: ...


class EpisodeRunner:
    """Lives in a worker: one simulator, the step counter and the end of the episode."""

    def __init__(self, make_simulator: Callable[[], Simulator]):
        self._simulator = make_simulator()
        self._steps = self._limit = 0
        self._success = False

    @property
    def _done(self) -> bool:
        return self._success or self._steps >= self._limit

    def reset(self, suite: str, task: int, init_state: Any, scene_seed: int, limit: int) -> None:
        self._simulator.reset(suite, task, init_state, scene_seed)
        self._steps, self._limit, self._success = 0, limit, False

    def run(self, actions: Float[np.ndarray, "h 7"]) -> tuple[np.ndarray, np.ndarray, bool, bool]:
        """Rewards, mask of executed steps, done, success."""
        rewards, mask = np.zeros(len(actions), np.float32), np.zeros(len(actions), bool)
        for i, action in enumerate(actions):
            if self._done:
                break
            rewards[i], self._success = self._simulator.step(action)
            self._steps += 1
            mask[i] = True
        return rewards, mask, self._done, self._success

    def state(self) -> Float32[np.ndarray, "8"]:
        return self._simulator.state()

    def look(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        return self._simulator.images(), self._simulator.state()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Any method of the simulator, for diagnostics such as `gl_renderer` and `raw_images`."""
        return getattr(self._simulator, method)(*arguments)

    def close(self) -> None:
        if hasattr(self._simulator, "close"):
            self._simulator.close()


class WorkerPool:
    """One object per process, made there by its (picklable) factory at the first call."""

    def __init__(self, factories: Sequence[Callable[[], Any]], timeout: float = 600.0):
        """`timeout`: seconds that one call may take before its worker counts as stuck."""
        if not factories:
            raise errors.ConfigError("WorkerPool", expected="at least one worker", found=0)
        self._timeout = timeout
        context = multiprocessing.get_context("spawn")
        self._pipes: list[connection.Connection] = []
        self._processes = []
        try:
            for lane, factory in enumerate(factories):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, factory), name=f"worker-{lane}", daemon=True)
                process.start()
                theirs.close()  # or our end would never see the pipe close when the worker dies
                self._pipes.append(ours)
                self._processes.append(process)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._processes)

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, lanes: Sequence[int], method: str, arguments: Sequence[tuple]) -> list[Any]:
        """Call `method(*arguments[i])` in worker `lanes[i]`, all at once; results in the order of `lanes`.

        Raises EnvError with the worker's traceback when one fails, dies or takes longer than the timeout. The pool is
        closed then: the others may be in the middle of something.
        """
        if not self._processes:
            raise errors.EnvError("the worker pool is closed", fix="make a new one")
        try:
            for lane, values in zip(lanes, arguments, strict=True):
                self._send(lane, (method, values))
            deadline = time.monotonic() + self._timeout
            return [self._receive(lane, method, deadline) for lane in lanes]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ask every worker to end, then make it. Safe to call twice."""
        for pipe in self._pipes:
            try:
                pipe.send(None)
            except OSError:
                continue  # it is dead already
        deadline = time.monotonic() + _SHUTDOWN_SECONDS
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in self._pipes:
            pipe.close()
        self._pipes, self._processes = [], []

    def _send(self, lane: int, request: tuple[str, tuple]) -> None:
        try:
            self._pipes[lane].send(request)
        except OSError as error:
            raise self._death(lane, request[0]) from error

    def _receive(self, lane: int, method: str, deadline: float) -> Any:
        pipe, process = self._pipes[lane], self._processes[lane]
        ready = connection.wait([pipe, process.sentinel], timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise errors.EnvError(
                f"worker {lane} is stuck in {method}", expected=f"an answer within {self._timeout:.0f} s", found="none"
            )
        try:
            if not pipe.poll():  # only the sentinel fired
                raise EOFError
            failure, result = pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise self._death(lane, method) from error
        if failure is not None:
            raise errors.EnvError(f"worker {lane} failed in {method}\n{failure}")
        return result

    def _death(self, lane: int, method: str) -> errors.EnvError:
        process = self._processes[lane]
        process.join(_SHUTDOWN_SECONDS)
        return errors.EnvError(
            f"worker {lane} died in {method}",
            found=f"exit code {process.exitcode}",
            fix="-9 is usually memory: use fewer workers; otherwise run one task in this process to see its output",
        )


def _serve(pipe: connection.Connection, factory: Callable[[], Any]) -> None:
    """The worker's loop: answers are (traceback or None, result)."""
    served = None
    try:
        while (request := pipe.recv()) is not None:
            method, arguments = request
            try:
                served = factory() if served is None else served
                answer = (None, getattr(served, method)(*arguments))
            except errors.VlaError as error:  # says everything itself; a traceback would bury the fix
                answer = (str(error), None)
            except BaseException:  # travels to the parent as text, whatever it is, and is raised there
                answer = (traceback.format_exc(), None)
            pipe.send(answer)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass  # the parent is gone or going
    finally:
        if hasattr(served, "close"):
            served.close()
