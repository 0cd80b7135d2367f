"""The embedded tabletop suite: scenes of primitive geometries, a ray renderer, tasks and scripted experts."""

import contextlib
import io

with contextlib.redirect_stdout(io.StringIO()):  # mjx prints that its optional warp back end is missing
    from mujoco import mjx as _mjx  # noqa: F401
