"""Ownership: which member coordinates a deployment now, and who may command its ring.

`rendezvous.py` ranks the members, `lease.py` is what a head node grants, `fence.py` what a stage
host still obeys, `pulse.py` who counts as silent; `owner.py` puts them together. None of these does
I/O. `service.py` is the shell: UDP on the overlay address.
"""
