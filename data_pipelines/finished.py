"""Whether a folder already holds the dataset that is about to be made."""

from pathlib import Path

from vla_jax.core import errors
from vla_jax.data.formats.rlds import load_info


def is_finished(folder: Path, config_hash: str) -> bool:
    """Whether `folder` holds the dataset of this config. Raises DataError when it holds another."""
    if not (folder / "dataset_info.json").is_file():
        return False
    found = load_info(folder).metadata.get("config_hash")
    if found != config_hash:
        raise errors.DataError(
            f"{folder}: holds a dataset of another config",
            expected=f"config hash {config_hash}",
            found=f"{found}; its metadata.json has the config",
            fix="choose another folder, or delete this one",
        )
    return True
