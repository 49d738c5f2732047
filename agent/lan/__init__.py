"""The LAN: members and newcomers on one link find each other by multicast DNS (design §6).

An announcement is sealed under the network key and signed by its node: an outsider sees that some
`_covey._udp.local` exists, and nothing more. `beacon.py` is for members, `newcomer.py` for who has
a ticket alone.
"""
