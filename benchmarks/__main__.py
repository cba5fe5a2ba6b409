"""Run all benchmarks: ``python -m benchmarks``."""

from __future__ import annotations

import asyncio
import platform
import sqlite3

from benchmarks import bench_flat, bench_import, bench_resume, bench_step, bench_throughput


def main() -> None:
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}")
    for module in (bench_step, bench_resume, bench_flat, bench_throughput):
        asyncio.run(module.main())
    bench_import.main()


if __name__ == "__main__":
    main()
