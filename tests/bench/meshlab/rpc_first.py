"""llama.cpp over one of its RPC servers: a model loaded, and its first token.

    python rpc_first.py MODEL ADDRESS:PORT REMOTE_LAYERS PROMPT

The last layers are the server's, the embedding and the output matrix stay here. Prints JSON: when
llama.cpp began to load, had loaded, and the first token was there (time.monotonic()).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from agent.engine.llama import Context, ContextLimits, Weights
from agent.engine.rpc_library import Spread
from agent.engine.synthetic import decode


def main() -> None:
    """Load and decode once."""
    model, place, layers, prompt = sys.argv[1:]
    began = time.monotonic()
    spread = Spread([place], [int(layers)])
    weights = Weights(Path(model), use_extra_bufts=False, arrange=spread.arrange)
    context = Context(weights, ContextLimits(1024, 512, 1, 1), keeps_rows=False)
    loaded = time.monotonic()
    decode(context, 0, int(prompt))
    context.logits()
    print(json.dumps([began, loaded, time.monotonic()]))


if __name__ == "__main__":
    main()
