"""What ``import durable`` costs beyond the standard library and msgspec.

One process finds out which modules of others it loads; fresh ones load those first, and then
time ``import durable`` alone. As in any installation, the byte code is compiled already.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from statistics import median

from benchmarks._measure import row

FIND = """
import json, sys
before = set(sys.modules)
import durable
print(json.dumps([name for name in sys.modules if name not in before]))
"""
TIME = """
import importlib, json, sys, time
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
start = time.perf_counter()
import durable
print(time.perf_counter() - start)
"""


def python(cache: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, "-c", *arguments],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    return done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as cache:
        measure(cache)


def measure(cache: str) -> None:
    loaded: list[str] = json.loads(python(cache, FIND))
    others = [name for name in loaded if name.partition(".")[0] != "durable"]
    foreign = {name.partition(".")[0] for name in others}
    # msgspec itself loads typing_extensions where that is installed.
    foreign -= set(sys.stdlib_module_names) | {"msgspec", "typing_extensions"}
    assert not foreign, f"import durable loads {foreign}"
    times = [float(python(cache, TIME, json.dumps(others))) for _ in range(15)]
    print("import durable")
    row("beyond the standard library and msgspec", f"{median(times) * 1e3:9.1f} ms", "≤ 15 ms")


if __name__ == "__main__":
    main()
