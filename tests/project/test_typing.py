"""Users' strictly typed code can use the public names without a cast or an ignored error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.long import long_form

ROOT = Path(__file__).resolve().parents[2]


@long_form
def test_code_of_users_is_typed(tmp_path: Path) -> None:
    """Guards against a public name that mypy does not see, or whose type is Any."""
    code = Path(__file__).with_name("consumer.py").read_text()
    (tmp_path / "consumer.py").write_text(code)
    (tmp_path / "wrong.py").write_text(code.replace("read(0,", "read('first',"))
    options = ["--strict", "--config-file", "", "--follow-imports", "silent", "--cache-dir", str(tmp_path / "cache")]
    command = [sys.executable, "-m", "mypy", *options, "consumer.py", "wrong.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert [line for line in lines if line.startswith("consumer.py")] == [], done.stdout
    assert len([line for line in lines if line.startswith("wrong.py") and "[arg-type]" in line]) == 2, done.stdout
