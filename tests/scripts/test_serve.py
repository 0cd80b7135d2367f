import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_is_the_command_of_the_same_name(tmp_path):
    command = [sys.executable, "scripts/serve.py", str(tmp_path), "--port", "0"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert found.returncode == 2 and "no checkpoint" in found.stderr
