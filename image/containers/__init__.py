"""The appliance's root as containers: `compose.yaml`, `kubernetes/`, and what runs in them.

`alive.py` says whether a container's agent or gateway answers; `gather.py` lets the nodes of
compose.yaml in and deploys a model. Shells; the images themselves are `image/make/oci.py`.
"""
