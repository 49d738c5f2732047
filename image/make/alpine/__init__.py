"""Alpine's packages as a source for the image, read and verified without apk. No root, no script.

versions.py, index.py   the index of a repository: versions, needs, what provides what
resolve.py              which packages a list of names takes
sealed.py               signatures and hashes: what is verified before anything is unpacked
repository.py           a mirror, as a URL or a folder, and the cache of what came from it
contents.py             a package's files, into a folder
source.py               which packages the appliance is made of
building.py             Python's packages that have no wheel, built among Alpine's own packages

apk itself would do the most of it, but Debian 12 has no package of it. The formats are those of
apk-v2(5) and apk-package(5). Used by image/make alone.
"""
