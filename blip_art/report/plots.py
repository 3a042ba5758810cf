"""Curves of loss and every metric by epoch, as PNG bytes for light and dark pages.

    for plot in draw(read_runs(["runs/demo"])): Path(plot.name + ".png").write_bytes(plot.light)

Needs matplotlib; the rest of the report does without.
"""

from __future__ import annotations

import io
import re
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from blip_art.report.choice import MANY_RUNS, is_many, ranked
from blip_art.report.tables import Run, metric_names, splits_of
from blip_art.report.words import metric_title, metric_unit
from blip_art.run_state import BEST_RULES

# Okabe and Ito's palette, whose hues people with any colour vision tell apart, without its
# yellow (too pale for a line); the markers say the same once more.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DARK_COLOURS = ("#4FA8DC", "#F08A4B", "#2FBF95", "#DE9CC0", "#F2B84B", "#8CCBF2")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# More lines than this cannot be told apart: the best runs keep their colours, the rest go grey.
MAX_COLOURED = 6
WIDTH_INCH, HEIGHT_INCH, LEGEND_ROW_INCH, DPI = 4.6, 3.0, 0.2, 180
LEGEND_COLUMNS = 3


class Plot(NamedTuple):
    """One picture in both inks (the dark one may be b""); `name` is fit for a file."""

    name: str
    title: str
    light: bytes
    dark: bytes


class Curve(NamedTuple):
    """One run's line: the epochs that are known, its floor, the place of its best epoch, and
    the low and high ends of intervals."""

    run: str
    points: Tuple[Tuple[int, float], ...]
    floor: Optional[float]
    best: Optional[Tuple[int, float]]
    intervals: Tuple[Tuple[int, float, float], ...] = ()
    grey: bool = False


class Ink(NamedTuple):
    """Colours of one theme."""

    paper: str
    text: str
    faint: str
    lines: Tuple[str, ...]


LIGHT = Ink("#ffffff", "#1d2430", "#d9dee6", COLOURS)
DARK = Ink("#161b22", "#dfe5ee", "#39424f", DARK_COLOURS)


def draw(runs: Sequence[Run]) -> List[Plot]:
    """The loss, then each metric of each split; a plot without data is left out."""
    coloured = {run.name for run in ranked(runs)[:MAX_COLOURED]}
    main = {metric for rule in BEST_RULES.values() for metric in rule}
    plots = [_plot("loss", "Training loss", "nats per token", _loss_curves(runs), coloured)]
    for split in splits_of(runs):
        for metric in metric_names(runs, split):
            if is_many(runs) and metric not in main:
                continue
            name = re.sub(r"\W+", "_", f"{split}_{metric}")
            plots.append(_plot(name, f"{metric_title(metric)} on {split}", metric_unit(metric),
                               _metric_curves(runs, split, metric, coloured), coloured))
    return [plot for plot in plots if plot is not None]


def _loss_curves(runs: Sequence[Run]) -> List[Curve]:
    curves = []
    for run in runs:
        points = {e.epoch: e.train["loss"] for e in run.epochs if "loss" in e.train}
        curves.append(_curve(run, points, None))
    return curves


def _metric_curves(runs: Sequence[Run], split: str, metric: str, coloured: Set[str]
                   ) -> List[Curve]:
    curves = []
    for run in runs:
        points = {e.epoch: e.scores[split].metrics[metric] for e in run.epochs
                  if split in e.scores and metric in e.scores[split].metrics}
        floor = run.floors[split].metrics.get(metric) if split in run.floors else None
        intervals = tuple((e.epoch, *e.scores[split].intervals[metric]) for e in run.epochs
                          if e.epoch in points and metric in e.scores[split].intervals
                          ) if run.name in coloured else ()
        curves.append(_curve(run, points, floor)._replace(intervals=intervals))
    return curves


def _curve(run: Run, points: Dict[int, float], floor: Optional[float]) -> Curve:
    best = run.best.epoch if run.best and run.best.epoch in points else None
    return Curve(run.name, tuple(sorted(points.items())), floor,
                 None if best is None else (best, points[best]))


def _plot(name: str, title: str, unit: str, curves: Sequence[Curve],
          coloured: Set[str]) -> Optional[Plot]:
    curves = sorted((curve._replace(grey=curve.run not in coloured) for curve in curves),
                    key=lambda curve: curve.grey)
    if not any(curve.points for curve in curves):
        return None
    light = _png(title, unit, curves, LIGHT)
    # Of very many runs the page inverts the light one.
    dark = b"" if len(curves) > MANY_RUNS else _png(title, unit, curves, DARK)
    return Plot(name, title, light, dark)


def _png(title: str, unit: str, curves: Sequence[Curve], ink: Ink) -> bytes:
    entries = min(len(curves), MAX_COLOURED + 1)
    legend_rows = -(-entries // LEGEND_COLUMNS) if entries > 1 else 0
    figure = Figure(figsize=(WIDTH_INCH, HEIGHT_INCH + LEGEND_ROW_INCH * legend_rows), dpi=DPI,
                    facecolor=ink.paper, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _prepare(axes, title, unit, ink)
    for place, curve in enumerate(curve for curve in curves if not curve.grey):
        _draw_curve(axes, curve, place, ink, alone=len(curves) == 1)
    _draw_grey(axes, [curve for curve in curves if curve.grey], ink)
    _draw_floors(axes, curves, ink)
    _set_limits(axes, curves)
    if legend_rows:
        figure.legend(loc="outside lower left", ncols=min(LEGEND_COLUMNS, entries),
                      frameon=False, fontsize=8.5, labelcolor=ink.text, handlelength=1.8,
                      columnspacing=1.4)
    out = io.BytesIO()
    # Without its version in the file, the same curves are the same bytes.
    figure.savefig(out, format="png", metadata={"Software": None}, facecolor=ink.paper)
    return out.getvalue()


def _prepare(axes: Axes, title: str, unit: str, ink: Ink) -> None:
    axes.set_facecolor(ink.paper)
    axes.set_title(title, loc="left", fontsize=12.5, fontweight="bold", color=ink.text, pad=10)
    axes.set_xlabel("epoch", fontsize=9.5, color=ink.text)
    axes.set_ylabel(unit, fontsize=9.5, color=ink.text)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axes.tick_params(colors=ink.text, labelsize=9, length=0)
    axes.grid(axis="y", color=ink.faint, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(ink.faint)


def _draw_curve(axes: Axes, curve: Curve, place: int, ink: Ink, alone: bool) -> None:
    colour = ink.lines[place % len(ink.lines)]
    marker = MARKERS[place % len(MARKERS)]
    for number, stretch in enumerate(_stretches(curve.points)):
        axes.plot([e for e, _ in stretch], [v for _, v in stretch], color=colour, linewidth=2,
                  marker=marker, markersize=4.5, solid_capstyle="round",
                  label=_plain(curve.run) if number == 0 else None)
    if curve.intervals:
        epochs, low, high = zip(*curve.intervals)
        axes.vlines(epochs, low, high, color=colour, linewidth=1.2, alpha=0.6,
                    capstyle="projecting")
    if curve.best:
        axes.plot(*curve.best, marker=marker, markersize=10, markerfacecolor=ink.paper,
                  markeredgecolor=colour, markeredgewidth=2.2, linestyle="none", zorder=5)
    if curve.best and alone:
        _label_best(axes, curve, colour)


def _draw_grey(axes: Axes, curves: Sequence[Curve], ink: Ink) -> None:
    if len(curves) > MANY_RUNS:
        _draw_bands(axes, curves, ink)
        return
    label: Optional[str] = f"{len(curves)} more"
    for stretch in (stretch for curve in curves for stretch in _stretches(curve.points)):
        axes.plot([e for e, _ in stretch], [v for _, v in stretch], color=ink.text, alpha=0.25,
                  linewidth=1, marker=".", markersize=3, zorder=1.5, label=label)
        label = None  # one entry in the legend for all of them


def _draw_bands(axes: Axes, curves: Sequence[Curve], ink: Ink) -> None:
    """Where the runs lie at each epoch: all of them, their middle half, their median."""
    epochs, (low, first, middle, third, high) = _quartiles(curves)
    for bottom, top, alpha in ((low, high, 0.10), (first, third, 0.15)):
        axes.fill_between(epochs, bottom, top, color=ink.text, alpha=alpha, linewidth=0)
    axes.plot(epochs, middle, color=ink.text, alpha=0.6, linewidth=1.2, zorder=1.5,
              label=f"median of {len(curves)} more")


def _quartiles(curves: Sequence[Curve]) -> Tuple[List[int], Any]:
    """The epochs; and the lowest, the quartiles and the highest of their values: (5, epochs)."""
    values: Dict[int, List[float]] = {}
    for curve in curves:
        for epoch, value in curve.points:
            values.setdefault(epoch, []).append(value)
    epochs = sorted(values)
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    return epochs, np.array([np.quantile(values[epoch], shares) for epoch in epochs]).T


def _label_best(axes: Axes, curve: Curve, colour: str) -> None:
    """The best epoch's value beside the title, where no line can cross it."""
    assert curve.best is not None
    epoch, value = curve.best
    axes.annotate(f"best epoch {epoch}: {value:.3f}", (1, 1.02), xycoords="axes fraction",
                  fontsize=9, fontweight="bold", ha="right", va="bottom", color=colour)


def _stretches(points: Sequence[Tuple[int, float]]) -> List[List[Tuple[int, float]]]:
    """Runs of neighbouring epochs: the line stops at a hole instead of bridging it."""
    stretches: List[List[Tuple[int, float]]] = []
    for epoch, value in points:
        if stretches and stretches[-1][-1][0] == epoch - 1:
            stretches[-1].append((epoch, value))
        else:
            stretches.append([(epoch, value)])
    return stretches


def _draw_floors(axes: Axes, curves: Sequence[Curve], ink: Ink) -> None:
    """A dashed line for each different floor; in the run's colour where there are several."""
    owners: Dict[float, int] = {}
    for place, curve in enumerate(curves):
        if curve.floor is not None:
            owners.setdefault(curve.floor, place)
    for number, (floor, place) in enumerate(sorted(owners.items())):
        colour = ink.text if len(owners) == 1 else ink.lines[place % len(ink.lines)]
        axes.axhline(floor, color=colour, linewidth=1.2, linestyle=(0, (4, 3)), alpha=0.75)
        # Labels of close floors stand at opposite ends.
        x, side = ((0.99, "right"), (0.01, "left"))[number % 2]
        axes.annotate(f"constant caption {floor:.3f}", (x, floor),
                      xycoords=("axes fraction", "data"), xytext=(0, 3),
                      textcoords="offset points", ha=side, fontsize=8.5, color=colour, zorder=4,
                      path_effects=[withStroke(linewidth=3, foreground=ink.paper)])


def _set_limits(axes: Axes, curves: Sequence[Curve]) -> None:
    epochs = [epoch for c in curves for epoch, _ in c.points]
    values = [v for c in curves for _, v in c.points]
    values += [c.floor for c in curves if c.floor is not None]
    values += [end for c in curves if not c.grey for _, *ends in c.intervals for end in ends]
    room = (max(values) - min(values)) or abs(max(values)) or 1.0
    axes.set_ylim(min(values) - 0.2 * room, max(values) + 0.25 * room)
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    step = -(-(max(epochs) - min(epochs) + 1) // 10)
    axes.set_xticks(range(min(epochs), max(epochs) + 1, step))


def _plain(name: str) -> str:
    """A run's name as the legend shows it: '$' would start a formula, '_' hides the entry."""
    text = name.replace("$", r"\$")
    return " " + text if text.startswith("_") else text
