"""Wheels that a distribution's own Python makes, for test machines that have it.

Made in its root (`roots.py`) with a compiler and the network, which no machine sees.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import roots

# $1 mount, $2 where to, $3 requirements, $4 apt's source. The index may be one whose certificate
# this machine's own authorities signed; python3-venv brings others.
_COMPILE = """\
mount -t overlay overlay -o "$1" "$2"
cp /etc/resolv.conf "$2/etc/resolv.conf"
cp "$3" "$2/tmp/runtime.txt"
for authorities in "${PIP_CERT:-}" /etc/ssl/certs/ca-certificates.crt; do
    if [ -f "$authorities" ]; then
        cp "$authorities" "$2/tmp/authorities.pem"
        export PIP_CERT=/tmp/authorities.pem SSL_CERT_FILE=/tmp/authorities.pem
        break
    fi
done
echo "$4" >"$2/etc/apt/sources.list"
chroot "$2" sh -euc '
apt-get update -qq
apt-get install -qq -y --no-install-recommends gcc libc6-dev libgmp-dev python3-dev python3-venv
python3 -m venv /tmp/venv
SOURCE_DATE_EPOCH=315532800 /tmp/venv/bin/pip --disable-pip-version-check wheel -q --no-deps \
    --use-pep517 --require-hashes -w /wheels -r /tmp/runtime.txt' >/dev/null
"""


def wheels(distribution: roots.Distribution, requirements: Path, target: Path) -> None:
    """Put wheels of pinned requirements into the folder `target`, which is not there yet.

    Raises RootFault.
    """
    base = roots.make(distribution) / "base"
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as scratch:
        upper, work, merged = (Path(scratch) / name for name in ("upper", "work", "merged"))
        for folder in (upper, work, merged):
            folder.mkdir()
        mount = f"lowerdir={base},upperdir={upper},workdir={work}"
        roots.run(["unshare", "--mount", "--propagation", "private", "sh", "-euc", _COMPILE, "sh",
                   mount, str(merged), str(requirements), distribution.source])  # fmt: skip
        (upper / "wheels").rename(target)
