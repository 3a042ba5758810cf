"""Scores as text for people: tables, and the sentence that keeps them honest.

    print(table({"val_03": {"CIDEr": 0.31}})); print(sentence(read_json("scores/val_03.json")))
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping

Rows = Mapping[str, Mapping[str, float]]
# Of fewer pictures intervals are too narrow, and a difference says nothing of other pictures; see
# bench/results/significance.md.
FEW_PICTURES = 50
LEAST_PICTURES = 10


def table(rows: Rows) -> str:
    """Rows of values under the metrics' names."""
    names = list(dict.fromkeys(name for values in rows.values() for name in values))
    width = max(map(len, rows))
    lines = ["  ".join([" " * width, *(f"{name:>7}" for name in names)])]
    for label, values in rows.items():
        cells = (f"{values[name]:7.3f}" if name in values else "      -" for name in names)
        lines.append("  ".join([f"{label:<{width}}", *cells]))
    return "\n".join(lines)


def with_intervals(label: str, record: Mapping[str, Any]) -> Dict[str, Dict[str, float]]:
    """A row of scores and the two ends of their intervals under it."""
    rows = {label: dict(record["metrics"])}
    if record.get("intervals"):
        for place, end in enumerate(("low", "high")):
            rows[f"  95 % {end}"] = {
                name: ends[place] for name, ends in record["intervals"].items()}
    return rows


def sentence(record: Mapping[str, Any]) -> str:
    """What the captions are like, and what the references leave possible."""
    parts = [f"{record['pictures']:,} picture" + "s" * (record["pictures"] != 1)]
    captions = record.get("captions")
    if captions:
        empty, unique, most = (_percent(captions[name]) for name in (
            "empty_share", "unique_ratio", "most_frequent_share"))
        parts.append(f"{empty} of the captions are empty, {unique} different, "
                     f"{captions['mean_words']:.1f} words on average; most frequent ({most}): "
                     f"'{_cut(captions['most_frequent'])}'")
    if record.get("bleu"):
        parts.append(f"BLEU's brevity penalty {record['bleu']['brevity_penalty']:.3f}, length "
                     f"ratio {record['bleu']['length_ratio']:.3f}")
    references = record.get("references", {})
    if "longer_share" in references:
        unit = "tokens" if "max_tokens" in references else "words"
        parts.append(f"{_percent(references['longer_share'])} of the references have more than "
                     f"{references[f'max_{unit}']} {unit}")
    if record.get("intervals"):
        parts += few_pictures(record["pictures"])
    if record.get("cleaned"):
        odd = ", ".join(f"{count:,} with {name.replace('_', ' ')}"
                        for name, count in record["cleaned"].items())
        parts.append(f"odd texts among captions and references: {odd}")
    return "\n".join(parts)


def comparison_table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a metric: both values, difference, interval, p-value."""
    lines = [f"{'':<8}  {'A':>7}  {'B':>7}  {'B - A':>7}  {'95 % interval':>18}  {'p':>6}"]
    for name, row in metrics.items():
        low, high = row["interval"]
        lines.append(f"{name:<8}  {row['a']:7.3f}  {row['b']:7.3f}  {row['difference']:+7.3f}  "
                     f"{f'{low:+.3f} to {high:+.3f}':>18}  {row['p_value']:6.3f}")
    return "\n".join(lines)


def is_shown_as_zero(difference: float) -> bool:
    """Whether the table's three decimals show no difference."""
    return float(f"{difference:.3f}") == 0


def few_pictures(pictures: int) -> List[str]:
    """A line where there are too few pictures for intervals, else none."""
    if pictures >= FEW_PICTURES:
        return []
    return [f"intervals of fewer than {FEW_PICTURES} pictures are unreliable (too narrow): "
            "score more pictures before you draw conclusions"]


def verdict(metrics: Mapping[str, Mapping[str, Any]], pictures: int, level: float) -> str:
    """Which differences are more than chance among the pictures, and when that cannot be said."""
    if pictures < LEAST_PICTURES:
        return f"no verdict: it takes {LEAST_PICTURES} pictures at least"
    better = {who: [name for name, row in metrics.items() if row["better"] == who]
              for who in ("A", "B")}
    parts = [f"{who} is better by {', '.join(names)}" for who, names in better.items() if names]
    return f"{'; '.join(parts or ['no difference is significant'])} (p < {1 - level:.2g})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _cut(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[:length - 3] + "..."
