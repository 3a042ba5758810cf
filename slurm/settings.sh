# shellcheck shell=bash
# Usage: source slurm/settings.sh     in the checkout: what all of slurm/*.sbatch run with
#
# Environment: SIF and OVERLAY, the image and its overlay (default: blip_art.sif and overlay.img
# here), and what singularity/run.sh takes.
: "${SLURM_JOB_ID:?a batch script calls this; sbatch slurm/train.sbatch CONFIG}"
export SIF=${SIF:-$PWD/blip_art.sif} OVERLAY=${OVERLAY-$PWD/overlay.img} NV=${NV:-1}
export PYTHONPATH=$PWD PYTHONSAFEPATH=1 BLIP_ART_CACHE=${BLIP_ART_CACHE:-/ext3/cache}
# Where 'python -m blip_art.score' keeps them too, by default.
export BLIP_ART_PARSES=${BLIP_ART_PARSES:-$PWD/.cache/blip_art/parses.sqlite}
# shellcheck disable=SC2034  # used by those who source it
python=${PYTHON:-/ext3/venv/bin/python}
