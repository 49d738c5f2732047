"""Which layers run where (docs/how-it-works.md, Placement): cores; `plan.py` is the entry."""
