#!/bin/sh
# Makes wheels.tar beside itself: wheels of all that Covey needs, for hosts like this one. Its
# argument is the Python that they are for. A build that was broken off goes on with what is there.
set -eu
python=$1
cd "$(dirname "$0")"
[ -x venv/bin/pip ] || "$python" -m venv --clear venv
# ROCm's compiler is named by the environment alone.
if command -v hipconfig >/dev/null 2>&1; then
    HIPCXX=$(hipconfig -l)/clang
    HIP_PATH=$(hipconfig -R)
    export HIPCXX HIP_PATH
fi
# Debian 12's pip would have setup.py build, without what that needs.
SOURCE_DATE_EPOCH=315532800 venv/bin/pip --disable-pip-version-check wheel -q --no-deps \
    --use-pep517 --require-hashes -w wheels -r runtime.txt
"$python" llama_build.py --any-cpu --requirements llama.txt --build-requirements build.txt \
    --cache cache >said
cp "$(tail -n 1 said)" wheels/
tar -cf wheels.tar -C wheels .
chmod 644 wheels.tar
