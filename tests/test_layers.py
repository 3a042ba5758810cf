"""Which module may import what: the login side runs on Python 3.9 with submitit and pyyaml only.

    python -m pytest tests/test_layers.py
"""

from __future__ import annotations

import ast
import fnmatch
import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

# A new module must be put into one layer; the first two are what style.md's arrows say.
LAYERS = {
    "login": ("blip_art", "blip_art.cluster", "blip_art.cluster.*", "blip_art.config",
              "blip_art.data", "blip_art.data.__main__", "blip_art.data.archive",
              "blip_art.data.captions", "blip_art.data.checked", "blip_art.data.coverage",
              "blip_art.data.datasets", "blip_art.data.iconclass",
              "blip_art.data.make_split_hashes", "blip_art.data.motifs", "blip_art.data.prepare",
              "blip_art.data.progress", "blip_art.data.splits", "blip_art.data.workers",
              "blip_art.describe", "blip_art.digest", "blip_art.errors", "blip_art.failure",
              "blip_art.files", "blip_art.manifest", "blip_art.merge", "blip_art.outputs",
              "blip_art.own_folder", "blip_art.predict_plan", "blip_art.rank_plan",
              "blip_art.report",
              "blip_art.report.__main__", "blip_art.report.choice", "blip_art.report.costs",
              "blip_art.report.examples",
              "blip_art.report.page", "blip_art.report.runs", "blip_art.report.style",
              "blip_art.report.tables", "blip_art.report.words", "blip_art.resume_checks",
              "blip_art.retention",
              "blip_art.run_state", "blip_art.schema", "blip_art.score",
              "blip_art.score.__main__", "blip_art.score.answers", "blip_art.score.claims",
              "blip_art.score.coco", "blip_art.score.corenlp", "blip_art.score.cpu_time",
              "blip_art.score.java",
              "blip_art.score.lock", "blip_art.score.parse_cache", "blip_art.score.parses",
              "blip_art.score.prepare", "blip_art.score.references", "blip_art.score.shown",
              "blip_art.score.summary", "blip_art.score.worker", "blip_art.score.workers",
              "blip_art.strict_yaml", "blip_art.work", "launch"),
    "no torch": ("blip_art.data.bands", "blip_art.data.check", "blip_art.data.demo",
                 "blip_art.data.large", "blip_art.data.pictures", "blip_art.data.rgb",
                 "blip_art.data.shrink", "blip_art.model", "blip_art.model.vocabulary",
                 "blip_art.report.plots", "blip_art.score.baselines",
                 "blip_art.score.bootstrap", "blip_art.score.chart", "blip_art.score.compare",
                 "blip_art.score.engine", "blip_art.score.follow", "blip_art.score.java_meteor",
                 "blip_art.score.java_parser", "blip_art.score.java_side",
                 "blip_art.score.java_spice", "blip_art.score.java_trees",
                 "blip_art.score.limits", "blip_art.score.meteor_formula",
                 "blip_art.score.metrics", "blip_art.score.paraphrases", "blip_art.score.record",
                 "blip_art.score.run", "blip_art.score.scoring", "blip_art.score.word_groups"),
    "torch": ("blip_art.data.loading", "blip_art.data.transforms", "blip_art.distributed",
              "blip_art.memory", "blip_art.model.[!v]*", "blip_art.peers",
              "blip_art.predict", "blip_art.readable", "blip_art.torchrun", "blip_art.train",
              "blip_art.train.*"),
}
# What a module of the layer may find when it is imported, beside the standard library.
ALLOWED = {"login": "yaml _yaml submitit cloudpickle typing_extensions".split()}
TORCH = ("torch", "torchvision", "timm", "transformers", "tokenizers", "safetensors")

IMPORT_ALL = """
import importlib, sys
names, blocked = sys.argv[1].split(), sys.argv[2].split()
sys.modules.update(dict.fromkeys(blocked))
for name in names:
    try:
        importlib.import_module(name)
    except ImportError as error:
        sys.exit(f"{name}: {error}")
"""


def modules(repo: Path) -> list[str]:
    files = [repo / "launch.py", *(repo / "blip_art").rglob("*.py")]
    names = (".".join(path.relative_to(repo).with_suffix("").parts) for path in files)
    return sorted(name.removesuffix(".__init__") for name in names)


def in_layer(repo: Path, layer: str) -> list[str]:
    return [name for name in modules(repo)
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in LAYERS[layer])]


def source(repo: Path, module: str) -> Path:
    path = repo.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def import_all(repo: Path, names: list[str], blocked: list[str], python: str = sys.executable,
               path: str = "") -> None:
    done = subprocess.run([python, "-c", IMPORT_ALL, " ".join(names), " ".join(blocked)],
                          cwd=repo, text=True, capture_output=True, check=False, timeout=60,
                          env={"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 0, done.stderr


def test_every_module_has_one_layer(repo: Path) -> None:
    found = [name for layer in LAYERS for name in in_layer(repo, layer)]
    assert sorted(found) == modules(repo)


def test_login_side_needs_only_submitit_and_yaml(repo: Path) -> None:
    from importlib import metadata

    installed = set(metadata.packages_distributions()) - {"blip_art"}
    assert {"torch", "numpy", "PIL", "matplotlib", "tqdm", "iconclass"} <= installed
    import_all(repo, in_layer(repo, "login"), sorted(installed - set(ALLOWED["login"])))


def test_scores_and_plots_need_no_torch(repo: Path) -> None:
    import_all(repo, in_layer(repo, "no torch"), list(TORCH))


@pytest.mark.parametrize("package", ["torch", "numpy", "yaml", "submitit"])
def test_help_imports_nothing_heavy(repo: Path, package: str) -> None:
    done = subprocess.run([sys.executable, "-X", "importtime", "launch.py", "train", "--help"],
                          cwd=repo, text=True, capture_output=True, check=True)
    assert package not in {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "key=value" in done.stdout


def test_login_side_is_python_39_syntax(repo: Path) -> None:
    for name in in_layer(repo, "login"):
        ast.parse(source(repo, name).read_text(encoding="utf-8"), name, feature_version=(3, 9))


def python39() -> list[str]:
    """A Python 3.9 of this machine, if there is one that starts."""
    pyenv = Path.home().glob(".pyenv/versions/3.9*/bin/python")
    found = [shutil.which("python3.9"), *map(str, pyenv)]
    return [path for path in found if path and subprocess.run(
        [path, "-c", ""], capture_output=True, check=False).returncode == 0][:1]


@pytest.mark.parametrize("python", [sys.executable, *python39()])
def test_login_side_runs_with_pure_python_packages(repo: Path, tmp_path: Path, python: str) -> None:
    """Under each interpreter at hand, the packages of a login node and no others."""
    for package in ("yaml", "submitit", "cloudpickle"):
        spec = util.find_spec(package)
        assert spec
        assert spec.submodule_search_locations
        (tmp_path / package).symlink_to(spec.submodule_search_locations[0])
    typing_extensions = util.find_spec("typing_extensions")
    assert typing_extensions
    assert typing_extensions.origin
    (tmp_path / "typing_extensions.py").symlink_to(typing_extensions.origin)
    import_all(repo, [*in_layer(repo, "login"), "submitit"], [], python, str(tmp_path))
