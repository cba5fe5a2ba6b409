"""A survey of the standard library that can be killed at any moment.

``python examples/stdlib_survey.py`` parses and measures every source file of the running
Python's standard library, each as one durable step, and writes a report and a picture. Kill it
and run the same command again: it goes on where it stopped. ``make demo`` does just that, twice.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import itertools
import os
import signal
import sysconfig
import warnings
from pathlib import Path
from urllib.parse import quote

from survey_demo import run_demo
from survey_effects import EffectsLog
from survey_measure import Measurement, Survey, aggregate, list_files, measure_file
from survey_report import draw_picture, write_report

from durable import Event, RunBusyError, StepCompleted, durable, step

#: Files measured at once, and so the most that can be in flight when the process dies.
AT_ONCE = 4


class Surveyor:
    """Makes surveys, and leaves a line in the log of effects for each file it has measured."""

    def __init__(self, effects: EffectsLog, die_after: int | None = None) -> None:
        self._effects = effects
        self._die_after = die_after
        self._count = itertools.count(1)

    @durable(name="survey", lease=2)
    async def survey(self, root: str, limit: int | None, output: str) -> Survey:
        """Measure the files below ``root``; write report and picture into ``output``."""
        files = await step("list", list_files, root, limit)
        measure = functools.partial(self.measure, root)
        measurements = await step.map(
            "measure", measure, files, key=str, limit=AT_ONCE, progress=True
        )
        survey = await step("aggregate", aggregate, measurements)
        await step("report", write_report, survey, output)
        await step("picture", draw_picture, survey, output)
        return survey

    def measure(self, root: str, file: str) -> Measurement:
        """Measure one file. As number ``die_after`` it is the last thing this process does."""
        measurement = measure_file(root, file)
        self._effects.write("measured", file)
        if next(self._count) == self._die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return measurement

    def note(self, event: Event) -> None:
        """Leave a line for each measurement that the store has acknowledged."""
        if isinstance(event, StepCompleted) and event.step.startswith("measure:"):
            self._effects.write("recorded", event.step.removeprefix("measure:"))


async def make_survey(options: argparse.Namespace, store: str, root: str) -> Survey:
    """Make the survey, or finish the one that a dead process has begun."""
    effects = EffectsLog(options.output / "effects.log")
    surveyor = Surveyor(effects, options.die_after)
    survey = surveyor.survey.options(store=store, on_event=surveyor.note)
    arguments = (root, options.limit, str(options.output))
    while True:
        try:
            # A plain call goes on with an unfinished survey of the same arguments, and begins a
            # new one when the last has ended.
            if options.run is None:
                return await survey(*arguments)
            return await survey.run(options.run, *arguments)
        except RunBusyError as busy:
            # Killed processes can't give their lease back; it lapses.
            rest = (busy.remaining or 0.1) + 0.05
            print(f"Waiting {rest:.1f} s until the lease of the last process has lapsed.")
            effects.write("waited", f"{rest:.3f}")
            await asyncio.sleep(rest)


def main() -> int:
    """Run the command line."""
    options = parse_arguments()
    root = sysconfig.get_path("stdlib")
    store = options.store or f"sqlite:///{quote(str(options.output / 'runs.db'))}"
    if options.demo:
        total = len(list_files(root, options.limit))
        return run_demo(Path(__file__), options.output, store, options.limit, total, options.seed)
    # The library's own tests hold code that Python has something to say about.
    warnings.simplefilter("ignore", SyntaxWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    try:
        survey = asyncio.run(make_survey(options, store, root))
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on where it was.")
        return 130
    print(
        f"{survey.files:,} files with {survey.lines:,} lines, {survey.functions:,} functions and "
        f"{survey.classes:,} classes;\n{len(survey.unparsed)} of the files can't be parsed."
    )
    if survey.longest:
        file, function = survey.longest[0]
        print(f"The longest function: {function.name} in {file}, {function.lines:,} lines.")
    print(f"The report: {options.output / 'report.md'}")
    print(f"The picture: {options.output / 'survey.svg'} and {options.output / 'survey.png'}")
    return 0


def parse_arguments() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description="Survey Python's standard library, durably.")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), metavar="FOLDER")
    parser.add_argument("--store", metavar="URL", help="default: SQLite in the output folder")
    parser.add_argument("--limit", type=int, metavar="N", help="survey only N files")
    parser.add_argument("--demo", action="store_true", help="run it, kill it twice, and tell")
    parser.add_argument("--seed", type=int, metavar="N", help="with --demo: choose the same kills")
    parser.add_argument("--run", metavar="ID", help=argparse.SUPPRESS)
    parser.add_argument("--die-after", type=int, metavar="N", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.limit is not None and options.limit < 1:
        parser.error("--limit must be at least 1")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
