#!/usr/bin/env bash
# Usage: SIF=blip_art.sif singularity/overlay.sh OVERLAY.img
#   Makes the overlay with the scorers: /ext3/venv (the scoring block of requirements.txt) and
#   /ext3/cache (CoreNLP). It is written aside and renamed, so a file of that name is whole.
#   Further settings by environment: CONTAINER (apptainer)   SIZE_MB (4096; holes take no space)
#   BINDS (what pip needs of this site, such as /etc/pip.conf)
set -euo pipefail
: "${SIF:?path of the image}" "${1:?path of the overlay to make}"

container=${CONTAINER:-apptainer}
repo=$(cd "$(dirname "$0")/.." && pwd)
aside=$(dirname "$1")/.$(basename "$1").$(hostname).$$.tmp
export PYTHONNOUSERSITE=1 PYTHONPATH=$repo BLIP_ART_CACHE=/ext3/cache LC_ALL=C.UTF-8
work=$(mktemp -d)
trap 'rm -rf "$work" "$aside"' EXIT

inside() {
    # Nothing else of the host may write into the overlay, so nothing else is bound.
    "$container" --quiet exec --overlay "$aside" --bind "$repo:$repo:ro,$work${BINDS:+,$BINDS}" --pwd / \
        "$SIF" "$@"
}

"$container" --quiet overlay create --sparse --size "${SIZE_MB:-4096}" --create-dir /ext3 "$aside"
sed -n '/^# --- scoring/,$p' "$repo/requirements.txt" >"$work/requirements.txt"
inside python3 -m venv --system-site-packages /ext3/venv
inside /ext3/venv/bin/python -m pip install --quiet --disable-pip-version-check \
    -r "$work/requirements.txt"
inside /ext3/venv/bin/python -m blip_art.score fetch
# The first scores also make what later ones only read.
inside /ext3/venv/bin/python -m blip_art.cluster.golden "$work"
chmod +r "$aside" # as the umask says; Apptainer makes it for the owner alone
mv "$aside" "$1"
