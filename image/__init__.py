"""The appliance: what a machine is that was flashed with Covey.

`node/` runs on the appliance. Nothing here runs a program or needs root.
"""
