#!/usr/bin/env bash
# Usage: step.sh STAGE [ARG…]     the common part of slurm/*.sbatch; see train.sbatch
#
# Environment: see settings.sh; MAX_REQUEUES (default 20);
#   BLIP_ART_DEVICE (default cuda; cpu where jobs have no GPUs).
set -euo pipefail
source slurm/settings.sh
# On a node whose GPUs are not seen a training must end, not go on on the CPU.
export BLIP_ART_DEVICE=${BLIP_ART_DEVICE:-cuda}
# The image has no git: which code this is must be said here.
if BLIP_ART_COMMIT=$(git rev-parse HEAD 2>/dev/null); then
    git diff --quiet HEAD -- . ||
        BLIP_ART_COMMIT+=" $(git diff HEAD -- . | sha256sum | cut -c1-64)"
    export BLIP_ART_COMMIT
fi

run=$(singularity/run.sh "${python:?}" -m blip_art.cluster.step prepare "$@") || {
    code=$?
    singularity/remove_scratch.sh || true
    exit "$code"
}
# What is copied now is what runs, also after the job was queued again and the checkout was edited.
export PYTHONPATH=$run/code
exec bash "$run/code/slurm/job.sh" "$run/slurm" "${MAX_REQUEUES:-20}" \
    srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 --wait=60 \
    "$run/code/singularity/run.sh" "$python" -m blip_art.cluster.step "$@"
