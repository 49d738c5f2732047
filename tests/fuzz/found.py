"""What fuzzing found: an input for each, by the name of its target. The unit tests feed them again.

Each once let something escape, or made a message that no terminal should get. Those of JSON that is
no UTF-8, or nested deep, stand for every decoder that shares `agent/unreadable.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

DEEP = b'{"x":' + b"[" * 5000

FOUND: Mapping[str, tuple[bytes, ...]] = {
    # The key of a field, and the name of a tensor, were repeated as they are.
    "GGUF file": (
        b"GGUF\x03\0\0\0" + bytes(8) + b"\x01" + bytes(7) + b"\x07" + bytes(7)
        + b"a\x1b[2Jb\0" + b"\xff\0\0\0",
    ),
    # jinja2 parses by recursion, and so raises what is no error of its own.
    "chat template": (b"{{" + b"(" * 3000, b"{{" + b'{"a":' * 3000),
    # wgconfig gives a list for a key that is there twice.
    "wg-quick file": (
        b"[Interface]\nPrivateKey = AAAA\nPrivateKey = AAAA\nAddress = fd00::1/64\n",
        b"[Interface]\nPrivateKey = YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE=\n"
        b"Address = fd00::1/64\nMTU = 1\nMTU = 2\n",
    ),
    # msgspec raises two errors that are none of its own.
    "release file": (b'{"version":"\xff"}', DEEP, b'{"\\u001b":1}'),
    "update, signed": (b'{"version":"\xff"}', DEEP),
    "kept passwords": (b'{"wifi":["\xff","p"]}', DEEP),
    "note of an update": (b'{"etag":"\xff"}', DEEP),
    "note of a trial": (b'{"x":"\xff"}', DEEP),
    "drain file": (DEEP,),
    "state: InvitesFile": (b'{"version":1,"\\u001b":[]}',),
    "engine's spec": (b'{"role":"\xff"}', DEEP),
    # Nine lines of aliases that stand for a billion values, of which the text was made.
    "distributed's file": (
        b"a: &a [x,x,x,x,x,x,x,x,x]\n"
        + b"".join(b"%c: &%c [%b]\n" % (n, n, b",".join([b"*%c" % (n - 1)] * 9))
                   for n in range(ord("b"), ord("j")))
        + b"node: {id: *i, geo_location: *i}\n",
    ),
    # A partition without a name, beyond what an MBR can count, was taken for the one that it names.
    "partition table, summed": (
        bytes(512) + b"EFI PART" + b"\0\0\1\0" + b"\x5c\0\0\0" + bytes(8) + b"\1" + bytes(7)
        + b"\xff" * 6 + bytes(2) + bytes(16) + b"\1" * 16 + b"\2" + bytes(7)
        + b"\x80\0\0\0" + b"\x80\0\0\0" + bytes(424)
        + b"\1" * 32 + b"\0" * 5 + b"\1\0\0" + b"\0" * 5 + b"\2\0\0" + bytes(80),
    ),
    # A choice that is no object, or usage that is a list, ended a comparison with a traceback.
    "another server's stream": (b'{"choices":[1]}', b'{"usage":[]}', b'{"choices":[{"delta":7}]}'),
}  # fmt: skip
