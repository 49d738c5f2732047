"""`image/build`: the command line that builds the appliance's disk image. A shell."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from agent.errors import CoveyError
from image.make import grub, programs
from image.make.assemble import Wish, build
from image.make.packages import KERNELS
from image.make.signing import read_public


def main() -> int:
    """Build what the command line says; the exit status is that of the error, if there is one."""
    parser = argparse.ArgumentParser(
        prog="image/build", description="Build the appliance's disk image, without root."
    )
    parser.add_argument("--arch", choices=["x86_64"], default="x86_64")
    parser.add_argument("--source", choices=["debian"], default="debian")
    parser.add_argument(
        "--flavour", choices=sorted(KERNELS), default="virt",
        help="the kernel for machines of their own (metal), or for virtual ones (virt)",
    )  # fmt: skip
    parser.add_argument(
        "--mirror", default="", metavar="URL|DIR",
        help="where Debian 12's packages come from; else what this machine's apt is set up with",
    )  # fmt: skip
    parser.add_argument(
        "--update-key", type=Path, action="append", default=[], metavar="FILE.pub", dest="keys",
        help="take updates that this key signed (image/sign makes one); repeatable",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("covey.img"), help="the image's file")
    arguments = parser.parse_args()
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "covey"
    llama = Path(os.environ.get("COVEY_CACHE") or Path.home() / ".cache" / "covey")
    missing = [*programs.missing(), *grub.missing()]
    if missing:
        print(f"Missing on this machine: {' '.join(missing)}. Install these packages.",
              file=sys.stderr)  # fmt: skip
        return 5
    try:
        wish = Wish(arguments.out.absolute(), base / "image", llama, arguments.mirror,
                    arguments.flavour, tuple(map(read_public, arguments.keys)))  # fmt: skip
        build(wish, lambda words: print(words, flush=True))
    except CoveyError as error:
        print(error.line(), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
