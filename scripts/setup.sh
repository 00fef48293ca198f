#!/bin/sh
# Makes .venv ready. Called by the Makefile:
#
#     sh scripts/setup.sh runtime     what the app needs
#     sh scripts/setup.sh dev         tests and tools as well
#
# Does nothing, in a few milliseconds, while neither the pins nor the place of the project have
# changed since the last time. PYTHON=... picks another interpreter.
set -eu

cd "$(dirname "$0")/.."
kind=$1
case $kind in
    runtime) wanted="requirements.txt" ;;
    dev) wanted="requirements.txt requirements-cluster.txt requirements-dev.txt" ;;
    *) echo "usage: sh scripts/setup.sh runtime|dev" >&2; exit 2 ;;
esac

say() { printf '%s\n' "$*"; }
fail() { printf '\n%s\n' "$*" >&2; exit 1; }

# What the environment depends on. pyproject.toml: the project itself is installed from it.
fingerprint() {
    # shellcheck disable=SC2086  # names without spaces, on purpose several words
    cat $1 pyproject.toml scripts/setup.sh | cksum
}

# Virtual environments hold absolute paths, so a moved or copied one is made again.
here=$(pwd -P)
place=.venv/.awd-place
stamp=.venv/.awd-$kind
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint "$wanted")" ] &&
    [ "$(cat $place)" = "$here" ] && .venv/bin/python -c "" 2>/dev/null && exit 0

find_python() {
    # Tried by running: a name on PATH may be a stub that starts nothing.
    too_old=
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
                python=$candidate
                return
            fi
            without_venv=$candidate
        elif version=$("$candidate" --version 2>/dev/null); then
            too_old=$version
        fi
    done
    [ -n "${without_venv:-}" ] && fail "Found $without_venv, but it cannot make a virtual environment (its module venv or ensurepip is missing).
On Debian or Ubuntu:  sudo apt-get install python3-venv
Then run the command again."
    fail "AWD Studio needs Python 3.11 or newer; found ${too_old:-none}.
On Debian or Ubuntu:  sudo apt-get install python3 python3-venv
Then run the command again, or name an interpreter:  make app PYTHON=/path/to/python3.11"
}

if ! { .venv/bin/python -m pip --version >/dev/null 2>&1 &&
       { [ ! -f $place ] || [ "$(cat $place)" = "$here" ]; }; }; then
    find_python
    say "Making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv || fail "The virtual environment could not be made; the reason stands above."
fi
printf '%s\n' "$here" >$place
# Until everything below has worked, nothing counts as ready.
rm -f .venv/.awd-runtime .venv/.awd-dev

# Progress for a person who waits; only errors for a log.
[ -t 1 ] && quiet= || quiet=-qq
pip_install() { .venv/bin/python -m pip install --disable-pip-version-check $quiet "$@"; }

[ "$kind" = dev ] && file=requirements-dev.txt || file=requirements.txt
say "Installing $file into .venv (the first time this takes a few minutes)"
pip_install -r $file ||
    fail "Installing $file failed; the reason stands above. With no network and no package index it cannot work;
otherwise run the command again: what is already there is kept."

# The project itself, so that the command \`awd\` exists. No build isolation: setuptools is pinned
# in requirements.txt, so nothing more has to be fetched.
pip_install --no-deps --no-build-isolation --editable . ||
    fail "Installing the project itself failed; the reason stands above."

fingerprint requirements.txt >.venv/.awd-runtime
[ "$kind" = runtime ] || fingerprint "$wanted" >$stamp
say "Ready."
