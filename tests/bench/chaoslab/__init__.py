"""What `chaos.py` is made of: clients that check answers, random faults, and what they left."""
