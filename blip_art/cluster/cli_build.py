"""The commands that make what jobs run in: image, overlay, packed data.

    ./launch.py image build      ./launch.py overlay build|verify|freeze      ./launch.py data pack
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Callable

from blip_art.errors import UserError
from blip_art.outputs import refuse_input

if TYPE_CHECKING:  # --help must not wait for imports
    from blip_art.cluster.site import Site

PROFILES = Path(__file__).resolve().parents[2] / "configs" / "sites"


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Put the commands into launch.py's parser."""
    image = _group(commands, "image", "the image that jobs run in")
    build = _command(image, "build", run_image_build, "build the image as an ordinary user; "
                     "minutes, once")
    _site(build)
    _output(build, "FILE.sif", "the site's image")
    build.add_argument("--base", metavar="NAME_OR_PATH", default="",
                       help="docker image, or a folder or image of this machine, to build on")
    build.add_argument("--squashfs", metavar="OPTIONS", default="",
                       help="Apptainer's options for mksquashfs (default: zstd, fast to read; "
                            "'-comp gzip' for SingularityCE, and for a kernel before 4.14 that "
                            "mounts images itself)")
    build.add_argument("--dry-run", action="store_true", help="print the command, run nothing")

    overlay = _group(commands, "overlay", "the scorers, on top of the image")
    build = _command(overlay, "build", run_overlay_build, "install the scorers, Java and CoreNLP "
                     "into a new overlay and compute known scores in it")
    _site(build)
    _output(build, "FILE.img", "the site's overlay")
    build.add_argument("--dry-run", action="store_true", help="print the command, run nothing")
    verify = _command(overlay, "verify", run_overlay_verify, "compute known scores inside image "
                      "and overlay, as jobs do")
    _site(verify)
    verify.add_argument("overlay", nargs="?", metavar="OVERLAY", default="",
                        help="default: the site's overlay")
    freeze = _command(overlay, "freeze", run_overlay_freeze, "make a squashfs of an overlay: "
                      "smaller, and nobody can write to it")
    _site(freeze)
    freeze.add_argument("overlay", nargs="?", metavar="OVERLAY", default="",
                        help="default: the site's overlay")
    _output(freeze, "FILE.sqf", "beside the overlay")

    data = _group(commands, "data", "data sets")
    packing = _command(data, "pack", run_data_pack, "pack a folder as one squashfs file, one "
                       "inode instead of one a picture; says how jobs see it")
    packing.add_argument("folder", metavar="FOLDER", help="folder of pictures")
    _output(packing, "FILE.sqf", "FOLDER.sqf")
    packing.add_argument("--max-side", type=int, metavar="N",
                         help="instead, write a folder (default: FOLDER_N) with copies of the "
                              "pictures, those with a longer side than N pixels made smaller")
    _site(packing)


def run_image_build(args: argparse.Namespace) -> int:
    """Build, or show how."""
    from blip_art.cluster.image import build_image, image_plan

    site = profile_or_default(args.site)
    plan = image_plan(site, Path(args.output or site.image), args.base, args.squashfs)
    if args.dry_run:
        print(plan.shown())
        return 0
    build_image(plan, args.force)
    return 0


def run_overlay_build(args: argparse.Namespace) -> int:
    """Build and verify, or show how."""
    from blip_art.cluster.overlay import build_overlay, overlay_plan, verify

    site = profile_or_default(args.site)
    plan = overlay_plan(site, _overlay(args.output, site))
    if args.dry_run:
        print(plan.shown())
        return 0
    build_overlay(site, plan, args.force)
    return verify(site, str(plan.target))


def run_overlay_verify(args: argparse.Namespace) -> int:
    """Score a golden pair inside."""
    from blip_art.cluster.overlay import verify

    site = profile_or_default(args.site)
    return verify(site, str(_overlay(args.overlay, site)))


def run_overlay_freeze(args: argparse.Namespace) -> int:
    """Make the .sqf and compute known scores with it."""
    from blip_art.cluster.overlay import freeze, verify

    site = profile_or_default(args.site)
    overlay = _overlay(args.overlay, site)
    target = Path(args.output or overlay.with_suffix(".sqf")).resolve()
    refuse_input(target, [overlay], "-o")
    freeze(site, str(overlay), target, args.force)
    code = verify(site, str(target))
    if code == 0:
        print(f"to use it, write 'overlay: {target}' into the site profile")
    return code


def run_data_pack(args: argparse.Namespace) -> int:
    """Pack, then say how jobs see it; or copy with smaller pictures."""
    from blip_art.cluster.pack import how_to_mount, pack, shrink

    folder = Path(args.folder)
    if args.max_side is not None:
        output = Path(args.output or f"{folder.resolve()}_{args.max_side}")
        return shrink(folder, output, args.max_side, profile_or_default(args.site))
    target = Path(args.output) if args.output else folder.resolve().with_suffix(".sqf")
    print(how_to_mount(pack(folder, target, args.force), folder))
    return 0


def profile_or_default(path: str) -> Site:
    """The site's profile; without one, image and overlay lie in the checkout."""
    from blip_art.cluster.site import ENVIRONMENT, Site, load_site

    if path or os.environ.get(ENVIRONMENT):
        return load_site(path)
    site = Site()
    return Site(**{key: os.path.normpath(PROFILES / getattr(site, key))
                   for key in ("image", "overlay", "parses")})


def _overlay(path: str, site: Site) -> Path:
    if not (path or site.overlay):
        raise UserError("the site profile names no overlay; name one there or on the command line")
    return Path(path or site.overlay).resolve()


def _group(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str,
           text: str) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    parser = commands.add_parser(name, help=text, description=text.capitalize() + ".")
    return parser.add_subparsers(dest="action", required=True, metavar="ACTION")


def _command(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str,
             function: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text.capitalize() + ".")
    parser.set_defaults(function=function)
    return parser


def _site(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--site", metavar="FILE", default="",
                        help="site profile (default: $BLIP_ART_SITE, else image and overlay lie "
                             "beside launch.py)")


def _output(parser: argparse.ArgumentParser, name: str, default: str) -> None:
    parser.add_argument("-o", "--output", metavar=name, default="", help=f"default: {default}")
    parser.add_argument("--force", action="store_true", help="replace what is there")
