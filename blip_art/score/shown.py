"""Scores as text for people: tables, and the sentence that keeps them honest.

    print(table({"val_03": {"CIDEr": 0.31}})); print(sentence(read_json("scores/val_03.json")))
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping

Rows = Mapping[str, Mapping[str, float]]


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
        parts.append(f"{_percent(references['longer_share'])} of the references have more than "
                     f"{references['max_words']} words")
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


def verdict(metrics: Mapping[str, Mapping[str, Any]], level: float) -> str:
    """Which differences are larger than what chance among the pictures makes."""
    sure: Dict[str, List[str]] = {"A": [], "B": []}
    for name, row in metrics.items():
        low, high = row["interval"]
        if low > 0 or high < 0:
            sure["B" if low > 0 else "A"].append(name)
    told = [f"{who} is better by {', '.join(names)}" for who, names in sure.items() if names]
    told = told or ["no difference is larger than chance makes"]
    return f"{'; '.join(told)} ({100 * level:g} % intervals)"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _cut(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[:length - 3] + "..."
