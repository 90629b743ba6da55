"""Lines, points with intervals, and stacked bars as inline SVG; colours are the page's variables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 560, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 14, 30, 46
_BAR_LEFT, _BAR_RIGHT = 272, 80
_LEGEND_STEP = 8.0


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points (x, y) in order of x, with (low, high) where there are intervals, and names of their own where given."""

    name: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[tuple[float, float]] = ()
    labels: Sequence[str] = ()
    is_line: bool = True


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A scale from the data to the page; `log` is to base 10, `log2` counts in doublings."""

    label: str
    scale: str = "linear"
    percent: bool = False

    def forward(self, value: float) -> float:
        """The value on a linear scale."""
        return value if self.scale == "linear" else math.log10(value)

    def ticks(self, low: float, high: float) -> list[float]:
        """Round values between the two, in the data's units."""
        if self.scale == "log":
            first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
            within = (1, 2, 5) if last - first < 3 else (1,)
            values = [count * 10.0**power for power in range(first, last + 1) for count in within]
        elif self.scale == "log2":
            values = [2.0**power for power in range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)]
        else:
            step = _round_step((high - low) / 5 or 1.0)
            values = [step * count for count in range(math.floor(low / step), math.ceil(high / step) + 1)]
        return [value for value in values if low * (1 - 1e-9) - 1e-12 <= value <= high * (1 + 1e-9) + 1e-12]

    def show(self, value: float) -> str:
        """A tick's text."""
        if self.percent:
            return f"{100 * value:.4g} %"
        return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:.4g}"


@dataclass(kw_only=True)
class _Frame:
    """Where data lie on the page."""

    x: Axis
    y: Axis
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    parts: list[str] = field(default_factory=list)

    def at_x(self, value: float) -> float:
        return _place(self.x, value, self.x_range, _LEFT, WIDTH - _RIGHT)

    def at_y(self, value: float) -> float:
        return _place(self.y, value, self.y_range, HEIGHT - _BOTTOM, _TOP)


def plot(series: Sequence[Series], *, x: Axis, y: Axis, diagonal: bool = False) -> str:
    """Lines or single points, with a legend; empty without any point.

    `diagonal` draws x = y.
    """
    xs = [point[0] for one in series for point in one.points]
    ys = [point[1] for one in series for point in one.points]
    ys += [bound for one in series for interval in one.intervals for bound in interval if y.scale == "linear"]
    if not xs:
        return ""
    frame = _Frame(x=x, y=y, x_range=_range(x, xs), y_range=_range(y, ys))
    if diagonal:
        both = (max(frame.x_range[0], frame.y_range[0]), min(frame.x_range[1], frame.y_range[1]))
        frame.parts.append(_line([(frame.at_x(one), frame.at_y(one)) for one in both], "var(--soft)", dash=True))
    _axes(frame)
    for index, one in enumerate(series):
        _draw(frame, one, f"var(--c{index % 7})")
    names = [one.name for one in series]
    label = f"{y.label} against {x.label}"
    return _svg(HEIGHT, label, [*frame.parts, *_legend(names, _LEFT)])


def bars(rows: Sequence[tuple[str, Sequence[float]]], parts: Sequence[str], *, unit: str) -> str:
    """Horizontal stacked bars: for each row its name and the length of each of `parts`."""
    if not rows:
        return ""
    top, step = 34, 26
    height = top + step * len(rows) + 30
    longest = max(sum(values) for _, values in rows) or 1.0
    room = WIDTH - _BAR_LEFT - _BAR_RIGHT
    out = _legend(parts, 8)
    for index, (name, values) in enumerate(rows):
        y = top + index * step
        out.append(f'<text x="{_BAR_LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>')
        left = float(_BAR_LEFT)
        for part, value in enumerate(values):
            width = max(0.0, value) / longest * room
            title = f"<title>{escape(name)}, {escape(parts[part])}: {value:.4g} {unit}</title>"
            out.append(
                f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="18" fill="var(--c{part})">{title}</rect>'
            )
            left += width
        out.append(f'<text class="soft" x="{left + 5:.1f}" y="{y + 14}">{sum(values):.3g} {unit}</text>')
    return _svg(height, f"{', '.join(parts)} in {unit}", out)


def _draw(frame: _Frame, one: Series, colour: str) -> None:
    places = [(frame.at_x(x), frame.at_y(y)) for x, y in one.points]
    if one.is_line and len(places) > 1:
        frame.parts.append(_line(places, colour))
    for (x, _), (low, high) in zip(places, one.intervals, strict=False):
        ends = [min(max(frame.at_y(bound), _TOP), HEIGHT - _BOTTOM) for bound in _shown(frame, low, high)]
        frame.parts.append(_line([(x, ends[0]), (x, ends[1])], colour))
    labels = one.labels or [one.name] * len(places)
    for (x, y), (data_x, data_y), label in zip(places, one.points, labels, strict=True):
        title = f"{label}: {frame.x.show(data_x)}, {frame.y.show(data_y)}"
        frame.parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"><title>{escape(title)}</title></circle>'
        )


def _shown(frame: _Frame, low: float, high: float) -> tuple[float, float]:
    """An interval as far as the scale has it."""
    least = frame.y_range[0]
    return (max(low, least), max(high, least)) if frame.y.scale != "linear" else (low, high)


def _axes(frame: _Frame) -> None:
    bottom = HEIGHT - _BOTTOM
    for value in frame.y.ticks(*frame.y_range):
        y = frame.at_y(value)
        frame.parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        frame.parts.append(
            f'<text class="soft" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{frame.y.show(value)}</text>'
        )
    for value in frame.x.ticks(*frame.x_range):
        x = frame.at_x(value)
        frame.parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        frame.parts.append(
            f'<text class="soft" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{frame.x.show(value)}</text>'
        )
    frame.parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    frame.parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(frame.x.label)}</text>')
    turn = f'transform="rotate(-90 14 {(bottom + _TOP) / 2})"'
    frame.parts.append(
        f'<text x="14" y="{(bottom + _TOP) / 2}" text-anchor="middle" {turn}>{escape(frame.y.label)}</text>'
    )


def _legend(names: Sequence[str], left: float) -> list[str]:
    out = []
    for index, name in enumerate(names):
        out.append(f'<rect x="{left:.0f}" y="8" width="10" height="10" fill="var(--c{index % 7})"/>')
        out.append(f'<text x="{left + 14:.0f}" y="17">{escape(name)}</text>')
        left += 26 + _LEGEND_STEP * len(name)
    return out


def _line(places: Sequence[tuple[float, float]], colour: str, *, dash: bool = False) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dashed = ' stroke-dasharray="4 4"' if dash else ""
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dashed}/>'


def _svg(height: float, label: str, parts: Sequence[str]) -> str:
    label = escape(label, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _place(axis: Axis, value: float, bounds: tuple[float, float], first: float, last: float) -> float:
    low, high = axis.forward(bounds[0]), axis.forward(bounds[1])
    return first + (axis.forward(value) - low) / ((high - low) or 1.0) * (last - first)


def _range(axis: Axis, values: Sequence[float]) -> tuple[float, float]:
    if axis.scale != "linear":
        return min(values) / 1.3, max(values) * 1.3
    low, high = min(0.0, *values), max(0.0, *values)
    room = 0.06 * ((high - low) or 1.0)
    return (low - room if low < 0 else low), high + room


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * count for count in (1, 2, 5, 10) if power * count >= step)
