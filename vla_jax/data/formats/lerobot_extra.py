"""The packages behind LeRobot datasets, which are optional: imported from here, or an error that names the extra."""

from vla_jax.core import errors

try:
    import av
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise errors.DataError(
        "LeRobot datasets need packages that are not installed",
        expected="pyarrow and av (PyAV)",
        found=str(error),
        fix="pip install 'vla-jax[lerobot]'",
    ) from error

__all__ = ["av", "pa", "pq"]
