"""Every Python block of the README runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)


def test_every_block_is_python() -> None:
    """A block in another language would be one that no test runs."""
    assert {language for language, _ in BLOCKS} == {"python"}


@pytest.mark.parametrize("code", [code for _, code in BLOCKS])
def test_the_block_runs(code: str, tmp_path: Path) -> None:
    """The block runs in an empty folder, with warnings as errors and nothing in the environment."""
    script = tmp_path / "block.py"
    script.write_text(code)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DURABLE_")}
    clean.pop("REDIS_URL", None)

    done = subprocess.run(
        [sys.executable, "-W", "error", script.name],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        timeout=50,
    )

    assert done.returncode == 0, done.stderr
