"""What runs have taken, as a table: time, memory, waiting for data, CPU-hours of scores.

    html = render(runs)
"""

from __future__ import annotations

from html import escape
from typing import Any, Dict, Optional, Sequence

from blip_art.report.runs import Run
from blip_art.report.words import duration, number, percent


def cost_row(run: Run) -> Dict[str, Optional[float]]:
    """By column of runs.csv; what runs of an older version did not write is None."""
    lines = [epoch.train for epoch in run.epochs]
    waited = [(line["data_wait_share"] * line["seconds"], line["seconds"]) for line in lines
              if {"data_wait_share", "seconds"} <= line.keys()]
    seconds = sum(whole for _, whole in waited)
    return {"data_wait_share": sum(part for part, _ in waited) / seconds if seconds else None,
            **{key: max((line[key] for line in lines if key in line), default=None)
               for key in ("gpu_memory_gb", "host_memory_gb")},
            "scoring_cpu_hours": run.scoring_cpu_hours}


def render(runs: Sequence[Run]) -> str:
    """The table; '' where no run knows more than its time."""
    rows = [(run, costs) for run, costs in zip(runs, map(cost_row, runs))
            if any(costs[key] is not None for key in costs if key != "gpu_memory_gb")]
    if not rows:
        return ""
    head = "".join(f"<th>{title}</th>" for title in (
        "training", "waiting for data", "GPU memory, GB", "memory, GB", "scoring, CPU-hours"))
    body = "\n".join(f"<tr><th>{escape(run.name)}</th>{_cells(run, costs)}</tr>"
                     for run, costs in rows)
    return ('<h2>What it took</h2>\n<p class="soft">Memory: the peak of one GPU, and of all '
            "processes of the training together. Scoring: the CPUs that its jobs held, times how "
            'long.</p>\n<div class="scroll"><table>\n'
            f'<thead><tr><th class="name">run</th>{head}</tr></thead>\n'
            f"<tbody>\n{body}\n</tbody>\n</table></div>")


def _cells(run: Run, costs: Dict[str, Any]) -> str:
    cells = (duration(run.seconds), percent(costs["data_wait_share"]),
             number(costs["gpu_memory_gb"] or None, 1), number(costs["host_memory_gb"], 1),
             number(costs["scoring_cpu_hours"], 2))
    return "".join(f"<td>{cell}</td>" for cell in cells)
