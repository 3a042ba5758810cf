#!/usr/bin/env bash
# Usage: SIF=blip_art.sif [OVERLAY=overlay.img] singularity/run.sh COMMAND [ARGUMENT…]
#   Runs a command inside the image, as every job does. Further settings by environment:
#   CONTAINER (apptainer)   BINDS (source[:target[:options]],…)   SCRATCH ($TMPDIR, /tmp)
#   NV (1: the GPUs, where there are any; 0: never)
set -euo pipefail
: "${SIF:?path of the image}" "${1:?a command to run}"

fail() {
    echo "error: $*" >&2
    exit 2
}

container=${CONTAINER:-apptainer}
command -v "$container" >/dev/null || fail "no $container on $(hostname); load its module" \
    "('modules' in the site profile) or name its path ('container')"
for file in "$SIF" ${OVERLAY:+"$OVERLAY"}; do
    [[ -e $file ]] || fail "no $file on $(hostname); build it with 'launch.py image build' or" \
        "'launch.py overlay build', on a file system that all nodes see"
done

# Some names are known on the node only: $TMPDIR, $SLURM_JOB_ID.
scratch=${SCRATCH:-${TMPDIR:-/tmp}}
while [[ $scratch =~ \$\{?([A-Za-z_][A-Za-z_0-9]*)\}? ]]; do
    name=${BASH_REMATCH[1]}
    [[ -n ${!name:-} ]] || fail "SCRATCH is $scratch and $(hostname) has no $name"
    scratch=${scratch/"${BASH_REMATCH[0]}"/"${!name}"}
done
TMPDIR=$scratch/blip_art-${USER:-$(id -un)}-${SLURM_JOB_ID:-$$}
# A folder still fits where no byte does.
(umask 077 && mkdir -p "$TMPDIR" && head -c 1000000 /dev/zero >"$TMPDIR/.room" &&
    rm -f "$TMPDIR/.room") 2>/dev/null || fail "cannot write to scratch folder $scratch on $(hostname);" \
    "free space or name another one ('scratch' in the site profile)"

# A signal of Slurm goes to every process of a step, and would end those that serve the image's
# files. Apptainer finds them in PATH; there they get a name below which signals are blocked.
shield() {
    local shields=$TMPDIR/fuse name real
    local block=("$(command -v env)" "--block-signal=TERM,USR1,USR2")
    if ! "${block[@]}" true 2>/dev/null; then  # coreutils before 8.31
        block=("$(command -v python3 || echo /usr/libexec/platform-python)" -c "import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
os.execv(sys.argv[1], sys.argv[1:])")
        [[ -x ${block[0]} ]] || return 0
    fi
    mkdir -p "$shields"
    for name in squashfuse_ll squashfuse fuse2fs fuse-overlayfs gocryptfs; do
        real=$(command -v "$name") || continue
        printf '#!/bin/bash\nexec %s "$@"\n' "$(printf '%q ' "${block[@]}" "$real")" \
            >"$shields/$name.$$"
        chmod +x "$shields/$name.$$"
        mv "$shields/$name.$$" "$shields/$name"
        [[ -x $shields/$name ]] || return 0  # scratch may be mounted noexec
    done
    PATH=$shields:$PATH
}
shield

# The image is read-only, and so is the overlay: whatever writes, writes here.
export TMPDIR MPLCONFIGDIR=$TMPDIR TRITON_CACHE_DIR=$TMPDIR/triton
export PYTHONDONTWRITEBYTECODE=1
# ~/.local is bound with the home folder and would be imported in the image's place.
export PYTHONNOUSERSITE=1 LC_ALL=C.UTF-8 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
unset PYTHONHOME LD_PRELOAD

# Never --cleanenv, which drops SLURM_*.
argv=("$container" --quiet exec --pwd "$PWD")
bind() {
    # --bind splits names at commas and colons. Where it does not matter --bind it is, for
    # SingularityCE mounts what --mount names last, over a packed folder that lies inside.
    if [[ $1 == *[,:\\\"]* ]]; then
        argv+=(--mount "type=bind,\"src=${1//\"/\"\"}\",\"dst=${1//\"/\"\"}\"")
    else
        argv+=(--bind "$1")
    fi
}
bind "$PWD"
[[ $(pwd -P) == "$PWD" ]] || bind "$(pwd -P)"
bind "$TMPDIR"
[[ -z ${BINDS:-} ]] || argv+=(--bind "$BINDS")
[[ -z ${OVERLAY:-} ]] || argv+=(--overlay "$OVERLAY:ro")
[[ ${NV:-1} != 1 || ! -e /dev/nvidiactl ]] || argv+=(--nv)
exec "${argv[@]}" "$SIF" "$@"
