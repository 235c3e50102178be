#!/usr/bin/env bash
# Set-up: setup.sh VENV run|test|newest. Creates the virtual environment and installs the Python
# packages, and the distribution's packages that pip cannot give: BCC (python3-bpfcc) for both,
# and what the tests and pictures use besides (a C compiler, tmux, rsvg-convert) for "test".
# The versions are those of requirements/*.txt, by their hashes; "newest" is "test" with the newest
# releases that pyproject.toml allows.
# Only with root or a sudo that asks nothing, and only through apt; elsewhere it says what to
# install and goes on: agenttop then runs on /proc and /sys alone.
set -euo pipefail
venv=$1
what=$2
lock=$what
if [ "$what" = newest ]; then what=test; fi
cd "$(dirname "$0")"

say() { printf 'setup: %s\n' "$*" >&2; }

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
	say "agenttop needs Python 3.11 or newer; set PYTHON=/path/to/python3.11 (found: $("$python" --version 2>&1 || echo none))"
	exit 2
fi

wanted=()
have_bcc() { "$python" -c '
import sys
sys.path.append("/usr/lib/python3/dist-packages")
from bcc import BPF' >/dev/null 2>&1; }
have_bcc || wanted+=(python3-bpfcc)
"$python" -c 'import ensurepip, venv' >/dev/null 2>&1 || wanted+=(python3-venv)
if [ "$what" = test ]; then
	command -v tmux >/dev/null || wanted+=(tmux)
	command -v rsvg-convert >/dev/null || wanted+=(librsvg2-bin fonts-dejavu-core)
	command -v cc >/dev/null || wanted+=(gcc libc6-dev)
fi

if [ ${#wanted[@]} -gt 0 ]; then
	run=()
	if [ "$(id -u)" != 0 ]; then run=(sudo -n); fi
	if command -v apt-get >/dev/null && "${run[@]}" true 2>/dev/null; then
		say "installing ${wanted[*]}"
		export DEBIAN_FRONTEND=noninteractive
		"${run[@]}" apt-get update -qq >&2 || true
		if ! "${run[@]}" apt-get install -y -qq --no-install-recommends "${wanted[@]}" >/dev/null; then
			say "could not install ${wanted[*]}: without python3-bpfcc agenttop shows /proc figures only"
		fi
	else
		say "please install: ${wanted[*]} (Debian/Ubuntu names; BCC is 'bcc' or 'python3-bcc' elsewhere; not PyPI's bcc)"
		say "without BCC agenttop shows /proc figures only"
	fi
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
if [ "$lock" = newest ]; then
	install --upgrade --editable '.[test]'
else
	install --require-hashes --requirement "requirements/$lock.txt"
	install --no-deps --no-build-isolation --editable .
fi
