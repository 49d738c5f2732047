"""`image/build`: the command line that builds the appliance's disk image. A shell."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from agent.errors import CoveyError, UsageError
from image.make import grub, programs
from image.make.alpine.source import Alpine
from image.make.assemble import Wish, build
from image.make.crossing import Crossed
from image.make.debian import Debian
from image.make.signing import read_public
from image.make.source import ARCHES, FLAVOURS, Source


def main() -> int:
    """Build what the command line says; the exit status is that of the error, if there is one."""
    parser = argparse.ArgumentParser(
        prog="image/build", description="Build the appliance's disk image, without root."
    )
    parser.add_argument("--arch", choices=sorted(ARCHES), default="x86_64")
    parser.add_argument("--source", choices=["alpine", "debian"], default="debian")
    parser.add_argument(
        "--flavour", choices=FLAVOURS, default="virt",
        help="the kernel for machines of their own (metal), or for virtual ones (virt); "
        "raspberrypi has a Raspberry Pi's firmware as well, which is not free",
    )  # fmt: skip
    parser.add_argument(
        "--mirror", default="", metavar="URL|DIR",
        help="where packages come from: a release's folder like https://HOST/alpine/v3.22, or a "
        "mirror of Debian (without it what this machine's apt is set up with)",
    )  # fmt: skip
    parser.add_argument(
        "--keys", type=Path, metavar="DIR",
        help="public keys that Alpine's packages may be signed with, in place of Alpine's own",
    )  # fmt: skip
    parser.add_argument(
        "--update-key", type=Path, action="append", default=[], metavar="FILE.pub",
        dest="update_keys",
        help="take updates that this key signed (image/sign makes one); repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--oci", action="store_true",
        help="images of the agent and of the gateway for containers, in one tar",
    )  # fmt: skip
    parser.add_argument(
        "--plain", action="store_true",
        help="with llama.cpp for the oldest CPUs alone: slow, but built in a minute",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, help="the file to make  [default: covey.img, or covey-oci.tar]"
    )
    arguments = parser.parse_args()
    crosses = arguments.source == "debian" and programs.crosses(arguments.arch)
    missing = programs.missing(arguments.arch if crosses else "")
    if not arguments.oci and not crosses:
        missing += grub.missing(arguments.arch)
    if missing:
        print(f"Missing on this machine: {' '.join(missing)}. Install these packages.",
              file=sys.stderr)  # fmt: skip
        return 5
    try:
        if arguments.flavour == "raspberrypi" and arguments.arch != "aarch64":
            raise UsageError("a Raspberry Pi is no x86_64", hint="Add --arch aarch64.")
        if not crosses:
            programs.require_machine(arguments.arch)
        out = arguments.out or Path("covey-oci.tar" if arguments.oci else "covey.img")
        wish = Wish(out.absolute(), _source(arguments), arguments.arch, arguments.flavour,
                    arguments.oci, tuple(map(read_public, arguments.update_keys)))  # fmt: skip
        build(wish, lambda words: print(words, flush=True))
    except CoveyError as error:
        print(error.line(), file=sys.stderr)
        return error.exit_code
    return 0


def _source(arguments: argparse.Namespace) -> Source:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "covey"
    if arguments.source == "alpine":
        if not arguments.mirror:
            raise UsageError("--source alpine takes a --mirror", hint="Name a URL or a folder.")
        if arguments.plain:
            raise UsageError("--plain is for --source debian", hint="Leave it out.")
        return Alpine(arguments.mirror, arguments.arch, base / "image", arguments.keys)
    if arguments.keys:
        raise UsageError("--keys is for --source alpine", hint="apt has keys of its own.")
    llama = Path(os.environ.get("COVEY_CACHE") or Path.home() / ".cache" / "covey")
    debian: type[Crossed] | type[Debian] = Crossed if programs.crosses(arguments.arch) else Debian
    return debian(arguments.mirror, arguments.arch, base / "image", llama, plain=arguments.plain)


if __name__ == "__main__":
    sys.exit(main())
