"""The demo tells a true story: killed twice, and nothing that was acknowledged is done again."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib", reason="the demo draws its picture with the extra 'demo'")

SCRIPT = Path(__file__).parent.parent / "examples" / "stdlib_survey.py"

FILES = 60


def survey(folder: Path, *arguments: str) -> str:
    """Run the script in ``folder``; return what it prints."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--limit", str(FILES), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DurableWarning" not in done.stderr
    return done.stdout


def effects(folder: Path) -> list[tuple[str, str, str]]:
    """Return process, what it did, and to which file, line by line."""
    lines = (folder / "demo-output" / "effects.log").read_text().splitlines()
    return [(pid, what, file) for _, pid, what, file in (line.split(" ", 3) for line in lines)]


@pytest.mark.crash
@pytest.mark.parametrize("store", ["", "file://{folder}/runs"])
def test_the_demo_is_killed_twice_and_does_nothing_again(store: str, tmp_path: Path) -> None:
    """The summary agrees with the log of effects, and both with what is promised."""
    given = ["--store", store.format(folder=tmp_path)] if store else []

    told = survey(tmp_path, "--demo", "--seed", "1", *given)

    seen = effects(tmp_path)
    measured = Counter(file for _, what, file in seen if what == "measured")
    recorded: set[str] = set()
    for _, what, file in seen:
        assert not (what == "measured" and file in recorded), told
        recorded |= {file} if what == "recorded" else set()
    kept = len({file for pid, what, file in seen if what == "recorded" and pid != seen[-1][0]})
    facts = dict(re.findall(r"^ +([A-Z][^:]*): +(\d+)$", told, re.MULTILINE))
    assert told.count("SIGKILL: process") == 2
    assert {key: int(value) for key, value in facts.items()} == {
        "Files": FILES,
        "Files done at least once": FILES,
        "Acknowledged as steps before a kill": kept,
        "Of these, done again afterwards": 0,
        "In flight at a kill, and so done a second time": measured.total() - FILES,
    }
    assert 0 < kept < FILES
    assert len(re.findall(r"Start \d: \d+\.\d s until the first new file", told)) == 2


@pytest.mark.crash
def test_the_survey_leaves_a_report_and_pictures(tmp_path: Path) -> None:
    """A plain run writes what it says; another one after it begins anew."""
    first, second = survey(tmp_path), survey(tmp_path)

    output = tmp_path / "demo-output"
    svg = ElementTree.parse(output / "survey.svg").getroot()
    assert first == second
    assert Counter(what for _, what, _ in effects(tmp_path)) == {
        "measured": 2 * FILES,
        "recorded": 2 * FILES,
    }
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    assert (output / "survey.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert f"{FILES} files with " in (output / "report.md").read_text()
