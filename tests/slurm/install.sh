#!/usr/bin/env bash
# Puts Slurm, munge and shellcheck on a Debian or Ubuntu machine, from the distribution's packages. Needs root and apt-get.
# Does nothing where they are already there. The tests of this folder call it.
set -euo pipefail

missing() {
    local program
    for program in slurmctld slurmd sbatch munged shellcheck; do
        PATH=$PATH:/usr/sbin command -v "$program" >/dev/null || return 0
    done
    return 1
}

missing || exit 0
export DEBIAN_FRONTEND=noninteractive
# Packages start their services when they are installed; here there may be no init system, and no service is wanted.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
packages=(slurmctld slurmd slurm-client munge shellcheck)
apt-get install -y -qq --no-install-recommends "${packages[@]}" </dev/null >/dev/null 2>&1 ||
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${packages[@]}" </dev/null; }
