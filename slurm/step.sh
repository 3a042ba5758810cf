#!/usr/bin/env bash
# Usage: step.sh STAGE [ARG…]     the common part of slurm/*.sbatch; see train.sbatch
#
# Environment: SIF and OVERLAY, the image and its overlay (default: blip_art.sif and overlay.img
# here), and what singularity/run.sh takes; MAX_REQUEUES (default 20).
set -euo pipefail
: "${SLURM_JOB_ID:?a batch script calls this; sbatch slurm/train.sbatch CONFIG}"
export SIF=${SIF:-$PWD/blip_art.sif} OVERLAY=${OVERLAY-$PWD/overlay.img} NV=${NV:-1}
export PYTHONPATH=$PWD PYTHONSAFEPATH=1 BLIP_ART_CACHE=${BLIP_ART_CACHE:-/ext3/cache}
export BLIP_ART_PARSES=${BLIP_ART_PARSES:-$PWD/.cache/parses.sqlite}
python=${PYTHON:-/ext3/venv/bin/python}

run=$(singularity/run.sh "$python" -m blip_art.cluster.step prepare "$@")
# What is copied now is what runs, also after the job was queued again and the checkout was edited.
export PYTHONPATH=$run/code
exec bash "$run/code/slurm/job.sh" "$run/slurm" "${MAX_REQUEUES:-20}" \
    srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 --wait=60 \
    "$run/code/singularity/run.sh" "$python" -m blip_art.cluster.step "$@"
