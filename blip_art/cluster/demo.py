"""The demo: the whole pipeline on drawn pictures, stage by stage, skipping what is done.

    ./launch.py demo
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Callable, List, NamedTuple

from blip_art.cluster.jobs import Job
from blip_art.cluster.plan import Place, collect_job, module_job, score_job, train_job
from blip_art.cluster.snapshot import take_snapshot
from blip_art.config import differences, load_config, load_run_config
from blip_art.errors import UserError
from blip_art.files import RunDir, write_text
from blip_art.report.tables import Run, read_runs
from blip_art.report.words import number
from blip_art.run_state import all_scored, is_finished


class Stage(NamedTuple):
    """One command, and how to see that it need not be run."""

    job: Job
    done: Callable[[], bool]


class Demo:
    """The stages of the demo and the files between them; configs/demo.yaml says where they are."""

    def __init__(self, run: RunDir, repo: Path, checkout: Place, place: Place) -> None:
        self.run = run
        self.repo = repo
        self.checkout = checkout
        self.place = place
        self.config_file = repo / "configs" / "demo.yaml"
        self.config = load_config(self.config_file)
        self.archive = Path(self.config.data.images)
        self.annotations = Path(self.config.data.annotations)
        self.tokenizer = Path(self.config.model.tokenizer)
        self.report = run.path / "report"
        self.mark = run.path / "made_by_demo.txt"

    def stages(self) -> List[Stage]:
        """What is run, in order. The first three make data, as a user's own archive would be."""
        data = self.config.data
        train_pairs = self.annotations / data.train

        def module(name: str, module: str, *args: str) -> Job:
            return module_job(self.checkout, name, self.run.slurm, module, *args)

        return [
            Stage(module("draw", "blip_art.data", "demo", "-o", str(self.archive),
                         "--pictures", "3000"),
                  lambda: (self.archive / "data.json").exists()),
            Stage(module("prepare", "blip_art.data", "prepare", str(self.archive),
                         "-o", str(self.annotations)),
                  lambda: all((self.annotations / name).exists()
                              for name in (data.train, data.val, data.val_gt))),
            Stage(module("vocabulary", "blip_art.model.tokenizer", str(train_pairs),
                         "-o", str(self.tokenizer)),
                  lambda: (self.tokenizer / "vocab.txt").exists()),
            Stage(train_job(self.place, str(self.config_file), self.run), self.trained),
            Stage(score_job(self.place, self.run), self.scored),
            Stage(collect_job(self.checkout, [self.run], self.report), self.collected),
        ]

    def outdated(self) -> bool:
        """A run is there, but of other settings: after an update, say."""
        return self.mark.exists() and self.run.config.exists() and bool(
            differences(load_run_config(self.run.config), self.config))

    def trained(self) -> bool:
        """Every epoch is done."""
        return is_finished(self.run)

    def scored(self) -> bool:
        """Every captioned epoch has scores, and there is a floor."""
        return all_scored(self.run) and all(
            self.run.floor_scores(row.split).exists() for row in self.run.predicted())

    def collected(self) -> bool:
        """The page is newer than all it is made from."""
        return all(_newer(self.report / "index.html", scores.path) for scores in self.run.scored())

    def jobs(self) -> List[Job]:
        """All stages' jobs, for --dry-run."""
        return [stage.job for stage in self.stages()]

    def play(self, submit: Callable[[Job], int]) -> int:
        """Run what is not done, print seconds a stage, the scores and the page's path."""
        if self.outdated():
            print(f"{self.config_file.name} has changed: starting again", flush=True)
            self.delete()
        write_text(self.mark, "'launch.py demo' made this run and may delete it\n")
        ran = False
        for job, done in self.stages():
            # What follows a stage that ran is run too: its input has changed.
            if not ran and done():
                print(f"{job.name:<10} done before", flush=True)
                continue
            ran = True
            print(f"{job.name:<10} …", flush=True)
            if job.env["PYTHONPATH"] == self.place.code:
                take_snapshot(self.repo, self.run.code)
            start = time.monotonic()
            code = submit(job)
            if code:
                return code
            print(f"{job.name:<10} {time.monotonic() - start:.1f} s", flush=True)
        print("\n" + score_table(read_runs([self.run])[0]))
        print(self.report / "index.html")
        return 0

    def delete(self) -> None:
        """Remove run and data; refuses folders that this demo did not make."""
        folders = (self.run.path, self.archive, self.annotations, self.tokenizer)
        signs = {self.run.path: self.mark, self.archive: self.archive / "demo.json"}
        for folder in folders:
            ours = self.run.path.parent in folder.parents and signs.get(folder, folder).exists()
            if folder.exists() and not ours:
                raise UserError(f"--fresh would delete {folder}, which is not a demo's; "
                                "move it away or choose another --run")
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def score_table(run: Run) -> str:
    """Loss, CIDEr and SPICE by epoch, above the floor (one caption for every picture)."""
    rows = [("epoch", "loss", "CIDEr", "SPICE")]
    for epoch in run.epochs:
        metrics = epoch.scores["val"].metrics if "val" in epoch.scores else {}
        rows.append((str(epoch.epoch), number(epoch.train.get("loss")),
                     number(metrics.get("CIDEr")), number(metrics.get("SPICE"))))
    if "val" in run.floors:
        floor = run.floors["val"]
        rows.append(("floor", "", number(floor.metrics.get("CIDEr")),
                     number(floor.metrics.get("SPICE"))))
    text = "".join("  ".join(f"{cell:>7}" for cell in row).rstrip() + "\n" for row in rows)
    caption = run.floors["val"].caption if "val" in run.floors else ""
    return text + (f"floor: '{caption}' for every picture\n" if caption else "")


def _newer(path: Path, source: Path) -> bool:
    return path.exists() and path.stat().st_mtime_ns >= source.stat().st_mtime_ns
