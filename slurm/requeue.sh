#!/usr/bin/env bash
# Usage: requeue.sh FOLDER MAX CODE     on the node, outside the container, as a job's last act
#
# A job that was stopped before its end left FOLDER/requeue_JOBID: queue it again, at most MAX
# times. CODE is the exit code of its step.
set -euo pipefail
folder=${1:?folder of the request} max=${2:?most restarts} code=${3:?exit code of the step}
: "${SLURM_JOB_ID:?run by a batch script of Slurm}"
# The first element of an array has the array's own number, which would mean all of them.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
request=$folder/requeue_$SLURM_JOB_ID
restarts=${SLURM_RESTART_COUNT:-0}

if [[ -e $request ]]; then
    echo "job $job was stopped: $(<"$request")"
    rm -f "$request"
    ((code)) || code=130
elif ((code == 140)); then
    echo "job $job was stopped by SIGUSR2 before it could listen"
else
    exit "$code"
fi
state=$(squeue --noheader --jobs="$job" --format=%T || true)
if [[ $state != RUNNING || -e $folder/cancelled ]]; then
    echo "job $job is ${state:-gone}: not queued again"
elif ((restarts >= max)); then
    echo "job $job was queued again $restarts times, which is the site's limit (max_requeues);" \
        "'launch.py resume' goes on by hand"
elif scontrol requeue "$job"; then
    echo "job $job is queued again (restart $((restarts + 1)) of at most $max)"
    sleep 60  # Slurm ends this script; to end by itself would look like the job's end
fi
exit "$code"
