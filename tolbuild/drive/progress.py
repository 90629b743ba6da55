"""What a build says while it runs: a bar in a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, TextIO

from tolbuild.build import CellReport
from tolbuild.drive.estimate import cell_weight
from tolbuild.drive.pool import Event, Pool, WorkerLost
from tolbuild.grid import Cell, FitCell, RanksCell, ScaleCell, ShardCell, SumCell
from tolbuild.plan import Plan

LINE_EVERY_S = 5.0
"""Time between two lines of a log."""

QUIET_LINE_EVERY_S = 30.0
"""The same while no cell ends."""

WAITING_AFTER_S = 10.0
"""Time without a ready worker after which it is said what the build waits for, and again every QUIET_LINE_EVERY_S."""

STAGES: dict[type[Cell], str] = {
    SumCell: "sums",
    FitCell: "fits",
    RanksCell: "ranks",
    ScaleCell: "scales",
    ShardCell: "codes",
}


class Progress:
    """Counts what is done and tells it: stage, cells, rows/s, bytes, time left.

    Args:
        cells: the cells of this run (those that an earlier run finished are not among them).
        stream: where to write; a bar if it is a terminal.
    """

    def __init__(self, plan: Plan, cells: Iterable[Cell], *, spools: bool, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._weights = {cell: cell_weight(plan, cell, spools=spools) for cell in cells}
        self._totals = Counter(STAGES[type(cell)] for cell in self._weights)
        self._done: Counter[str] = Counter()
        self._work_left = self._work = sum(self._weights.values())
        self._began = time.monotonic()
        self._next_line = self._next_quiet_line = self._next_look = self._began
        self.num_rows = 0
        self.written_bytes = 0
        self.seconds: dict[str, float] = defaultdict(float)
        self._bar: Any = None
        self._pool: Pool | None = None

    def start(self, pool: Pool) -> None:
        """Begin to show the work of a pool."""
        self._began = time.monotonic()
        self._next_line, self._next_quiet_line = self._began + LINE_EVERY_S, self._began + QUIET_LINE_EVERY_S
        self._next_look = self._began + WAITING_AFTER_S
        self._pool = pool
        if self._stream.isatty():
            self._bar, self._task = _rich_bar(self._stream, self._work)
            self._bar.start()

    def event(self, event: Event) -> None:
        """Take note of a finished cell or a lost worker."""
        if isinstance(event, WorkerLost):
            self.say(f"{event.worker} was lost ({event.reason}); its cells go to others")
            return
        self._count(event)
        line = self.line()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._work - self._work_left, detail=line)
        elif time.monotonic() >= self._next_line or not self._work_left:
            self._say_line(line)

    def tick(self) -> None:
        """Show that time passes, and what the build waits for while no worker is ready."""
        now = time.monotonic()
        if self._pool is not None and now >= self._next_look and (reason := self._pool.waits_for()):
            self._next_look = now + QUIET_LINE_EVERY_S
            self._next_quiet_line = now + QUIET_LINE_EVERY_S
            self.say(f"no worker is ready after {duration(now - self._began)}: {reason}")
        if self._bar is not None:
            self._bar.update(self._task, detail=self.line())
        elif now >= self._next_quiet_line:
            self._say_line(self.line())

    def say(self, text: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self._stream, flush=True)

    def line(self) -> str:
        """The time left, cells by stage, rows a second, bytes and the time so far."""
        elapsed_s = max(time.monotonic() - self._began, 1e-9)
        stages = "  ".join(f"{name} {self._done[name]}/{total}" for name, total in self._totals.items())
        share = 1 - self._work_left / self._work if self._work else 1.0
        left = f"{duration(elapsed_s * (1 - share) / share)} left" if share else "-"
        rate, written = f"{self.num_rows / elapsed_s:,.0f} rows/s", f"{size(self.written_bytes)} written"
        return f"{left}  {stages}  {rate}  {written}  after {duration(elapsed_s)}"

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def _say_line(self, line: str) -> None:
        now = time.monotonic()
        self._next_line, self._next_quiet_line = now + LINE_EVERY_S, now + QUIET_LINE_EVERY_S
        self.say(line)

    def _count(self, report: CellReport) -> None:
        stage = STAGES[type(report.cell)]
        self._done[stage] += 1
        self._work_left -= self._weights.pop(report.cell)
        if not self._weights:
            self._work_left = 0.0
        self.num_rows += report.num_rows
        self.written_bytes += report.written_bytes
        self.seconds[stage] += report.compute_s
        self.seconds["transfer"] += report.transfer_s


def say(text: str) -> None:
    """A line before there is any progress to show."""
    print(text, file=sys.stderr, flush=True)


def _rich_bar(stream: TextIO, work: float) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (BarColumn(bar_width=24), TaskProgressColumn(), TextColumn("{task.fields[detail]}"))
    bar = Progress(*columns, console=Console(file=stream), transient=True)
    return bar, bar.add_task("build", total=work, detail="starting")


def duration(seconds: float) -> str:
    """Seconds as a person says them: 4.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(num_bytes: float) -> str:
    """Bytes with a decimal unit and three digits or so."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(num_bytes) < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" or num_bytes >= 100 else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.2f} TB"
