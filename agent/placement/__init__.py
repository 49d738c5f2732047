"""Which layers run where (design §8, Placement). `plan.py` is a core; the daemon feeds it.

`measured.py`, a core too, keeps the books of what was measured of devices and links.
"""
