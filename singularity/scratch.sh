# shellcheck shell=bash
# Usage: source singularity/scratch.sh     the folder on the node that a job has for temporary files
#
# Environment: BLIP_ART_SCRATCH (SCRATCH, $TMPDIR, /tmp), where it is made: what a site profile says,
# which may name the SCRATCH that many sites set. Other users can often write there, too, and the
# numbers of jobs are easy to guess: a folder is used, and removed, only if it is this user's and
# nobody else can write into it.

# Scratch as it is on this node: some names are known here only ($TMPDIR, $SLURM_JOB_ID).
expand_scratch() {
    local text=${BLIP_ART_SCRATCH:-${SCRATCH:-${TMPDIR:-/tmp}}} rest expanded="" name setting
    rest=$text
    # A value is not looked at again: it may have the name that it stands for.
    while [[ $rest =~ \$\{?([A-Za-z_][A-Za-z_0-9]*)\}? ]]; do
        name=${BASH_REMATCH[1]}
        if [[ -z ${!name:-} || ${!name} == "$text" ]]; then
            [[ ${BLIP_ART_SCRATCH:-} ]] && setting=scratch || setting=SCRATCH
            echo "error: $setting is $text and $(hostname) has no $name" >&2
            return 2
        fi
        expanded+=${rest%%"${BASH_REMATCH[0]}"*}${!name}
        rest=${rest#*"${BASH_REMATCH[0]}"}
    done
    echo "$expanded$rest"
}

name_scratch_folder() {
    echo "blip_art-${USER:-$(id -un)}-${SLURM_JOB_ID:-$$}"
}

# Whether $1 is a folder of this user into which nobody else can write.
is_own_folder() {
    [[ -d $1 && ! -L $1 && -O $1 ]] && ! ((8#$(stat -c %a "$1") & 8#022))
}

# Prints $1, which is made unless it is there, or a new folder beside it where $1 cannot be trusted.
take_folder() {
    if mkdir -m 700 "$1" 2>/dev/null || is_own_folder "$1"; then
        echo "$1"
    else
        mktemp -d "$1.XXXXXX"
    fi
}

# Whether no other user can have made the folder $1, or put another one in its place.
is_safe_place() {
    local path above
    for path in "$(realpath -s "$1")" "$(realpath "$1")"; do  # as it is named, and behind links
        while [[ $path ]]; do
            above=${path%/*}
            # In a folder that is open to others the first one to use a name has it; where that
            # folder is not sticky, all of them can also rename what lies in it.
            ! is_open_to_others "$path" || [[ -k $path ]] || return 1
            ! is_open_to_others "${above:-/}" ||
                [[ $(stat -c %u "$path") == @(0|"$EUID") ]] || return 1
            path=$above
        done
    done
}

# Whether others can write into the folder $1, by the group that it is of, too.
is_open_to_others() {
    local mode group
    read -r mode group < <(stat -L -c '%a %g' "$1")
    ((8#$mode & 8#002)) || { ((8#$mode & 8#020)) && ! is_private_group "$group"; }
}

# Whether $1 is the group that this user or root has alone: many systems make one for each.
is_private_group() {
    local name members
    IFS=: read -r name _ _ members < <(getent group "$1") || return 1
    [[ $name == @(root|"$(id -un)") && $(id -g "$name") == "$1" && $members == @(|"$name") ]]
}
