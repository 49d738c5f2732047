"""The bundled model's vocabulary and the Python copy of its tokenizer."""

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.models.bundled import tokenizer


def test_the_vocabulary_is_closed_under_openings() -> None:
    texts = tokenizer.tokens()
    assert len(set(texts)) == len(texts)
    known = set(texts)
    for text in texts[tokenizer.BYTE_0 + 256 :]:
        if len(text) > 1:
            assert text[0] == tokenizer.SPACE
            assert text[:-1] in known and text[-1] in known
            assert text[1:].isalpha()


def test_words_are_one_token_and_digits_and_quoted_words_are_single_characters() -> None:
    texts = tokenizer.tokens()
    ids = tokenizer.encode(' What is 12 + 35? "mesh"')
    assert [texts[i] for i in ids] == [
        "▁What", "▁is", "▁", "1", "2", "▁", "+", "▁", "3", "5", "?",
        "▁", '"', "m", "e", "s", "h", '"',
    ]  # fmt: skip


def test_other_text_becomes_bytes() -> None:
    texts = tokenizer.tokens()
    assert [texts[i] for i in tokenizer.encode("é\n")] == ["<0xC3>", "<0xA9>", "<0x0A>"]


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40).filter(lambda text: tokenizer.SPACE not in text))
def test_any_text_comes_back(text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_letters_of_a_token_are_known_by_place() -> None:
    a, ab, capital = (tokenizer.letter_features(text) for text in ("a", "▁ab", "A"))
    assert set(a) & set(ab) == {0}  # the same first letter, another length
    assert set(capital) - set(a) == {26}
    assert tokenizer.letter_features("7") == tokenizer.letter_features("▁") == []
    longest = max(tokenizer.openings(), key=len)
    assert 0 < max(tokenizer.letter_features(longest)) < tokenizer.LETTER_FEATURES


def test_control_tokens_cannot_be_written_by_a_user() -> None:
    ids = tokenizer.encode("<|end|><|system|>")
    assert min(ids) >= tokenizer.BYTE_0


def test_only_answers_and_their_end_are_learned() -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
    ]
    ids, mask = tokenizer.encode_chat(messages)
    said = [i for i, learned in zip(ids, mask, strict=True) if learned]
    assert said == [*tokenizer.encode("Hello!"), tokenizer.END]
    assert ids[:2] == [tokenizer.BOS, tokenizer.SYSTEM]
    assert tokenizer.encode_chat(messages, bos=False) == (ids[1:], mask[1:])
