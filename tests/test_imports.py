"""Imports go one way, and importing the package is light."""

import ast
import subprocess
import sys
from pathlib import Path

import durable

PACKAGE = Path(durable.__file__).parent

#: Each module imports only from those before it.
ORDER = [
    "_errors",
    "_clock",
    "_owners",
    "_keys",
    "_records",
    "_models",
    "_hints",
    "_faithful",
    "_flaws",
    "_decoders",
    "_codec",
    "_stored_errors",
    "_retry",
    "_fingerprint",
    "_format",
    "_state",
    "_events",
    "store",
    "_leases",
    "_memory",
    "_kv_gate",
    "_kv_segments",
    "_kv_run",
    "_kv_journal",
    "_commit",
    "_tasks",
    "_progress",
    "_plan",
    "_session",
    "_options",
    "_persistence",
    "_settings",
    "_writer",
    "_run",
    "_current",
    "_map",
    "_attempt",
    "_perform",
    "_decorated",
    "_step",
    "_definition",
    "_begin",
    "_execute",
    "_function",
    "_runs",
    "_worker",
    "_testing_clock",
    "_testing_faults",
    "_testing_site",
    "_testing_log",
    "_testing_claims",
    "_testing_runs",
    "_testing_store",
    "testing",
]


def imported(path):
    """Return the modules of the package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
            if node.module == "durable":
                names = [f"durable.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{path.name} has a relative import in line {node.lineno}")
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("durable.")}
    return found


def test_every_module_is_in_the_list():
    """A new module gets its place in the order."""
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert sorted(modules) == sorted(ORDER)


def test_imports_go_one_way():
    """Nothing is imported from further down, not even inside functions or for type checking."""
    for place, module in enumerate(ORDER):
        later = imported(PACKAGE / f"{module}.py") - set(ORDER[:place])
        assert not later, f"{module} imports {sorted(later)}, which isn't above it"


def test_importing_loads_the_standard_library_and_msgspec_only():
    """No driver, no adapter and no optional package is loaded by ``import durable``."""
    program = (
        "import sys, msgspec; before = set(sys.modules); "  # it may load more by itself
        "import durable; print(*set(sys.modules) - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded - set(sys.stdlib_module_names) == {"durable"}


def test_importing_starts_nothing():
    """No thread is started and no warning given by the import."""
    program = "import durable, threading; assert threading.active_count() == 1"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_front_door():
    """``__all__`` is sorted, complete, and everything in it is there."""
    names = durable.__all__
    assert len(set(names)) == len(names)
    assert names == sorted(names, key=lambda name: (not name[0].isupper(), name))
    public = {
        name
        for name, value in vars(durable).items()
        if not name.startswith("_") and not hasattr(value, "__path__") and not is_module(value)
    }
    assert public - {"Any", "TYPE_CHECKING"} == {*names} - {"KeyValueJournal"}
    assert durable.KeyValueJournal.__name__ == "KeyValueJournal"  # loaded when asked for


def is_module(value):
    return type(value).__name__ == "module"
