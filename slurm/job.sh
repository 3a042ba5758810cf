#!/usr/bin/env bash
# Usage: job.sh FOLDER MAX COMMAND…     all of a batch script, on the node, outside the container
#
# Runs COMMAND (srun …). The signal that Slurm sends this shell before the time limit
# (--signal=B:USR2@120) becomes the file FOLDER/stop_JOBID, which the job looks for: sent to the
# step, it would also end the processes that serve the image's files. A job that was stopped before
# its end leaves FOLDER/requeue_JOBID and is queued again here, at most MAX times. Whoever follows
# the job finds FOLDER/ended_JOBID with its exit code, or FOLDER/again_JOBID while it waits to start
# again; elements of arrays, which nobody follows, leave none.
# What the job runs is in FOLDER/submitit under its submission's name; launch.py deletes that when it
# gives a submission up of which Slurm may have the job.
set -euo pipefail
folder=${1:?folder of the requests} max=${2:?most restarts}
: "${3:?command to run}" "${SLURM_JOB_ID:?run by a batch script of Slurm}"
shift 2
stop=$folder/stop_$SLURM_JOB_ID request=$folder/requeue_$SLURM_JOB_ID
# The first element of an array has the array's own number, which would mean all of them.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
restarts=${SLURM_RESTART_COUNT:-0}

told="" interrupted=""
# shellcheck disable=SC2317  # the traps call it
note() { told=$1 interrupted=yes; echo "$1" >"$stop"; }
trap 'note SIGUSR2' USR1 USR2
trap 'note SIGTERM' TERM
note_end() { [[ ${SLURM_ARRAY_JOB_ID:-} ]] || echo "$1" >"$folder/$2_$job" || true; }
rm -f "$stop" "$request" "$folder/ended_$job" "$folder/again_$job"
pickle=$folder/submitit/${job}_submitted.pkl
if [[ ${BLIP_ART_SUBMISSION:-} && ! -e $pickle ]]; then
    # The link tells launch.py, too, which job came of the submission.
    ln -sf "${BLIP_ART_SUBMISSION}_${SLURM_ARRAY_TASK_ID:-0}.pkl" "$pickle"
    if [[ ! -e $pickle ]]; then
        echo "job $job has nothing to run: its submission was given up"
        note_end 1 ended
        exit 1
    fi
fi
unset BLIP_ART_SUBMISSION  # it is this job's, and not that of jobs which this one submits
"$@" &
step=$!
while :; do
    code=0 interrupted=""
    wait "$step" || code=$?
    [[ $interrupted ]] || break
done

if [[ -e $request ]]; then
    reason=$(<"$request")
elif ((code)) && [[ $told ]]; then
    reason=$told
elif ((code == 140 || code == 143)); then
    reason="$([[ $code == 140 ]] && echo SIGUSR2 || echo SIGTERM) before it could listen"
fi
rm -f "$stop" "$request"
[[ ${reason:-} ]] || { note_end "$code" ended; exit "$code"; }
echo "job $job was stopped: $reason"
((code)) || code=130
if ((restarts >= max)); then
    echo "job $job was queued again $restarts times, which is the site's limit (max_requeues);" \
        "'launch.py resume' goes on by hand"
    note_end "$code" ended
    exit "$code"
fi
# At a time limit many jobs end in the same minute, and the controller may be slow to answer.
for ((attempt = 1; attempt <= 18; attempt++)); do
    if state=$(squeue --noheader --jobs="$job" --format=%T); then
        if [[ $state != RUNNING ]]; then  # somebody has cancelled it
            echo "job $job is ${state:-gone}: not queued again"
            # Slurm may be about to queue it again by itself, after preemption.
            [[ $state == @(COMPLETING|PENDING|REQUEUE*) ]] || note_end "$code" ended
            exit "$code"
        fi
        note_end "$code" again  # before: Slurm may end this script at once
        if scontrol requeue "$job"; then
            echo "job $job is queued again (restart $((restarts + 1)) of at most $max)"
            trap - TERM
            sleep "${BLIP_ART_WAIT_S:-60}"  # Slurm ends this script; its own end would be the job's
            exit "$code"
        fi
    fi
    sleep "${BLIP_ART_RETRY_S:-5}"
done
echo "job $job could not be queued again, Slurm does not answer; 'launch.py resume' goes on by hand"
rm -f "$folder/again_$job"
note_end "$code" ended
exit "$code"
