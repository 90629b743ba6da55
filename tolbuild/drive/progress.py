"""What a build says while it runs: a bar in a terminal, a plain line or a JSON object now and then in a log."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, TextIO

from tolbuild.build import CellReport
from tolbuild.drive.estimate import cell_weight
from tolbuild.drive.pool import Event, Pool, WorkerLost
from tolbuild.drive.voice import Voice
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
        voice: where to say it; with a bar if that is a terminal.
    """

    def __init__(self, plan: Plan, cells: Iterable[Cell], *, spools: bool, voice: Voice | None = None) -> None:
        self._voice = voice or Voice()
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
        if self._voice.wants_bar:
            self._bar, self._task = _rich_bar(self._voice.stream, self._work)
            self._bar.start()

    def event(self, event: Event) -> None:
        """Take note of a finished cell or a lost worker."""
        if isinstance(event, WorkerLost):
            self.say(f"{event.worker} was lost ({event.reason}); its cells go to others")
            return
        self._count(event)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._work - self._work_left, detail=self.line())
        elif time.monotonic() >= self._next_line or not self._work_left:
            self._say_line()

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
            self._say_line()

    def say(self, text: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            self._voice.say(text)

    def line(self) -> str:
        """The time left, cells by stage, rows a second, bytes and the time so far."""
        elapsed_s, left_s = self._times()
        stages = "  ".join(f"{name} {self._done[name]}/{total}" for name, total in self._totals.items())
        left = "-" if left_s is None else f"{duration(left_s)} left"
        rate, written = f"{self.num_rows / elapsed_s:,.0f} rows/s", f"{size(self.written_bytes)} written"
        return f"{left}  {stages}  {rate}  {written}  after {duration(elapsed_s)}"

    def record(self) -> dict[str, object]:
        """The same for programs: seconds, rows/s, bytes, and cells done and in all by stage."""
        elapsed_s, left_s = self._times()
        return {
            "stages": {name: {"done": self._done[name], "total": total} for name, total in self._totals.items()},
            "elapsed_s": elapsed_s,
            "left_s": left_s,
            "rows_per_s": self.num_rows / elapsed_s,
            "written_bytes": self.written_bytes,
        }

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def _say_line(self) -> None:
        now = time.monotonic()
        self._next_line, self._next_quiet_line = now + LINE_EVERY_S, now + QUIET_LINE_EVERY_S
        if self._voice.as_json:
            self._voice.event("progress", **self.record())
        else:
            self.say(self.line())

    def _times(self) -> tuple[float, float | None]:
        """Seconds so far, and those that are left by the work that is; None while nothing is known."""
        elapsed_s = max(time.monotonic() - self._began, 1e-9)
        share = 1 - self._work_left / self._work if self._work else 1.0
        return elapsed_s, elapsed_s * (1 - share) / share if share else None

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
