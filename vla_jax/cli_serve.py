"""`vla-jax serve`: a checkpoint as a policy server."""

import dataclasses
import os
import sys
from typing import Annotated

import rich.console
import tyro

from vla_jax.core import errors, runtime
from vla_jax.core.access import AccessOptions, bind, make_access
from vla_jax.serving import robots, server
from vla_jax.serving.acting import BatchActor
from vla_jax.serving.batching import BatchingConfig
from vla_jax.serving.keys import RequestReader
from vla_jax.serving.served import guidance_of, metadata_of
from vla_jax.serving.server import PolicyServer, ServerConfig
from vla_jax.training import trained


@dataclasses.dataclass(frozen=True)
class Serve:
    access: Annotated[AccessOptions, tyro.conf.arg(name="")] = AccessOptions()
    robot: str | None = None  # libero, droid or a description (.toml, .json): refuse a checkpoint that is not for it
    accept: tuple[str, ...] = ()  # differences between robot and checkpoint that are meant
    layout: str | None = None  # take requests in this key layout only: flat, data, libero, droid
    default_prompt: str | None = None  # for requests without one
    dataset: str | None = None  # whose statistics to act with, where every dataset had its own
    base: str | None = None  # of a checkpoint with adapters: where the one it started from is now
    int8: bool = False  # weights in 8 bits: a quarter of the memory, slightly other answers
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8)  # compiled before the server listens
    latency_budget_ms: float = 5.0  # that a request may wait for company
    max_waiting: int = 64  # requests
    realtime: bool = False  # answer requests that carry the chunk being run (flow policies; compiles twice as much)
    guidance_weight: float | None = None  # of real-time chunking, at most the flow steps; None: 5, or the flow steps
    seed: int = 0  # of the noise for requests that bring no seed
    server: Annotated[ServerConfig, tyro.conf.arg(name="")] = ServerConfig()


def serve(checkpoint: str, options: Serve, console: rich.console.Console) -> None:
    """Load, compare, compile, listen, until SIGTERM or SIGINT. Exits with 1 when requests were left unfinished.

    Raises CheckpointError, before anything compiles, when the checkpoint is not for `options.robot`.
    """
    if options.accept and options.robot is None:
        raise errors.ConfigError("--accept", expected="--robot, to compare the checkpoint with", found="none")
    if options.guidance_weight is not None and not options.realtime:
        raise errors.ConfigError("--guidance-weight", expected="--realtime True, which it belongs to", found="none")
    robot = None if options.robot is None else robots.load(options.robot)
    access = make_access(**dataclasses.asdict(options.access))
    sock = bind(options.access.host, options.server.port)
    runtime.enable_compile_cache()
    policy = trained.load(checkpoint, dataset=options.dataset, base=options.base)
    guidance = guidance_of(policy, options.guidance_weight) if options.realtime else None
    reader = RequestReader.of(
        policy, layout=options.layout, default_prompt=options.default_prompt, takes_previous=options.realtime
    )
    metadata = metadata_of(policy, reader, guidance)
    if robot is not None:
        robots.require_fit(metadata, robot, options.accept)
        console.print(f"the checkpoint fits robot {robot.name}")
    if options.int8:
        policy = policy.quantized()
    actor = BatchActor(policy, options.batch_sizes, seed=options.seed, guidance=guidance)
    console.print(f"compiling batch sizes {', '.join(map(str, actor.batch_sizes))}")
    console.print(f"compiled in {actor.warm_up():.1f} s")
    batching = BatchingConfig(actor.max_batch, options.latency_budget_ms / 1000, options.max_waiting)
    serving = PolicyServer(reader.read, actor, metadata, access, options.server, batching)

    def on_ready(address: str) -> None:
        print(f"ready {address}", flush=True)  # one plain line, for programs that wait for it

    is_finished = server.serve_until_signal(serving, sock, on_ready)
    console.print("stopped" if is_finished else "stopped with requests unfinished")
    if not is_finished:
        sys.stdout.flush()
        os._exit(1)  # a device call that hangs would keep an ordinary exit waiting for its thread
