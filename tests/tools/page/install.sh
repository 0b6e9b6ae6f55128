#!/usr/bin/env bash
# Puts Chromium on a Debian or Ubuntu machine, from the distribution's packages. Needs root and apt-get. Does nothing where it
# is already there. The tests of pages call it.
set -euo pipefail

command -v chromium >/dev/null && exit 0
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -qq --no-install-recommends chromium </dev/null >/dev/null 2>&1 ||
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium </dev/null; }
