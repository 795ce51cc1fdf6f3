#!/bin/sh
# Makes a bare Debian or Ubuntu ready: system packages, .venv, host image. Says what it installs; a second call does nothing.
#
#   ./setup.sh         what a run on the local cloud needs
#   ./setup.sh --dev   and what `make test` needs
#
# PYTHON=/path/to/python3 chooses the interpreter of .venv (3.11 to 3.13).
set -eu
cd "$(dirname "$0")"

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

dev=
[ "${1-}" = --dev ] && dev=1

# --- Can this machine do it at all? All the obstacles in one message.
obstacles=
obstacle() { obstacles="$obstacles
  - $*"; }

[ "$(uname -s)" = Linux ] || die "the local cloud needs Linux, for its hosts are real (systemd-nspawn); this is $(uname -s).
  Remedy: a Debian or Ubuntu machine or virtual machine. On AWS alone, any controller does: see README, \"AWS\"."

if [ "$(id -u)" = 0 ]; then
  sudo=
elif command -v sudo >/dev/null 2>&1; then
  sudo=sudo
else
  sudo=
  obstacle "you are not root and there is no sudo. Remedy: run as root, or install sudo."
fi
command -v apt-get >/dev/null 2>&1 ||
  obstacle "there is no apt-get; this set-up knows Debian and Ubuntu. Remedy: such a machine, or do by hand what this script does."
[ -z "$obstacles" ] || die "this machine cannot run the local cloud:$obstacles"

# --- System packages: only those that are missing.
wanted="systemd-container mmdebstrap nftables iproute2 openssh-client git ca-certificates"
# User-mode Linux needs help with such a processor (localcloud/uml_xstate.c).
grep -qw amx_tile /proc/cpuinfo && wanted="$wanted gcc libc6-dev"
[ -n "$dev" ] && wanted="$wanted gcc libc6-dev shellcheck chromium fonts-dejavu-core fping iperf3 kmod user-mode-linux"

usable() { "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; }
find_python() {
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
    if usable "$candidate"; then command -v "$candidate"; return; fi
  done
}
python=$(find_python)
[ -n "$python" ] || wanted="$wanted python3 python3-venv"

missing=
for package in $wanted; do
  dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
done
if [ -n "$missing" ]; then
  say "installing system packages:$missing"
  $sudo apt-get update -q >/dev/null
  # Not every Ubuntu has it, and it is only the tests' second kernel; they say so when they are skipped.
  apt-cache show user-mode-linux >/dev/null 2>&1 || missing=$(echo " $missing " | sed 's/ user-mode-linux / /')
  # shellcheck disable=SC2086 # a list of words
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing >/dev/null
fi
[ -n "$python" ] || python=$(find_python)
[ -n "$python" ] || die "Python 3.11 to 3.13 with venv is needed. Remedy: install one and name it: PYTHON=/path/to/python3 make demo"

# --- .venv: made anew when its interpreter is gone, filled when the requirements have changed.
requirements=requirements.txt
[ -n "$dev" ] && requirements="requirements-dev.txt"
stamp=.venv/.$requirements
if ! .venv/bin/python -c '' >/dev/null 2>&1; then
  say "creating .venv with $("$python" --version)"
  rm -rf .venv
  "$python" -m venv .venv
fi
if ! cat requirements.txt "$requirements" | cmp -s - "$stamp"; then
  say "installing $requirements into .venv (about a minute)"
  .venv/bin/python -m pip install -q --disable-pip-version-check -r "$requirements"
  cat requirements.txt "$requirements" >"$stamp"
fi

# --- The host image: says itself what it does, and does nothing when it is current.
.venv/bin/python -m localcloud image >/dev/null
