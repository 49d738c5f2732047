"""covey-mini's vocabulary, in the SentencePiece manner, and text to ids and back.

llama.cpp does the same from the GGUF; this copy is for training, where a test holds the two
together. Every token of more than one character is a word, or the opening of a word, with the
space before it ("▁Wha"). llama.cpp joins neighbours pair by pair, and since a second half is
always a single character, what comes out is the longest opening in the vocabulary: digits, and
letters after a quotation mark, always stay single. Text outside printable ASCII becomes bytes.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

SPACE: Final = "\u2581"
UNK, BOS, SYSTEM, USER, ASSISTANT, END = range(6)
SPECIAL: Final = ("<unk>", "<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
BYTE_0: Final = len(SPECIAL)

_WORDS: Final = """
    Add Answer April Are August Be Calculate Can Compare Compute Could Covey DHT Days December
    Define Describe Do Ed Explain February Friday Give HTTP Hello Hey Hi How IPv If In Is
    January July June LAN List March May Monday Name November October Ok OpenAI Please Reverse
    Saturday Say September So Solve Spell Sum Sunday Tell Thanks The Thursday Tuesday Turn
    Wednesday What Which Who Write You about across add after am an and answers anything
    apples april are around as asked assistant august backwards before big bigger birds books
    but by can cannot certificate certificates clients coins comes compare copy could covey
    cups day days december deployment deployments do does each eggs eight eighth eleven
    eleventh equal expires explain february fifth fine first five follows for forwards four
    fourth friday from gateway gateways get give greater has hash have head heads help helpful
    higher hole honest how if in into is it its january join joins july june kept key know
    known language larger last layers less lets letters list live loaded lower machines make
    many march may me mean meaning meant member mesh meshes model monday month months more
    much name named newcomer nine ninth node nodes not november number numbers objective
    october of on one only operator or ordered others out outside over own packets path paths
    peer picks please plus private program punched questions reach record records relay relays
    replica replicas request requests reverse reversed right ring rings running runs sampling
    saturday second sentence september set seven seventh short signed six sixth small smaller
    spell spelled spelling stage stages statement step stones string sum sunday talk tell ten
    tenth term than thank that the them there third three thursday ticket tickets time tiny to
    today together tokens true tuesday twelfth twelve two until up was we wednesday week
    weekday weekend welcome what which who with word words work write written year you your
    zero
"""


@lru_cache(maxsize=1)
def word_tokens() -> tuple[str, ...]:
    """Return the whole words that are one token with the space before them."""
    return tuple(_WORDS.split())


@lru_cache(maxsize=1)
def openings() -> tuple[str, ...]:
    """Return every opening of those words, each one a token, shortest first."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    found = set(letters)
    for word in word_tokens():
        found.update(word[:n] for n in range(1, len(word) + 1))
    return tuple(sorted(found, key=lambda word: (len(word), word)))


@lru_cache(maxsize=1)
def tokens() -> tuple[str, ...]:
    """Return the vocabulary: the text of each token, by id."""
    byte_tokens = [f"<0x{value:02X}>" for value in range(256)]
    single = [SPACE] + [chr(code) for code in range(0x21, 0x7F)]
    return (*SPECIAL, *byte_tokens, *single, *(SPACE + word for word in openings()))


@lru_cache(maxsize=1)
def _ids() -> dict[str, int]:
    return {text: i for i, text in enumerate(tokens()) if i >= BYTE_0 + 256}


@lru_cache(maxsize=50_000)
def _encode_part(part: str) -> tuple[int, ...]:
    """Encode a run that holds no space after its first character."""
    ids = _ids()
    out: list[int] = []
    at = 0
    if part[0] == SPACE:
        end = 1
        while end < len(part) and part[: end + 1] in ids:
            end += 1
        out.append(ids[part[:end]])
        at = end
    for char in part[at:]:
        one = ids.get(char)
        if one is not None:
            out.append(one)
        else:
            out.extend(BYTE_0 + byte for byte in char.encode())
    return tuple(out)


def encode(text: str) -> list[int]:
    """Return the ids of plain text: no control tokens, no space put in front."""
    parts = re.findall(f"{SPACE}[^{SPACE}]*|[^{SPACE}]+", text.replace(" ", SPACE))
    return [i for part in parts for i in _encode_part(part)]


def decode(ids: list[int]) -> str:
    """Return the text of ids; control tokens give nothing, broken bytes a replacement mark."""
    out = bytearray()
    for i in ids:
        if BYTE_0 <= i < BYTE_0 + 256:
            out.append(i - BYTE_0)
        elif i >= BYTE_0:
            out += tokens()[i].replace(SPACE, " ").encode()
    return out.decode(errors="replace")


def encode_chat(
    messages: list[dict[str, str]], *, bos: bool = True
) -> tuple[list[int], list[bool]]:
    """Return the ids of a chat as the chat template writes it, and which ones are answers.

    An answer is its text and the <|end|> after it: what the model must say by itself.
    """
    ids = [BOS] if bos else []
    mask = [False] * len(ids)
    roles = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
    for message in messages:
        answer = message["role"] == "assistant"
        text = message["content"].strip()
        body = [*encode(text if answer else " " + text), END]
        ids += [roles[message["role"]], *body]
        mask += [False, *([answer] * len(body))]
    return ids, mask


CHAT_TEMPLATE: Final = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- '<|assistant|>' + message['content'] | trim + '<|end|>' -}}"
    "{%- elif message['role'] in ['system', 'user'] -%}"
    "{{- '<|' + message['role'] + '|> ' + message['content'] | trim + '<|end|>' -}}"
    "{%- else -%}"
    "{{- raise_exception('covey-mini knows the roles system, user and assistant') -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
