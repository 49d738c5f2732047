"""`image/sign`: the command line that makes signed updates, and the keys for them. A shell."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from agent.errors import CoveyError
from image.disk.layout import MIB
from image.make.signing import leave, make_update, new_key, read_key


def main() -> int:
    """Do what the command line says; the exit status is that of the error, if there is one."""
    parser = argparse.ArgumentParser(
        prog="image/sign", description="Make a signed update out of an image that was built."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--new-key", type=Path, metavar="FILE", help="make a key, and FILE.pub")
    what.add_argument("--key", type=Path, metavar="FILE", help="the key to sign with")
    parser.add_argument("--image", type=Path, default=Path("covey.img"), help="what was built")
    parser.add_argument(
        "--floor", default="", metavar="VERSION",
        help="once this version proved itself, machines refuse those below VERSION for ever",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="else covey-VERSION-ARCH.update, or -ARCH-FLAVOUR"
    )
    arguments = parser.parse_args()
    try:
        if arguments.new_key:
            public = new_key(arguments.new_key)
            print(f"{arguments.new_key} signs updates: keep it, and keep it secret.")
            print(f"image/build --update-key {public} makes images that take them.")
            return 0
        out, manifest = make_update(
            arguments.image, read_key(arguments.key), arguments.out, arguments.floor
        )
        leave(arguments.image, out)
        size = out.stat().st_size / MIB
        print(f"{out} updates {manifest.arch} to {manifest.version}; it has {size:.0f} MiB.")
        print(f"{arguments.image} has the signature too: what is flashed with it gives the update.")
    except CoveyError as error:
        print(error.line(), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
