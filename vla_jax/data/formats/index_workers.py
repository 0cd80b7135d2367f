"""Parts of an index made by worker processes: plain children that import numpy and no more, each with one shard at a
time. A part goes to disk, so nothing is shared but a pipe.

    parent -> child   one line of JSON per shard, after a first line with the features
    child -> parent   {} about once a second while it works, {"done": i} when part i has its name

A child ends when its pipe does, so none outlives the parent. One that dies, or is silent for too long, is replaced and
its shard tried once more; after that the run stops with the child's traceback.
"""

import collections
import contextlib
import dataclasses
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from vla_jax.core import errors
from vla_jax.data.formats import index_build
from vla_jax.data.formats.records import Shard
from vla_jax.data.formats.specs import FeatureSpec

COMMAND = (sys.executable, "-m", "vla_jax.data.formats.index_workers")
_TRIES = 2  # a child may die for reasons outside of its shard, for example when memory is short
_GOODBYE = 5.0  # seconds that a child gets to end by itself


@dataclasses.dataclass(frozen=True)
class Job:
    """A shard and where its part belongs."""

    shard: Shard
    part: Path


def run(
    jobs: Sequence[Job],
    specs: Sequence[FeatureSpec],
    num_workers: int,
    *,
    silence_limit: float = 120.0,
    command: Sequence[str] = COMMAND,
) -> Iterator[int]:
    """Build the parts of all jobs, in children started by `command`; yields each job's number when it is done.

    `silence_limit` is in seconds. All children are gone when the iterator ends, for whatever reason. Raises DataError
    with a child's traceback when a shard ended two of them.
    """
    waiting = collections.deque(range(len(jobs)))
    tries = [0] * len(jobs)
    crew: list[_Child] = []
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or any(child.job is not None for child in crew):
                while waiting and len(crew) < num_workers:
                    child = _Child(command, specs)
                    crew.append(child)
                    selector.register(child.stdout, selectors.EVENT_READ, child)
                    _give(child, waiting, jobs, tries)
                ready = {key.data for key, _ in selector.select(timeout=min(1.0, silence_limit))}
                for child in list(crew):
                    done = child.listen() if child in ready else []
                    yield from done
                    if child.has_ended or time.monotonic() - child.last_heard > silence_limit:
                        selector.unregister(child.stdout)
                        crew.remove(child)
                        _bury(child, waiting, jobs, tries, silence_limit)
                    elif done:
                        _give(child, waiting, jobs, tries)
        finally:
            for child in crew:
                child.stop()


def _give(child: "_Child", waiting: collections.deque[int], jobs: Sequence[Job], tries: list[int]) -> None:
    child.job = waiting.popleft() if waiting else None
    if child.job is not None:
        tries[child.job] += 1
        child.begin(child.job, jobs[child.job])


def _bury(
    child: "_Child", waiting: collections.deque[int], jobs: Sequence[Job], tries: list[int], silence_limit: float
) -> None:
    """Put the shard of a dead child back, or give up."""
    how, trace = child.stop()
    if not child.has_ended:
        how = f"it said nothing for {silence_limit:g} s"
    if child.job is None:
        return
    if tries[child.job] >= _TRIES:
        raise errors.DataError(
            f"{jobs[child.job].shard.path}: indexing this file ended {_TRIES} worker processes",
            expected="a worker that ends with its work",
            found=f"{how}\n{trace}".rstrip(),
            fix="see the traceback above; signal 9 is mostly a lack of memory: use fewer workers",
        )
    waiting.appendleft(child.job)


class _Child:
    """One worker process and the shard it has in hand."""

    def __init__(self, command: Sequence[str], specs: Sequence[FeatureSpec]):
        path = os.pathsep.join(item for item in sys.path if item)  # what the parent can import
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (it lives as long as the child)
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, "PYTHONPATH": path},
        )
        self.stdout = self._process.stdout
        self.job: int | None = None
        self.has_ended = False
        self.last_heard = time.monotonic()
        self._heard = b""
        self._write([dataclasses.asdict(spec) for spec in specs])

    def begin(self, number: int, job: Job) -> None:
        shard = {**dataclasses.asdict(job.shard), "path": str(job.shard.path)}
        self._write({"number": number, "shard": shard, "part": str(job.part)})

    def listen(self) -> list[int]:
        """The jobs it says are done; call when there is something to read."""
        data = os.read(self.stdout.fileno(), 1 << 16)
        self.has_ended = not data
        self.last_heard = time.monotonic()
        *lines, self._heard = (self._heard + data).split(b"\n")
        return [message["done"] for message in map(json.loads, lines) if "done" in message]

    def stop(self) -> tuple[str, str]:
        """End it, by force if need be: how it ended, and what it wrote to stderr."""
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        if self.job is not None and not self.has_ended:
            self._process.kill()
        try:
            code = self._process.wait(_GOODBYE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait(_GOODBYE)
        self._stderr.seek(0)
        trace = self._stderr.read().decode(errors="replace")
        self._stderr.close()
        return (f"signal {-code}" if code < 0 else f"exit status {code}"), trace[-4000:]

    def _write(self, message: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # then it is dead, and `listen` will say so
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()


def main() -> None:
    """The child's life."""
    specs = [FeatureSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in json.loads(sys.stdin.readline())]
    said = time.monotonic()

    def say(message: dict) -> None:
        nonlocal said
        said = time.monotonic()
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    def tick() -> None:
        if time.monotonic() - said > 1:
            say({})

    for line in sys.stdin:
        job = json.loads(line)
        shard = Shard(**{**job["shard"], "path": Path(job["shard"]["path"])})
        index_build.save(index_build.build(shard, specs, tick), Path(job["part"]))
        say({"done": job["number"]})


if __name__ == "__main__":
    main()
