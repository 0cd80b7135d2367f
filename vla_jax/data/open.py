"""A dataset by its folder, whatever its format."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from vla_jax.core import errors
from vla_jax.data.formats import features
from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.formats.faults import SKIP_AND_COUNT, FaultPolicy
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.formats.specs import FeatureSpec

_RLDS = "dataset_info.json"
_LEROBOT = "meta/info.json"


def open_dataset(
    path: str | Path,
    split: str = "train",
    *,
    names: Sequence[str] | None = None,
    cache_folder: str | Path | None = None,
    faults: FaultPolicy = SKIP_AND_COUNT,
) -> EpisodeDataset:
    """One split of the dataset in a folder: RLDS where it holds dataset_info.json, LeRobot where it holds
    meta/info.json.

    `names` restricts it to some features; the index goes to `cache_folder`, by default under `$XDG_CACHE_HOME/vla_jax`.
    Raises DataError when the folder holds neither, or what the format's own reader raises.
    """
    folder = Path(path)
    if (folder / _RLDS).is_file():
        return RldsDataset(folder, split, names=names, cache_folder=cache_folder, faults=faults)
    if (folder / _LEROBOT).is_file():
        from vla_jax.data.formats.lerobot import LeRobotDataset  # needs the lerobot extra

        return LeRobotDataset(folder, split, names=names, cache_folder=cache_folder, faults=faults)
    raise _nothing_there(folder)


def load_specs(path: str | Path) -> Mapping[str, FeatureSpec]:
    """Every feature of the dataset in a folder, without indexing it. Raises DataError as `open_dataset` does."""
    folder = Path(path)
    if (folder / _RLDS).is_file():
        return features.load_specs(folder)
    if (folder / _LEROBOT).is_file():
        from vla_jax.data.formats import lerobot_meta  # needs the lerobot extra

        info = lerobot_meta.load_info(folder)
        of_episodes = lerobot_meta.episode_features(lerobot_meta.load_episodes(info).extra)
        return {name: feature.spec for name, feature in {**info.features, **of_episodes}.items()}
    raise _nothing_there(folder)


def _nothing_there(folder: Path) -> errors.DataError:
    return errors.DataError(
        f"{folder}: no dataset here",
        expected=f"{_RLDS} (RLDS) or {_LEROBOT} (LeRobot)",
        found=_contents(folder),
        fix=_fix(folder),
    )


def _contents(folder: Path) -> str:
    if not folder.is_dir():
        return "a file" if folder.exists() else "no such folder"
    return ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "an empty folder"


def _fix(folder: Path) -> str:
    """Points at a dataset one or two folders further down, where people often stop short of the version folder."""
    if folder.is_dir():
        for pattern in (f"*/{_RLDS}", f"*/{_LEROBOT}", f"*/*/{_RLDS}"):
            for found in sorted(folder.glob(pattern)):
                inner = found.parent.parent if pattern.endswith(_LEROBOT) else found.parent
                return f"did you mean {inner}?"
        if (folder / "features.json").is_file():
            return "the RLDS set is not finished: download it completely, or generate it again"
    return "give the version folder of an RLDS set (<root>/<dataset>/1.0.0) or the folder of a LeRobot set"
