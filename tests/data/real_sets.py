"""Where recorded data lies, if this machine has it: in `shared/data` inside or beside the repository."""

from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_PLACES = [folder / "shared" / "data" for folder in (_ROOT, _ROOT.parent)]


def find(name: str) -> Path:
    """The folder `name`, in the first of the two places that has it; it may not exist."""
    return next((place / name for place in _PLACES if (place / name).is_dir()), _PLACES[0] / name)


BRIDGE = find("bridge_rlds_sample/1.0.0")
needs_bridge = pytest.mark.skipif(not BRIDGE.is_dir(), reason=f"no recorded Bridge episodes in {_PLACES}")
