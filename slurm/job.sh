#!/usr/bin/env bash
# Usage: job.sh FOLDER MAX COMMAND…     all of a batch script, on the node, outside the container
#
# Runs COMMAND (srun …). The signal that Slurm sends this shell before the time limit
# (--signal=B:USR2@120) becomes the file FOLDER/stop_JOBID, which the job looks for: sent to the
# step, it would also end the processes that serve the image's files. A job that was stopped before
# its end leaves FOLDER/requeue_JOBID and is queued again here, at most MAX times, and not after
# three starts in a row that gave no new checkpoint and no new captions. Of these only starts count
# that had 10 minutes, or half of their time limit where that is less: preemption soon after the
# start is not the run's fault, and where Slurm queues a job again by itself nothing is counted.
# FOLDER/progress_JOBID is there once the job has started; a training, or a job that writes
# captions, names in it what is to be newer. Whoever follows the job finds FOLDER/ended_JOBID with
# its exit code, or FOLDER/again_JOBID while it waits to start again. Both have the number of the
# start, too, and in a second line why it was not queued again: 'launch.py status' and the report
# show that. A follower does not hold its node for a job that waits: it leaves FOLDER/follows_JOBID
# with that one's id, and is queued again here to start when that one does.
# What the job runs is in FOLDER/submitit under its submission's name; launch.py deletes that when
# it gives a submission up of which Slurm may have the job. What singularity/run.sh made in scratch
# is removed, on every node of the job.
set -euo pipefail
folder=${1:?folder of the requests} max=${2:?most restarts}
: "${3:?command to run}" "${SLURM_JOB_ID:?run by a batch script of Slurm}"
shift 2
stop=$folder/stop_$SLURM_JOB_ID request=$folder/requeue_$SLURM_JOB_ID
# The first element of an array has the array's own number, which would mean all of them.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
restarts=${SLURM_RESTART_COUNT:-0}
progress=$folder/progress_$SLURM_JOB_ID idle=$folder/idle_$SLURM_JOB_ID
follows=$folder/follows_$SLURM_JOB_ID leader=""
most_idle=3 fair_s=${BLIP_ART_FAIR_S:-600}

told="" interrupted=""
# shellcheck disable=SC2317  # the traps call it
note() { told=$1 interrupted=yes; echo "$1" >"$stop"; }
trap 'note SIGUSR2' USR1 USR2
trap 'note SIGTERM' TERM
note_end() { printf '%s\n' "$1 $restarts" ${3:+"$3"} >"$folder/$2_$job" || true; }
remove_scratch() {
    local remove
    remove=$(dirname "${BASH_SOURCE[0]}")/../singularity/remove_scratch.sh
    bash "$remove" || true
    # On the other nodes, too, where Slurm answers soon: the time limit may be near, and the job is
    # still to be queued again. A job that was cancelled is given no more steps.
    ((${SLURM_JOB_NUM_NODES:-1} == 1)) ||
        timeout 5 srun --overlap --export=ALL --ntasks="$SLURM_JOB_NUM_NODES" \
            --ntasks-per-node=1 --cpus-per-task=1 bash "$remove" 2>/dev/null || true
}
rm -f "$stop" "$request" "$follows" "$folder/ended_$job" "$folder/again_$job"
: >"$progress" || true  # a follower waits for it
((restarts)) || rm -f "$idle"  # numbers of jobs come round again
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

had_time() {  # whether this start was long enough to expect something of it
    local limit part limit_s=0 days=0
    ((SECONDS < fair_s)) || return 0
    limit=$(squeue --noheader --jobs="$job" --format=%l) || return 1
    [[ $limit =~ ^([0-9]+-)?[0-9]+(:[0-9]+)+$ ]] || return 1
    [[ $limit != *-* ]] || days=${limit%%-*}
    for part in $(tr : ' ' <<<"${limit#*-}"); do limit_s=$((60 * limit_s + 10#$part)); done
    ((2 * SECONDS >= 86400 * days + limit_s))
}
count_idle() {  # starts in a row, up to this one, that gave nothing new
    local state="" checkpoint captions count=0
    [[ ! -e $idle ]] || count=$(<"$idle")
    if [[ -s $progress ]]; then
        { read -r state; read -r checkpoint; read -r captions; } <"$progress"
        if [[ $checkpoint -nt $progress ||
            $(find "$captions" -name '*.json' -newer "$progress" -print -quit 2>/dev/null) ]]; then
            count=0
        elif had_time; then
            count=$((count + 1))
        fi
    fi
    echo "$count" >"$idle" || true
    ((count >= most_idle)) || return 0
    gives_up="stopped $count times in a row before there was a new checkpoint or new captions:"
    gives_up+=" give it more time (--time MIN), or look at its logs"
    [[ $state ]] || return 0  # captions: the state is a training's
    if printf '{"state": "failed", "why": "%s", "job": "%s", "start": %s}\n' "$gives_up" "$job" \
        "$restarts" >"$state.$job.tmp"; then
        mv "$state.$job.tmp" "$state" || true
    fi
}
gives_up="" counted=""

comes_back() {  # whether the job that was followed is to start again, or has
    local state="" attempt
    for ((attempt = 1; attempt <= 60; attempt++)); do
        if state=$(squeue --noheader --jobs="$leader" --format=%T 2>&1); then
            case $state in
                PENDING | REQUEUE*) return 0 ;;
                RUNNING | CONFIGURING | SUSPENDED) ((attempt < 20)) || return 0 ;;
                COMPLETING | STAGE_OUT | SIGNALING | STOPPED) ;;  # and then perhaps PENDING
                *) return 1 ;;
            esac
        elif [[ $state == *[Ii]nvalid\ job\ id* ]]; then
            return 1
        fi
        sleep "${BLIP_ART_RETRY_S:-5}"
    done
    return 1
}
"$@" &
step=$!
while :; do
    code=0 interrupted=""
    wait "$step" || code=$?
    [[ $interrupted ]] || break
done
remove_scratch

[[ ! -e $follows ]] || leader=$(<"$follows")
if [[ $leader ]] && ! comes_back; then
    echo "job $leader, which this one follows, has ended"
    leader=""
fi
if [[ -e $request ]]; then
    reason=$(<"$request")
elif ((code)) && [[ $told ]]; then
    reason=$told
elif ((code == 140 || code == 143)); then
    reason="$([[ $code == 140 ]] && echo SIGUSR2 || echo SIGTERM) before it could listen"
elif [[ $leader ]]; then
    reason="job $leader, which it follows, waits in the queue"
fi
rm -f "$stop" "$request" "$follows"
[[ ${reason:-} ]] || { note_end "$code" ended; exit "$code"; }
echo "job $job was stopped: $reason"
((code)) || code=130
if ((restarts >= max)); then
    echo "job $job was queued again $restarts times, which is the site's limit (max_requeues);" \
        "'launch.py resume' goes on by hand"
    note_end "$code" ended \
        "limit of restarts reached ($max, max_requeues); 'launch.py resume' goes on"
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
        [[ $counted ]] || count_idle
        counted=yes
        if [[ $gives_up ]]; then
            echo "job $job was $gives_up"
            note_end 1 ended "$gives_up"
            exit 1
        fi
        note_end "$code" again  # before: Slurm may end this script at once
        # What is left to do here, in the seconds until Slurm kills this script.
        [[ ! $leader ]] || trap '' TERM
        if scontrol requeue "$job"; then
            if [[ $leader ]]; then
                scontrol update "jobid=$job" "dependency=after:$leader" || true
            fi
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
note_end "$code" ended "could not be queued again, Slurm did not answer; 'launch.py resume' goes on"
exit "$code"
