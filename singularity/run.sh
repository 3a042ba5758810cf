#!/usr/bin/env bash
# Usage: SIF=blip_art.sif [OVERLAY=overlay.img] singularity/run.sh COMMAND [ARGUMENT…]
#   Runs a command inside the image, as every job does. Further settings by environment:
#   CONTAINER (apptainer)   BINDS (source[:target[:options]],…)   SCRATCH ($TMPDIR, /tmp)
#   BLIP_ART_SCRATCH (SCRATCH): the same, as a site profile says it, which may name $SCRATCH
#   NV (1: the GPUs, where there are any; 0: never)
set -euo pipefail
: "${SIF:?path of the image}" "${1:?a command to run}"
# shellcheck source=singularity/scratch.sh
source "$(dirname "${BASH_SOURCE[0]}")/scratch.sh"

fail() {
    echo "error: $*" >&2
    exit 2
}

name=${CONTAINER:-apptainer}
# By its path from here on: PATH changes below.
container=$(type -P "$name") || fail "no $name on $(hostname); load its module" \
    "('modules' in the site profile) or name its path ('container')"
container=$(realpath -s "$container")
for file in "$SIF" ${OVERLAY:+"$OVERLAY"}; do
    [[ -e $file ]] || fail "no $file on $(hostname); build it with 'launch.py image build' or" \
        "'launch.py overlay build', on a file system that all nodes see"
done

scratch=$(expand_scratch)
make_scratch_folder() {
    TMPDIR=$(take_folder "$scratch/$(name_scratch_folder)") &&
        head -c 1000000 /dev/zero >"$TMPDIR/.room" &&  # a folder still fits where no byte does
        rm -f "$TMPDIR/.room"
}
unusable="cannot write to scratch folder $scratch on $(hostname); free space or name another one"
unusable+=" ('scratch' in the site profile)"
(umask 077 && mkdir -p "$scratch") 2>/dev/null || fail "$unusable"
is_safe_place "$scratch" || fail "other users can put their own files in the place of scratch" \
    "folder $scratch on $(hostname); name another one ('scratch' in the site profile)"
make_scratch_folder 2>/dev/null || fail "$unusable"

# A signal of Slurm goes to every process of a step, and would end those that serve the image's
# files. Apptainer finds them in PATH; there they get a name below which signals are blocked.
shield() {
    local shields name real
    local block=("$(type -P env)" "--block-signal=TERM,USR1,USR2")
    if ! "${block[@]}" true 2>/dev/null; then  # coreutils before 8.31
        block=("$(type -P python3 || echo /usr/libexec/platform-python)" -c "import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
os.execv(sys.argv[1], sys.argv[1:])")
        [[ -x ${block[0]} ]] || return 0
    fi
    shields=$(take_folder "$TMPDIR/fuse")
    for name in squashfuse_ll squashfuse fuse2fs fuse-overlayfs gocryptfs; do
        real=$(type -P "$name") || continue
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
