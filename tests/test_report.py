"""The report's page, plots and command.

    python -m pytest tests/test_report.py
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from blip_art.config import config_from_dict, dump_config
from blip_art.errors import UserError
from blip_art.files import RunDir, write_json, write_text
from blip_art.report import plots
from blip_art.report.__main__ import build, main
from blip_art.report.choice import detailed
from blip_art.report.examples import choose_galleries, thumbnail
from blip_art.report.page import Figure, RunFiles, render
from blip_art.report.plots import LIGHT, Curve, _png, _stretches
from blip_art.report.tables import METRICS, Best, read_runs, write_tables
from tests.report_runs import PICTURES, Page, described, html_of, make_run, scores_of

GOLDEN = Path(__file__).parent / "golden" / "report.html"


# Page --------------------------------------------------------------------------------------


def test_page_equals_the_golden_file(tmp_path):
    runs = [make_run(tmp_path / "joined"),
            make_run(tmp_path / "split", (0.3,), dict.fromkeys(PICTURES, "sun."))]
    write_json(runs[0].scores("val", 1), scores_of(0.5, 1, **described(0.5)))
    write_json(runs[0].oracle_scores("val"), scores_of(0.9, max_tokens=16, **described(0.9)))
    write_json(runs[0].scores("val", 2), scores_of(
        0.4, 2, failed={"spice": "<killed>"}, metrics=dict.fromkeys(METRICS[:-1], 0.25)))
    read = read_runs(runs)
    galleries, missing = choose_galleries(read)
    first = galleries[0].examples[0]._replace(thumbnail=b"jpeg")
    galleries[0] = galleries[0]._replace(examples=(first, *galleries[0].examples[1:]))
    made = render(read, [Figure("Training loss", b"light", b"dark")], galleries,
                  [RunFiles("joined", "name: joined\n", '{"commit": "c9da732"}')], missing)
    actual = tmp_path / "report.html"
    actual.write_text(made, encoding="utf-8")
    Page(made)
    assert GOLDEN.is_file(), f"no golden file; look at {actual}, then copy it to {GOLDEN}"
    assert made == GOLDEN.read_text(encoding="utf-8"), f"if {actual} is right, copy it to {GOLDEN}"


def test_page_shows_headline_values_with_the_best_in_bold(tmp_path):
    runs = [make_run(tmp_path / "weak", (0.3,)), make_run(tmp_path / "strong", (0.6,))]
    html = html_of(*runs)
    assert "<td><b>0.480</b></td>" in html  # SPICE of strong
    assert "<td>0.240</td>" in html
    assert "<td>0.080</td>" in html  # the floor
    assert "don't compare" not in html


def test_page_shows_how_sure_scores_are_and_what_captions_are_like(tmp_path):
    run = make_run(tmp_path / "joined", (0.5,))
    assert "oracle" not in html_of(run)
    assert "Captions at the best epoch" not in html_of(run)
    write_json(run.scores("val", 0), scores_of(0.5, **described(0.5)))
    write_json(run.oracle_scores("val"), scores_of(0.9, max_tokens=16))
    html = html_of(run)
    assert "<td><b>0.400</b><small>±0.010</small></td>" in html
    assert "<th>oracle<small>references cut to 16 tokens</small></th>" in html
    assert "<td>0.720</td>" in html  # not bold, though it is the highest
    assert ("<td>25.0 %</td><td>75.0 %</td><td>3.5</td><td>50.0 %</td>"
            '<td class="text">“a ship &amp; a &lt;sun&gt;”</td>') in html


def test_page_says_that_runs_with_other_references_do_not_compare(tmp_path):
    joined = make_run(tmp_path / "joined", (0.3,))
    split = make_run(tmp_path / "split", (0.6,), dict.fromkeys(PICTURES, "other."))
    html = html_of(joined, split)
    assert "Joined and split scores compare only on the same set" in html
    # Each set has its own best: both are bold.
    assert "<td><b>0.240</b></td>" in html
    assert "<td><b>0.480</b></td>" in html


def test_page_fetches_nothing_and_runs_nothing(tmp_path):
    runs = read_runs([make_run(tmp_path / "joined", (0.3,))])
    page = Page(build(runs, tmp_path / "out").read_text())
    assert len(page.links) == 2 * (1 + len(METRICS))  # every plot for light and for dark
    assert all(link.startswith("data:image/") for link in page.links)
    assert not {"script", "link", "iframe"} & set(page.tags)


@settings(max_examples=30, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1))
def test_a_caption_is_shown_as_it_is_and_never_as_html(tmp_path_factory, caption):
    folder = tmp_path_factory.mktemp("run")
    run = make_run(folder / "run", (0.3,))
    write_json(run.predictions("val", 0), [
        {"image_id": i, "caption": f"{caption}<script>alert(1)</script>"} for i in PICTURES])
    page = Page(html_of(run))
    assert f"{caption}<script>alert(1)</script>" in page.text
    assert "script" not in page.tags


def test_half_a_surrogate_does_not_stop_the_page(tmp_path):
    run = RunDir(tmp_path / "run")
    write_json(run.state, {"state": "running"})
    write_text(run.predictions("val", 0), '[{"image_id": "a1", "caption": "sun \\ud800"}]')
    assert "sun ?" in build(read_runs([run]), tmp_path / "out").read_text()


def test_pictures_are_found_by_the_configuration(tmp_path):
    run = make_run(tmp_path / "joined")
    data = {"images": str(tmp_path), "annotations": str(tmp_path)}
    write_text(run.config, dump_config(config_from_dict({"data": data})))
    write_json(tmp_path / "iconclassVal.json", [
        {"image": f"data/{i}.jpg", "caption": text, "image_id": i}
        for i, text in PICTURES.items()])
    Image.new("CMYK", (900, 600)).save(tmp_path / "a1.jpg")  # beside, not in data/
    (tmp_path / "a2.jpg").write_text("no picture")
    galleries, missing = choose_galleries(read_runs([run]))
    shown = {e.image_id: e.thumbnail for e in galleries[0].examples}
    assert shown["a1"] == thumbnail(tmp_path, "a1.jpg")
    assert shown["a2"] is None
    for line, what in zip(missing, ("a2.jpg (not a picture)", "a3.jpg (missing)",
                                    "a4.jpg (missing)"), strict=True):
        assert what in line


def test_a_thumbnail_is_small_and_stands_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    Image.new("RGB", (400, 200)).save(tmp_path / "turned.jpg", exif=exif)
    assert Image.open(io.BytesIO(thumbnail(tmp_path, "turned.jpg"))).size == (160, 320)


def test_best_and_worst_captions_are_ranked_by_spice(tmp_path):
    galleries, _ = choose_galleries(read_runs([make_run(tmp_path / "joined")]))
    ids = {g.title: [e.image_id for e in g.examples] for g in galleries[1:]}
    assert ids == {"Best captions of joined": ["a1", "a2"],
                   "Worst captions of joined": ["a4", "a3"]}


def test_many_runs_are_folded_and_the_best_is_named(tmp_path):
    runs = [make_run(tmp_path / f"lr{place}", (0.1 * place,)) for place in range(1, 8)]
    page = Page(html_of(*runs))
    assert "7 runs; the highest of those that compare:\nlr7: epoch 0 is best" in page.text
    assert page.tags.count("details") == 7


@pytest.fixture
def sixty(tmp_path):
    """Runs of a sweep, the last one best, ten of them failed."""
    one, = read_runs([make_run(tmp_path / "one")])
    return [replace(one, name=f"lr{n}", best=Best(1, "spice", n / 100),
                    state="failed" if n < 10 else "finished", missing=("a hole",) * (n % 2) * 2)
            for n in range(60)]


def test_of_very_many_runs_the_page_shows_the_best_and_says_what_it_leaves_out(sixty, tmp_path):
    html = render(sixty, [Figure("Training loss", b"light", b"")], choose_galleries(sixty)[0],
                  [RunFiles(run.name, "name: x", "") for run in detailed(sixty)])
    page = Page(html)
    table = page.text[page.text.index("Results on val"):page.text.index("By epoch")]
    assert [f"lr{n}" in table for n in (59, 40, 39, 0)] == [True, True, False, False]
    assert "median of 60 runs" in table
    assert "60 runs (50 finished, 10 failed); the highest of those that compare:" in page.text
    assert "Of 60 runs this page shows the best: up to 20 in each table" in page.text
    assert "lr7 failed" in page.text
    assert "2 more failed: runs.csv names them all" in page.text
    assert "and 20 more, which report.json names" in page.text
    assert html.count("<summary>lr") == 3
    assert 'class="invert"' in html
    assert len(html) < 100_000
    write_tables(sixty, tmp_path / "out")
    assert (tmp_path / "out/runs.csv").read_text().count("\nlr") == 60
    assert (tmp_path / "out/epochs.csv").read_text().count("\nlr") == 60 * 3


def test_sixty_sets_of_references_still_make_a_small_page(sixty):
    runs = [replace(run, references={"val": {"sha256": run.name}}) for run in sixty]
    html = render(runs, [], choose_galleries(runs)[0], [])
    assert "and 55 more sets" in html
    assert len(html) < 100_000


# Plots -------------------------------------------------------------------------------------


def test_plots_of_very_many_runs_are_the_main_ones_drawn_once(sixty):
    drawn = plots.draw(sixty)
    assert [plot.name for plot in drawn] == ["loss", "val_Bleu_4", "val_CIDEr", "val_SPICE"]
    assert {plot.dark for plot in drawn} == {b""}


def test_bands_are_of_the_runs_that_have_the_epoch():
    curves = [Curve(str(n), ((0, float(n)), (1, 9.0))[:2 - n % 2], None, None) for n in range(5)]
    epochs, bands = plots._quartiles(curves)
    assert (epochs, bands.T.tolist()) == ([0, 1], [[0, 1, 2, 3, 4], [9] * 5])


def test_a_plot_is_written_for_the_loss_and_every_metric(tmp_path):
    build(read_runs([make_run(tmp_path / "joined", (0.3,))]), tmp_path / "out")
    names = {path.stem for path in (tmp_path / "out/plots").iterdir()}
    assert names == {"loss", *(f"val_{metric}" for metric in METRICS)}
    with Image.open(tmp_path / "out/plots/val_SPICE.png") as plot:
        assert plot.size[0] > 700


def test_same_runs_give_the_same_plots():
    curves = [Curve("$a", ((0, 1.0),), 0.5, (0, 1.0), ((0, 0.9, 1.2),)),
              Curve("_b", ((0, 2.0), (2, 1.0)), None, None)]
    first, second = (_png("Loss", "nats", curves, LIGHT) for _ in range(2))
    assert first == second


def test_a_line_stops_at_a_hole():
    assert _stretches([(0, 1.0), (1, 2.0), (3, 3.0)]) == [[(0, 1.0), (1, 2.0)], [(3, 3.0)]]


# Command -----------------------------------------------------------------------------------


def test_command_without_matplotlib_and_pillow_still_makes_the_page(repo, tmp_path):
    run = make_run(tmp_path / "joined")
    block = ("import runpy, sys; sys.modules.update(matplotlib=None, PIL=None, torch=None); "
             "runpy.run_module('blip_art.report', run_name='__main__')")
    done = subprocess.run(
        [sys.executable, "-c", block, str(run.path), "-o", str(tmp_path / "out")], cwd=repo,
        capture_output=True, text=True, check=True)
    page = Path(done.stdout.splitlines()[-1])
    assert page == tmp_path / "out/index.html"
    text = Page(page.read_text()).text
    assert "matplotlib is not installed here; run it inside the image" in text
    assert "Pillow and NumPy are not installed" in text
    assert not (tmp_path / "out/plots").exists()


@pytest.mark.parametrize("state", ["running", "failed", "finished"])
def test_a_run_with_nothing_but_a_state_has_a_page(tmp_path, capsys, state):
    run = RunDir(tmp_path / "early")
    write_json(run.state, {"state": state, "why": "queue <1>", "epochs": 10})
    assert main([str(run.path), "-o", str(tmp_path / "out")]) == 0
    page = Page(Path(capsys.readouterr().out.strip()).read_text())
    assert f"nothing to choose a best epoch from yet (0 trained, {state}: queue <1>)" in page.text


@pytest.mark.parametrize(("damage", "message"), [
    (lambda run: run.scores("val", 0).write_text("{"), "val_00.json, line 1: not valid JSON"),
    (lambda run: run.scores("val", 0).write_text("[]"), "must hold a JSON object, not a list"),
    (lambda run: run.train_log.write_text('{"loss": 1}'), "a line without an epoch number"),
    (lambda run: run.train_log.write_text('{"epoch": 1000000000}'), "epoch number below 100,000"),
    (lambda run: run.train_log.write_text('{"epoch": -1}'), "a line without an epoch number"),
    (lambda run: run.train_log.write_text("loss"), "not valid JSON"),
    (lambda run: run.references("val").write_text('{"annotations": [1]}'), "COCO ground truth"),
    (lambda run: run.predictions("val", 0).write_text("[1]"), "must be a list of"),
    (lambda run: run.scores("val", 0).write_text(json.dumps(scores_of(1, per_image={"a1": 1}))),
     "'per_image' of")])
def test_a_broken_file_is_named_in_one_line(tmp_path, damage, message):
    run = make_run(tmp_path / "joined", (0.3,))
    damage(run)
    with pytest.raises(UserError, match=message) as raised:
        main([str(run.path), "-o", str(tmp_path / "out")])
    assert "\n" not in str(raised.value)


def test_folders_that_are_no_runs_are_refused(tmp_path):
    with pytest.raises(UserError, match="no run folder given"):
        main([])
    with pytest.raises(UserError, match="no run folder at"):
        main([str(tmp_path / "absent")])
    with pytest.raises(UserError, match="is not a run folder: it has none of config.yaml"):
        main([str(tmp_path)])


def test_a_sweeps_report_leaves_out_what_has_not_begun(tmp_path, capsys):
    run, queued = make_run(tmp_path / "a"), tmp_path / "b"
    (queued / "slurm").mkdir(parents=True)
    words = [str(run.path), str(queued), str(tmp_path / "c"), "-o", str(tmp_path / "out")]
    with pytest.raises(UserError, match="is not a run folder"):
        main(words)
    assert main([*words, "--partial"]) == 0
    assert "left out 2 of 3 runs, which have not begun: " in capsys.readouterr().err
    assert (tmp_path / "out" / "index.html").exists()
    with pytest.raises(UserError, match="is not a run folder"):
        main([str(queued), "-o", str(tmp_path / "out"), "--partial"])


def test_an_output_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        main([str(make_run(tmp_path / "run").path), "-o", str(tmp_path / "out")])
