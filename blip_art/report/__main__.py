"""Run folders to one page with plots, and the tables behind it.

    python -m blip_art.report runs/demo -o report
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import sys
from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Tuple

from blip_art.errors import exit_cleanly
from blip_art.files import RunDir, read_as_shown, write_text, written_aside
from blip_art.report import choice
from blip_art.report.examples import choose_galleries
from blip_art.report.page import Figure, RunFiles, render
from blip_art.report.tables import Run, read_runs, write_tables
from blip_art.run_state import is_run_folder

NO_PLOTS = "plots: matplotlib is not installed here; run it inside the image"

EPILOG = """\
examples:
  python -m blip_art.report runs/demo                       one run
  python -m blip_art.report runs/joined runs/split -o out   runs side by side
  python -m blip_art.report runs/sweep/* -o out             a whole sweep

writes into DIR:
  index.html    the page; pictures and plots are inside, so it can be mailed
  epochs.csv    one row a run and epoch     runs.csv    one row a run, at its best epoch
  report.json   both, and what is missing   plots/*.png

A run may be in any state: what is not there yet is named on the page. Scores of runs with
different references do not compare, and the page says so. Of more than 50 runs the page shows the
best, and bands of all; the CSV files have every run. Run it where the training ran, so
that the pictures beside the captions are found.
"""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Read the arguments, build the report, print where the page is."""
    parser = argparse.ArgumentParser(
        prog="python -m blip_art.report", epilog=EPILOG,
        description="Tables, plots and one HTML page from run folders.",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders, in the order shown")
    parser.add_argument("-o", "--out", default="report", metavar="DIR",
                        help="where to write (default: report)")
    parser.add_argument("--partial", action="store_true",
                        help="leave out runs that have not begun, and name them")
    parser.add_argument("--seed", type=int, default=0,
                        help="chooses the example pictures (default: 0)")
    args = parser.parse_args(argv)
    folders = _begun(args.runs) if args.partial else args.runs
    with no_garbage_collection():
        runs = read_runs(folders)
    print(build(runs, args.out, args.seed))
    return 0


def _begun(folders: Sequence[str]) -> List[str]:
    """Those that a training or captioning has written into; a line on stderr names the others."""
    begun = [folder for folder in folders if is_run_folder(RunDir(folder))]
    absent = [folder for folder in folders if folder not in begun]
    if absent and begun:
        more = ", …" if absent[3:] else ""
        print(f"left out {len(absent)} of {len(folders)} runs, which have not begun: "
              f"{', '.join(absent[:3])}{more}", file=sys.stderr)
    return begun or list(folders)  # of which the first is then refused by name


def build(runs: Sequence[Run], out: str, seed: int = 0) -> Path:
    """Write the whole report into `out`; return the path of the page."""
    folder = Path(out)
    with no_garbage_collection():
        write_tables(runs, folder)
    galleries, no_pictures = choose_galleries(runs, seed)
    figures, no_plots = draw_figures(runs, folder)
    files = [RunFiles(run.name, _text(run.folder.config), _text(run.folder.manifest))
             for run in choice.detailed(runs)]
    page = folder / "index.html"
    html = render(runs, figures, galleries, files, no_plots + no_pictures)
    # JSON can carry half a surrogate pair, which no encoding can; it is shown as '?'.
    write_text(page, html.encode("utf-8", "replace").decode("utf-8"))
    return page


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """A thousand runs are a million objects that all stay: to look for garbage among them again
    and again costs a fifth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def draw_figures(runs: Sequence[Run], folder: Path) -> Tuple[List[Figure], List[str]]:
    """Write plots/*.png; without matplotlib there are none, and a line says why."""
    try:
        from blip_art.report import plots
    except ImportError:
        return [], [NO_PLOTS]
    drawn = plots.draw(runs)
    for plot in drawn:
        with written_aside(folder / "plots" / f"{plot.name}.png") as aside:
            aside.write_bytes(plot.light)
    return [Figure(plot.title, plot.light, plot.dark) for plot in drawn], []


def _text(path: Path) -> str:
    return read_as_shown(path) if path.exists() else ""


if __name__ == "__main__":
    exit_cleanly(main)
