"""Send an ICMPv6 echo each 10 ms until one is answered; print the unix time of the answer.

    python first_ping.py ADDRESS LIMIT_S

Started before the overlay exists: until there is a route, sending fails, and is tried again.
"""

import contextlib
import os
import select
import socket
import struct
import sys
import time

ECHO_REQUEST, ECHO_REPLY = 128, 129


def main() -> int:
    address, limit_s = sys.argv[1], float(sys.argv[2])
    raw = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    identifier = os.getpid() & 0xFFFF
    ends = time.time() + limit_s
    number = 0
    while time.time() < ends:
        number = (number + 1) & 0xFFFF
        with contextlib.suppress(OSError):
            # The kernel fills in the checksum.
            raw.sendto(struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, identifier, number), (address, 0))
        if select.select([raw], [], [], 0.01)[0]:
            data, source = raw.recvfrom(2048)
            kind, _, _, whose, _ = struct.unpack_from("!BBHHH", data)
            if kind == ECHO_REPLY and whose == identifier and source[0] == address:
                print(time.time())
                return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
