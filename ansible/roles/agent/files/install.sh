#!/bin/sh
# Installs a release out of a folder of wheels: install.sh PYTHON WHEELS RELEASE
# RELEASE/.whole is made last; what lies there without it is of an installation that was broken off.
set -eu
python=$1 wheels=$2 release=$3

# One at a time: whoever started the other may be gone while it still works.
exec 9>"${release%/*}/.lock"
flock 9
[ ! -e "$release/.whole" ] || exit 0

rm -rf "$release"
"$python" -m venv "$release"
"$release/bin/python" -m pip --disable-pip-version-check -q install --no-index --no-deps \
    --no-compile "$wheels"/*.whl
# Shows that the wheels fit this machine, and compiles what is used.
"$release/bin/python" -c 'import agent.daemon, agent.cli, gateway.cli, llama_cpp, libp2p'
touch "$release/.whole"
