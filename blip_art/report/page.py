"""The report as one HTML text: no script, nothing fetched, pictures inside.

    html = render(runs, figures, galleries, files, missing)
"""

from __future__ import annotations

import base64
import statistics
from html import escape
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from blip_art.report import choice, costs
from blip_art.report.choice import is_many, ranked
from blip_art.report.examples import Caption, Example, Gallery
from blip_art.report.style import INVERT_STYLE, STYLE
from blip_art.report.tables import (
    Epoch,
    Run,
    Scores,
    comparable_groups,
    metric_names,
    splits_of,
)
from blip_art.report.words import (
    DIGITS,
    NOTHING,
    duration,
    metric_title,
    number,
    percent,
    rate,
    rule_title,
)

NOT_COMPARABLE = ("These runs don't compare on {split}: their references differ. Joined and split "
                  "scores compare only on the same set. The tables and bold values keep the "
                  "sets apart: {sets}.")

# With more runs than this the page tells the best ones and folds the rest.
FEW_RUNS = 4


class Figure(NamedTuple):
    """A plot as PNG bytes, for light and for dark pages, which invert the light one without."""

    title: str
    light: bytes
    dark: bytes


class RunFiles(NamedTuple):
    """A run's configuration and manifest, as they are on disk; '' where there is none."""

    name: str
    config: str
    manifest: str


def render(runs: Sequence[Run], figures: Sequence[Figure], galleries: Sequence[Gallery],
           files: Sequence[RunFiles], missing: Sequence[str] = ()) -> str:
    """The whole page; equal arguments give equal text."""
    title = "Captioning report" if len(runs) > 1 else f"Captioning report: {runs[0].name}"
    parts = [
        f"<h1>{escape(title)}</h1>", _lead(runs), _warnings(runs),
        *[_headline(runs, split) for split in splits_of(runs) or ["val"]],
        _plots(figures, is_many(runs)), *map(_gallery, galleries),
        costs.render(choice.detailed(runs)), _epoch_tables(choice.detailed(runs)),
        _missing(runs, missing), _files(files),
        '<footer>Made by blip-art. The numbers are in epochs.csv, runs.csv and report.json '
        "beside this page.</footer>"]
    style = STYLE + INVERT_STYLE * is_many(runs)
    body = "\n".join(part for part in parts if part)
    return ('<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
            f"{body}\n</main>\n</body>\n</html>\n")


# Summary -----------------------------------------------------------------------------------


def _lead(runs: Sequence[Run]) -> str:
    many = is_many(runs)
    named = runs if len(runs) <= FEW_RUNS else choice.first(
        [ranked(g)[0] for g in comparable_groups(runs)], choice.GROUPS, many)
    items = "\n".join(f"<li><b>{escape(run.name)}</b>: {escape(_sentence(run))}</li>"
                      for run in named)
    if len(named) < len(runs):
        count = f"{len(runs):,} runs" + f" ({choice.states(runs)})" * many
        items = f"<li>{escape(count)}; the highest of those that compare:</li>\n{items}"
    if many:
        items += f"\n<li>{escape(choice.what_is_left_out(runs))}</li>"
    return f'<ul class="lead">\n{items}\n</ul>'


def _sentence(run: Run) -> str:
    if run.best is None:
        done = sum(bool(e.train) for e in run.epochs)
        state = f"{run.state}: {run.why}" if run.why else run.state
        return f"nothing to choose a best epoch from yet ({done} trained, {state}){_tested(run)}."
    worth = "" if run.best.value is None else (f" by {rule_title(run.best.rule)} "
                                               f"({number(run.best.value)})")
    text = f"epoch {run.best.epoch} is best on val{worth}"
    scores, floor = run.best_scores("val"), run.floors.get("val")
    if scores and floor:
        told = [f"{metric_title(m)} {number(scores.metrics[m])} against {number(floor.metrics[m])}"
                for m in ("CIDEr", "SPICE") if m in scores.metrics and m in floor.metrics]
        text += f"; {', '.join(told)} for one constant caption" if told else ""
    return text + _tested(run) + "."


def _tested(run: Run) -> str:
    """'; on test SPICE 0.212 (epoch 3)', where test is scored."""
    epoch, scores = run.shown_epoch("test"), run.best_scores("test")
    values = [f"{metric_title(m)} {number(scores.metrics[m])}" for m in ("CIDEr", "SPICE")
              if m in scores.metrics] if scores else []
    return f"; on test {', '.join(values)} (epoch {epoch.epoch})" if epoch and values else ""


def _warnings(runs: Sequence[Run]) -> str:
    texts = []
    many = is_many(runs)
    for split in splits_of(runs):
        groups = comparable_groups([r for r in runs if split in r.references], split)
        if len(groups) > 1:
            limit = choice.NAMES if many else len(runs)
            sets = [choice.named([run.name for run in group], limit) for group in groups]
            shown = "; ".join(choice.first(sets, choice.GROUPS, many))
            more = f"; and {len(sets) - choice.GROUPS:,} more sets" * (
                many and len(sets) > choice.GROUPS)
            texts.append(NOT_COMPARABLE.format(split=split, sets=shown + more))
    failed = [run for run in runs if run.state in ("failed", "lost")]
    texts += [f"{run.name} {'is ' * (run.state == 'lost')}{run.state}: "
              f"{run.why or 'why is not known'}"
              for run in choice.first(failed, choice.NAMES, many)]
    if many and len(failed) > choice.NAMES:
        texts.append(f"{len(failed) - choice.NAMES:,} more failed: runs.csv names them all")
    return "\n".join(f'<p class="warn">{escape(text)}</p>' for text in texts)


def _headline(runs: Sequence[Run], split: str) -> str:
    metrics = metric_names(runs, split)
    head = "".join(f"<th>{escape(title)}</th>" for title in
                   ("state", "trained", "best epoch", "time", *map(metric_title, metrics)))
    groups = choice.first(comparable_groups(runs, split), choice.GROUPS, is_many(runs))
    bodies = "\n".join(f"<tbody>\n{_group_rows(group, split, metrics, is_many(runs))}\n</tbody>"
                       for group in groups)
    shown = runs if not is_many(runs) else [
        run for group in groups for run in ranked(group)[:choice.TABLE_RUNS]]
    return (f"<h2>Results on {escape(split)}</h2>\n"
            f'<p class="soft">{_headline_note(runs, split, metrics)}</p>\n'
            '<div class="scroll"><table>\n'
            f'<thead><tr><th class="name">run</th>{head}</tr></thead>\n'
            f"{bodies}\n</table></div>{_captions(shown, split)}")


def _headline_note(runs: Sequence[Run], split: str, metrics: Sequence[str]) -> str:
    if not metrics:
        return "Nothing is scored yet."
    texts = ["Scores at the best epoch, chosen on val. Bold is the highest of the runs that "
             "compare and of the floor, which gives every picture the most frequent caption."]
    if any(split in run.oracles for run in runs):
        texts.append("The oracle is the references themselves, cut to what a caption can be.")
    if any(scores.intervals for scores in map(_at_best(split), runs) if scores):
        texts.append("± is half the middle 95 % over draws of pictures. Whether two runs differ "
                     "by more than chance, blip_art.score compare tells, picture by picture.")
    return " ".join(texts)


def _at_best(split: str) -> Callable[[Run], Optional[Scores]]:
    return lambda run: run.best_scores(split)


def _captions(runs: Sequence[Run], split: str) -> str:
    """What the best epoch's captions are like: scores do not show a model that repeats itself."""
    rows = "\n".join(_caption_row(run.name, scores) for run, scores in
                     zip(runs, map(_at_best(split), runs)) if scores and scores.shares)
    if not rows:
        return ""
    head = "".join(f"<th>{title}</th>" for title in
                   ("empty", "different", "words", "the most frequent", ""))
    return (f"\n<h3>Captions at the best epoch</h3>\n"
            '<div class="scroll"><table>\n'
            f'<thead><tr><th class="name">run</th>{head}</tr></thead>\n'
            f"<tbody>\n{rows}\n</tbody>\n</table></div>")


def _caption_row(name: str, scores: Scores) -> str:
    empty, different, most = (percent(scores.shares.get(key)) for key in (
        "empty_share", "unique_ratio", "most_frequent_share"))
    return (f"<tr><th>{escape(name)}</th><td>{empty}</td><td>{different}</td>"
            f"<td>{number(scores.shares.get('mean_words'), 1)}</td><td>{most}</td>"
            f'<td class="text">“{escape(scores.most_frequent)}”</td></tr>')


def _group_rows(group: Sequence[Run], split: str, metrics: Sequence[str], many: bool) -> str:
    """Rows of the runs that compare, and under them the floors and oracles they share."""
    floors, oracles = (choice.first(_distinct(every), choice.GROUPS, many)
                       for every in ([run.floors.get(split) for run in group],
                                     [run.oracles.get(split) for run in group]))
    best = {run.name: run.best_scores(split) for run in group}
    tops = {m: _top(m, list(best.values()), floors) for m in metrics}
    rows = [f"<tr><th>{escape(run.name)}</th>{_state_cells(run, split)}"
            f"{_value_cells(best[run.name], tops)}</tr>"
            for run in (ranked(group)[:choice.TABLE_RUNS] if many else group)]
    if many and len(group) > choice.TABLE_RUNS:
        rows += _rows_of_all([scores for scores in best.values() if scores], metrics)
    rows += [f'<tr class="floor"><th>floor<small>“{escape(floor.caption)}”</small></th>'
             f'<td colspan="4"></td>{_value_cells(floor, tops)}</tr>' for floor in floors]
    # It is above every run; that is not what bold is for.
    none = dict.fromkeys(metrics)
    rows += [f'<tr class="floor"><th>oracle<small>references cut to {oracle.cut_to}'
             f'</small></th><td colspan="4"></td>{_value_cells(oracle, none)}</tr>'
             for oracle in oracles]
    return "\n".join(rows)


def _distinct(every: Sequence[Optional[Scores]]) -> List[Scores]:
    """The first of those that are equal."""
    found: Dict[str, Scores] = {}
    for scores in every:
        if scores:
            found.setdefault(repr(scores), scores)
    return list(found.values())


def _rows_of_all(best: Sequence[Scores], metrics: Sequence[str]) -> List[str]:
    """What a table of the best runs leaves out: the middle and the lowest of all."""
    values = {m: sorted(s.metrics[m] for s in best if m in s.metrics) for m in metrics}
    rows = []
    for name, choose in (("median", statistics.median), ("lowest", min)):
        cells = "".join(f"<td>{number(choose(values[m]) if values[m] else None)}</td>"
                        for m in metrics)
        rows.append(f'<tr class="floor"><th>{name} of {len(best):,} runs</th>'
                    f'<td colspan="4"></td>{cells}</tr>')
    return rows


def _top(metric: str, best: Sequence[Optional[Scores]],
         floors: Sequence[Scores]) -> Optional[float]:
    """The highest value as it is shown; None if no run has one, so that no floor wins alone."""
    values = [round(s.metrics[metric], DIGITS) for s in best if s and metric in s.metrics]
    rivals = [round(s.metrics[metric], DIGITS) for s in floors if metric in s.metrics]
    return max(values + rivals) if values else None


def _value_cells(scores: Optional[Scores], tops: Mapping[str, Optional[float]]) -> str:
    cells = []
    for metric, top in tops.items():
        value = scores.metrics.get(metric) if scores else None
        if value is None:
            cells.append('<td class="hole">missing</td>' if scores else f"<td>{NOTHING}</td>")
        else:
            assert scores is not None
            text = f"<b>{number(value)}</b>" if round(value, DIGITS) == top else number(value)
            cells.append(f"<td>{text}{_interval(scores.intervals.get(metric))}</td>")
    return "".join(cells)


def _interval(ends: Optional[Tuple[float, float]]) -> str:
    return f"<small>±{number((ends[1] - ends[0]) / 2)}</small>" if ends else ""


def _state_cells(run: Run, split: str) -> str:
    done = sum(bool(e.train) for e in run.epochs)
    trained = f"{done} of {run.epochs_planned}" if run.epochs_planned else str(done)
    best = NOTHING if run.best is None else str(run.best.epoch)
    shown = run.shown_epoch(split)
    if shown and not (run.best and run.best.epoch == shown.epoch):
        best += f"<small>scores: epoch {shown.epoch}</small>"
    return (f'<td><span class="tag {escape(run.state)}">{escape(run.state)}</span></td>'
            f"<td>{trained}</td><td>{best}</td><td>{duration(run.seconds)}</td>")


# Plots and captions ------------------------------------------------------------------------


def _plots(figures: Sequence[Figure], many: bool = False) -> str:
    if not figures:
        return ""
    items = "\n".join(map(_figure, figures))
    bands = " Grey: where all other runs lie, the middle half of them darker." * many
    return ('<h2>By epoch</h2>\n<p class="soft">Open markers: the best epoch. Dashed: the floor. '
            "Bars: the middle 95 % over draws of pictures. A gap in a line is an epoch without a "
            f'value.{bands}</p>\n<div class="plots">\n{items}\n</div>')


def _figure(figure: Figure) -> str:
    image = f'alt="{escape(figure.title)} by epoch" src="{_data(figure.light, "png")}">'
    if not figure.dark:
        return f'<figure><img class="invert" {image}</figure>'
    return ('<figure><picture><source media="screen and (prefers-color-scheme: dark)" '
            f'srcset="{_data(figure.dark, "png")}"><img {image}</picture></figure>')


def _data(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _gallery(gallery: Gallery) -> str:
    cards = "\n".join(_card(example) for example in gallery.examples)
    return (f"<h2>{escape(gallery.title)}</h2>\n"
            f'<p class="soft">{escape(gallery.note)}</p>\n<div class="cards">\n{cards}\n</div>')


def _card(example: Example) -> str:
    picture = "" if example.thumbnail is None else (
        f'<img alt="picture {escape(example.image_id)}" '
        f'src="{_data(example.thumbnail, "jpeg")}">')
    several = len(example.captions) > 1
    wrote = "".join(_wrote(caption, several) for caption in example.captions)
    texts = "".join(f"<dd>{escape(text)}</dd>" for text in example.references)
    word = "reference" if len(example.references) == 1 else "references"
    said = f"<dt>{word}</dt>{texts}" if texts else ""
    return (f'<figure class="card">{picture}<figcaption><dl>{wrote}{said}</dl>'
            f'<p class="id">{escape(example.image_id)}</p></figcaption></figure>')


def _wrote(caption: Caption, several: bool) -> str:
    scores = ", ".join(f"{metric_title(m)} {number(v, 2)}" for m, v in caption.scores.items())
    who = ": ".join(text for text in (caption.run if several else "model", scores) if text)
    if caption.text is None:
        return f"<dt>{escape(who)}</dt><dd>no caption</dd>"
    return f'<dt>{escape(who)}</dt><dd class="wrote">{escape(caption.text or "(empty)")}</dd>'


# Epochs, holes, files ----------------------------------------------------------------------


def _epoch_tables(runs: Sequence[Run]) -> str:
    before, after, end = ("<h3>", "</h3>", "") if len(runs) <= FEW_RUNS else (
        "<details><summary>", "</summary>", "\n</details>")
    tables = "\n".join(f"{before}{escape(run.name)}{after}\n{_epoch_table(run)}{end}"
                       for run in runs)
    return f'<h2>Every epoch</h2>\n<p class="soft">The best epoch is shaded.</p>\n{tables}'


def _epoch_table(run: Run) -> str:
    if not run.epochs:
        return '<p class="soft">No epoch yet.</p>'
    splits = splits_of([run])
    columns = {split: metric_names([run], split) for split in splits}
    groups = "".join(f'<th class="first" colspan="{len(columns[s]) or 1}">{escape(s)}</th>'
                     for s in splits)
    names = "".join(
        "".join(f'<th{_first(i)}>{escape(metric_title(m))}</th>' for i, m in enumerate(columns[s]))
        or '<th class="first"></th>' for s in splits)
    rows = "\n".join(_epoch_row(run, epoch, columns) for epoch in run.epochs)
    return (f'<div class="scroll"><table>\n<thead><tr class="groups"><th colspan="5"></th>{groups}'
            "</tr>\n<tr><th>epoch</th><th>loss</th><th>learning rate</th><th>images/s</th>"
            f"<th>time</th>{names}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>")


def _epoch_row(run: Run, epoch: Epoch, columns: Dict[str, List[str]]) -> str:
    train = epoch.train
    cells = [str(epoch.epoch), number(train.get("loss")), rate(train.get("lr")),
             number(train.get("images_per_s"), 1), duration(train.get("seconds"))]
    text = "".join(f"<td>{cell}</td>" for cell in cells)
    for split, metrics in columns.items():
        scores = epoch.scores.get(split)
        if scores is None:
            why = "not scored" if split in epoch.predicted else "not captioned"
            text += f'<td class="first hole" colspan="{len(metrics) or 1}">{why}</td>'
        else:
            text += "".join(_score_cell(scores, m, i) for i, m in enumerate(metrics))
    best = run.best is not None and run.best.epoch == epoch.epoch
    return f'<tr class="best">{text}</tr>' if best else f"<tr>{text}</tr>"


def _score_cell(scores: Scores, metric: str, place: int) -> str:
    value = scores.metrics.get(metric)
    if value is not None:
        return f"<td{_first(place)}>{number(value)}</td>"
    first = " first" * (place == 0)
    return f'<td class="hole{first}">missing</td>'


def _first(place: int) -> str:
    return ' class="first"' if place == 0 else ""


def _missing(runs: Sequence[Run], missing: Sequence[str]) -> str:
    items = [f"{run.name}: {hole}" for run in runs for hole in run.missing] + list(missing)
    if not items:
        return "<h2>What is missing</h2>\n<p>Nothing.</p>"
    if is_many(runs) and len(items) > choice.MISSING_LINES:
        more = len(items) - choice.MISSING_LINES
        items = [*items[:choice.MISSING_LINES], f"and {more:,} more, which report.json names"]
    lines = "\n".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<h2>What is missing</h2>\n<ul class="missing">\n{lines}\n</ul>'


def _files(files: Sequence[RunFiles]) -> str:
    blocks = []
    for run in files:
        for name, text in (("configuration", run.config), ("versions and commit", run.manifest)):
            if text:
                blocks.append(f"<details><summary>{escape(run.name)}: {name}</summary>\n"
                              f"<pre>{escape(text)}</pre>\n</details>")
    return "<h2>How it was made</h2>\n" + "\n".join(blocks) if blocks else ""
