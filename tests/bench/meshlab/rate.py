"""How fast so many streams are together, measured where the head is.

    python rate.py HOST:PORT MODEL STREAMS PROMPT ANSWER TIMES VOCABULARY

Prints a JSON list of tokens/s, one for each time, after a short answer that nobody measures.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ringlab import ask
from ringlab.nodes import MEASURES_S


async def main() -> None:
    """Ask."""
    base, model, *numbers = sys.argv[1:]
    streams, prompt, answer, times, vocabulary = map(int, numbers)
    await asyncio.sleep(MEASURES_S)
    await ask.run(base, 1, prompt, 4, vocabulary, model=model)
    found = [
        (await ask.run(base, streams, prompt, answer, vocabulary, model=model))[0]
        for _ in range(times)
    ]
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main())
