#!/usr/bin/env bash
# Usage: .ci/packages.sh      installs with apt what tests and test cluster need and the machine lacks
set -euo pipefail

packages=() apptainer=()
need() { "${@:2}" >/dev/null 2>&1 || packages+=("$1"); }
need python3 command -v python3
need python3-venv /usr/bin/python3 -c 'import venv, ensurepip'
need make command -v make
need git command -v git
need g++ command -v g++
need shellcheck command -v shellcheck
need locales test -e /usr/share/i18n/locales/it_IT
need openjdk-17-jre-headless test -x "$(echo /usr/lib/jvm/java-17-*/bin/java)"
# The test cluster: Slurm with accounting, a database, and what images are made of.
need munge command -v munged
need slurmctld command -v slurmctld
need slurmd command -v slurmd
need slurmdbd command -v slurmdbd
need slurm-client command -v sbatch
need mariadb-server command -v mariadbd
need debootstrap command -v debootstrap
need squashfs-tools command -v mksquashfs
# Without these Apptainer unpacks whole images and cannot mount overlays.
need squashfuse command -v squashfuse
need fuse2fs command -v fuse2fs
need fuse-overlayfs command -v fuse-overlayfs
need uidmap command -v newuidmap
if ! command -v apptainer >/dev/null && ! command -v singularity >/dev/null; then
    apptainer=(-t trixie apptainer/sid)
fi
((${#packages[@]} + ${#apptainer[@]})) || exit 0

# Bookworm has no Apptainer: sid's is added, pinned low so that nothing else comes from there.
# The mirror is the one this machine uses already.
add_sid() {
    local site suite keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    # shellcheck disable=SC2016  # apt-get's own variable
    site=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' \
        'Codename: bookworm' 'Component: main')
    for suite in trixie sid; do
        echo "deb [signed-by=$keyring] $site $suite main"
    done | "${sudo[@]}" tee /etc/apt/sources.list.d/blip_art_apptainer.list >/dev/null
    printf 'Package: *\nPin: release n=%s\nPin-Priority: %s\n\n' trixie 90 sid 80 |
        "${sudo[@]}" tee /etc/apt/preferences.d/blip_art_apptainer >/dev/null
}

install() {
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends \
        "$@" >/dev/null
}

sudo=(); ((EUID == 0)) || sudo=(sudo --preserve-env=DEBIAN_FRONTEND)
echo "installing: ${packages[*]} ${apptainer[*]}"
"${sudo[@]}" apt-get update -qq
if ((${#apptainer[@]})); then
    add_sid
    "${sudo[@]}" apt-get update -qq
fi
((${#packages[@]} == 0)) || install "${packages[@]}"
((${#apptainer[@]} == 0)) || install "${apptainer[@]}"
