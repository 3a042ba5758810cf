#!/usr/bin/env bash
# Usage: singularity/remove_scratch.sh     on a node, when a job has ended: removes what run.sh made
#
# Environment: SLURM_JOB_ID, and BLIP_ART_SCRATCH and SCRATCH as run.sh had them. What is not this
# user's stays.
set -euo pipefail
: "${SLURM_JOB_ID:?number of the job that has ended}"
# shellcheck source=singularity/scratch.sh
source "$(dirname "${BASH_SOURCE[0]}")/scratch.sh"

scratch=$(expand_scratch 2>/dev/null) || exit 0
if [[ ! -d $scratch ]] || ! is_safe_place "$scratch"; then
    exit 0
fi
for folder in "$scratch/$(name_scratch_folder)"{,.??????}; do
    ! is_own_folder "$folder" || rm -rf -- "$folder"
done
