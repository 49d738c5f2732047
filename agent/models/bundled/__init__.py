"""covey-mini, the model that ships with Covey, so that a mesh answers before any download.

The file is covey-mini.gguf; train.py makes it anew, evaluate.py measures it, docs/model-card.md
describes it. Not for other models: those are the operator's files.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Final

NAME: Final = "covey-mini"


def path() -> Path:
    """Return where the GGUF lies. Covey is installed unpacked, so it always is a file."""
    return Path(str(resources.files(__name__) / f"{NAME}.gguf"))
