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
    Add And Answer April Are August Be Calculate Can Compare Compute Could Covey DHT December
    Do Explain February Friday Give Good HTTP Hello Hey Hi How If Is January July June LAN
    List March May Monday Name November October Ok OpenAI Please Reverse Saturday Say
    September So Solve Spell Sum Sunday Tell Thanks The Thursday Tuesday Wednesday What Which
    Who Write You about across add after am an and answers anything apples april are around as
    asked assistant august backwards before big bigger birds books but by can cannot
    certificate clients coins comes compare copy could covey cups day days december deployment
    do does each eggs eight eighth eleventh equal equals expires explain february fifth fine
    first five follows for forwards four fourth friday from gateway get give good greater has
    hash have head help helpful higher hole honest how if in into is it its january join joins
    july june kept key know known larger last layers less lets letters list live loaded lower
    machines make many march may me mean member mesh model monday month months more much name
    named neither newcomer nine ninth no node nodes not november number numbers objective
    october of on one only operator or ordered others out outside over own packets path peer
    picks please plus private program punched reach record relay replica request requests
    reverse reversed right ring rings running runs sampling saturday second sentence september
    set seven seventh signed six sixth small smaller so spell spelled spelling stage stages
    statement stones string sum sunday talk tell ten tenth than thank that the them there
    third three thursday ticket time tiny to today together tokens true tuesday twelfth two
    until up was we wednesday week weekday weekend welcome what which who with word words
    written year yes you your zero
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


LETTER_PLACES: Final = 12  # no more letters of a word are ever spelled
LETTER_FEATURES: Final = LETTER_PLACES * 27 + LETTER_PLACES


def letter_features(text: str) -> list[int]:
    """Return which letter features a token has: letter and capital at each place, and length."""
    letters = text.removeprefix(SPACE)
    if not (letters.isascii() and letters.isalpha()):
        return []
    found = set()
    for at, letter in enumerate(letters[:LETTER_PLACES]):
        found.add(at * 27 + ord(letter.lower()) - ord("a"))
        if letter.isupper():
            found.add(at * 27 + 26)
    found.add(LETTER_PLACES * 27 + min(len(letters), LETTER_PLACES) - 1)
    return sorted(found)


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
