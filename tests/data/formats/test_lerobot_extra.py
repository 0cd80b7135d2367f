import subprocess
import sys

import pytest


@pytest.mark.parametrize("missing", ["av", "pyarrow"])
def test_a_missing_package_names_the_extra(missing, tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text("{}")
    # None in sys.modules is how Python remembers that a module cannot be imported.
    code = f"""
import sys
sys.modules[{missing!r}] = None
from vla_jax.core.errors import DataError
import data_pipelines.lerobot
from vla_jax.data.open import open_dataset
try:
    open_dataset({str(tmp_path)!r})
except DataError as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert "pip install 'vla-jax[lerobot]'" in found.stdout
    assert missing in found.stdout
