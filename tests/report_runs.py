"""Small whole run folders for the tests of the report, and a strict reader of its page.

    run = make_run(tmp_path / "joined", levels=(0.2, 0.5)); Page(html_of(run)).text
"""

from __future__ import annotations

from html.parser import HTMLParser

from blip_art.files import RunDir, write_json, write_jsonl
from blip_art.report.examples import choose_galleries
from blip_art.report.page import render
from blip_art.report.tables import METRICS, read_runs

PICTURES = {"a1": "sun, tree.", "a2": "ship.", "a3": "fish & crown.", "a4": "flower, house."}
VOID_TAGS = {"meta", "img", "source", "br"}


def described(level):
    """What a score file says beside the scores: how sure they are, and what captions are like."""
    return {"intervals": {m: [level * (place + 1) / 10 - 0.01, level * (place + 1) / 10 + 0.01]
                          for place, m in enumerate(METRICS)},
            "captions": {"empty_share": 0.25, "most_frequent": "a ship & a <sun>",
                         "most_frequent_share": 0.5, "unique_ratio": 0.75, "mean_words": 3.5}}


def scores_of(level, epoch=0, split="val", **more):
    """A score file in which every metric grows with `level`."""
    return {"split": split, "epoch": epoch, "pictures": len(PICTURES),
            "metrics": {m: level * (place + 1) / 10 for place, m in enumerate(METRICS)},
            "per_image": {i: {"CIDEr": level + place, "SPICE": level / (place + 1)}
                          for place, i in enumerate(PICTURES)},
            "seconds": {}, "versions": {}, "failed": {}, **more}


def make_run(folder, levels=(0.2, 0.5, 0.4), references=PICTURES):
    """A finished run, one epoch a level, with captions, scores and a floor on val."""
    run = RunDir(folder)
    write_jsonl(run.train_log, [train_line(epoch) for epoch in range(len(levels))])
    write_json(run.references("val"), {
        "images": [{"id": i} for i in references],
        "annotations": [{"id": n, "image_id": i, "caption": text}
                        for n, (i, text) in enumerate(references.items())]})
    for epoch, level in enumerate(levels):
        predict(run, epoch)
        write_json(run.scores("val", epoch), scores_of(level, epoch))
    write_json(run.floor_scores("val"), scores_of(0.1, caption="sun."))
    write_json(run.state, {"state": "finished", "why": "", "epoch": len(levels) - 1,
                           "epochs": len(levels)})
    return run


def train_line(epoch):
    return {"epoch": epoch, "loss": 3.0 - epoch / 4, "lr": 1e-4, "images_per_s": 31.25,
            "seconds": 80.5, "gpu_memory_gb": 0.0, "steps": 120, "skipped_steps": 0}


def predict(run, epoch, split="val"):
    write_json(run.predictions(split, epoch), [
        {"image_id": i, "caption": f"a {text.split(',')[0]}"} for i, text in PICTURES.items()])


class Page(HTMLParser):
    """Text and tags of a page; fails on a tag that is not closed where it should be."""

    def __init__(self, html):
        super().__init__()
        self.open: list[str] = []
        self.text, self.tags, self.links = "", [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "srcset", "href")]
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def html_of(*folders):
    """The page without plots, which take longer than everything else together."""
    runs = read_runs(folders)
    galleries, missing = choose_galleries(runs)
    return render(runs, [], galleries, [], missing)
