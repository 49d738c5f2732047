"""Which layers run where (design §8, Placement). `plan.py` is a core; the daemon feeds it."""
