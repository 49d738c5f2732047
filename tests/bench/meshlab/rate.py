"""How fast so many streams are together, measured where the head is.

    python rate.py HOST:PORT MODEL STREAMS PROMPT ANSWER TIMES VOCABULARY

Prints a JSON list of tokens/s, one for each time, after a short answer that nobody measures. Each
time the same is asked: else what the head keeps of the prompts before would be in its cache, which
takes time with each token.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ringlab import ask
from ringlab.nodes import MEASURES_S

SEED = 1


async def main() -> None:
    """Ask."""
    base, model, *numbers = sys.argv[1:]
    streams, prompt, answer, times, vocabulary = map(int, numbers)
    await asyncio.sleep(MEASURES_S)
    await ask.run(base, 1, prompt, 4, vocabulary, model=model, seed=SEED)
    found = [
        (await ask.run(base, streams, prompt, answer, vocabulary, model=model, seed=SEED))[0]
        for _ in range(times)
    ]
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main())
