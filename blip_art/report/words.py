"""Names, units and numbers as people read them, shared by the plots and the page.

    metric_title("Bleu_4") == "BLEU-4"; duration(80.2) == "1 min 20 s"
"""

from __future__ import annotations

from typing import Optional

from blip_art.run_state import BEST_RULES

_TITLES = {"Bleu_1": "BLEU-1", "Bleu_2": "BLEU-2", "Bleu_3": "BLEU-3", "Bleu_4": "BLEU-4",
           "ROUGE_L": "ROUGE-L"}
NOTHING = "–"
DIGITS = 3


def metric_title(metric: str) -> str:
    """The name in papers of what a score file calls `metric`."""
    return _TITLES.get(metric, metric)


def metric_unit(metric: str) -> str:
    """Range of a metric; CIDEr is the one that is no share."""
    return "score, 0 to 10" if metric == "CIDEr" else "score, 0 to 1"


def rule_title(rule: str) -> str:
    """'cider+bleu_4' as 'CIDEr + BLEU-4'."""
    return " + ".join(map(metric_title, BEST_RULES.get(rule, (rule,))))


def number(value: Optional[float], digits: int = DIGITS) -> str:
    """A fixed number of decimals, or a dash."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def percent(share: Optional[float]) -> str:
    """0.314 as '31.4 %'."""
    return NOTHING if share is None else f"{100 * share:.1f} %"


def rate(value: Optional[float]) -> str:
    """A learning rate: 0.0001 as '1e-4'."""
    if value is None:
        return NOTHING
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}" if value else "0"


def duration(seconds: Optional[float]) -> str:
    """Hours and minutes, or minutes and seconds, or seconds."""
    if seconds is None:
        return NOTHING
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    if minutes:
        return f"{minutes} min {whole % 60:02d} s"
    return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
