"""The training chats and the held-out items of the bundled model."""

import random
import re

import pytest

from agent.models.bundled import chats, items, phrases, tokenizer, words


def test_training_chats_hold_no_held_out_item() -> None:
    rng = random.Random(7)
    drawn = [item for _ in range(1500) for item in chats.training_chat(rng).items]
    assert {item.task for item in drawn} == set(chats.TASKS)
    for item in drawn:
        assert not chats.held_out(item.key) or always_trained(item.key)


def always_trained(key: str) -> bool:
    task, *about = key.split()
    if task in ("spell", "reverse"):
        return about[0] in tokenizer.word_tokens()
    return task in ("add", "compare") and all(len(number) == 1 for number in about)


@pytest.mark.parametrize("task", chats.TASKS)
def test_held_out_items_are_apart_and_always_the_same(task: str) -> None:
    held = chats.held_out_items(task, 60)
    assert held == chats.held_out_items(task, 60)
    assert len({item.question for item in held}) == 60
    assert all(item.task == task and chats.held_out(item.key) for item in held)
    assert not any(always_trained(item.key) for item in held)
    rng = random.Random(3)
    trained = {chats.draw(rng, task).key for _ in range(400)}
    assert trained.isdisjoint(item.key for item in held)


def test_the_held_out_side_is_about_a_tenth() -> None:
    keys = [f"add {a} {b}" for a in range(100) for b in range(a, 100)]
    assert 0.08 < sum(map(chats.held_out, keys)) / len(keys) < 0.12
    assert chats.held_out("add 9 81") == chats.held_out("add 9 81")


def test_a_held_out_pair_is_held_out_in_both_orders() -> None:
    rng = random.Random(11)
    for _ in range(300):
        item = chats.draw(rng, "add", held=True)
        a, b = (int(part.strip(" .")) for part in item.answer.split("=")[0].split("+"))
        assert item.key == f"add {min(a, b)} {max(a, b)}"


def test_answers_are_right() -> None:
    rng = random.Random(5)
    for _ in range(300):
        terms, *steps = chats.draw(rng, "add").answer.rstrip(".").split(" = ")
        assert len(steps) in (1, 2)
        for step in steps:
            assert sum(map(int, step.split(" + "))) == sum(map(int, terms.split(" + ")))
        _, word, _, turned, _ = chats.draw(rng, "reverse").answer.split('"')
        assert word == turned[::-1]
        _, word, rest = chats.draw(rng, "spell").answer.split('"')
        assert rest == " is spelled " + "-".join(word) + "."


def test_compared_numbers_are_told_apart_rightly() -> None:
    rng = random.Random(6)
    for _ in range(300):
        item = chats.draw(rng, "compare")
        said = re.fullmatch(
            r"Of (\d+) and (\d+), (\w+) is (larger|smaller)(, so yes|, so no)?\.", item.answer
        )
        assert said, item
        a, b = int(said[1]), int(said[2])
        assert {a, b} == {int(text) for text in re.findall(r"\d+", item.question)}
        found = max(a, b) if said[4] == "larger" else min(a, b)
        assert said[3] == ("neither" if a == b else str(found))


def test_yes_and_no() -> None:
    rng = random.Random(1)
    seen = set()
    for _ in range(600):
        item = chats.draw(rng, "compare")
        asked = re.search(r"(\d+) (?:(<|>)|(larger|smaller) than) (\d+)", item.question)
        if not asked:
            continue
        a, b = int(asked[1]), int(asked[4])
        holds = a > b if (asked[2] or asked[3]) in (">", "larger") else a < b
        assert item.answer.endswith(", so yes." if holds else ", so no."), item
        seen.add(holds)
    assert seen == {True, False}


def test_days_and_months_go_round() -> None:
    rng = random.Random(8)
    seen = 0
    for _ in range(400):
        task, names = rng.choice((("days", phrases.DAYS), ("months", phrases.MONTHS)))
        said = re.fullmatch(r"(\d) \w+s (after|before) (\w+): (.*)\.", chats.draw(rng, task).answer)
        if not said:
            continue
        seen += 1
        steps = said[4].split(", ")
        way = 1 if said[2] == "after" else -1
        start = names.index(said[3])
        wanted = [names[(start + way * i) % len(names)] for i in range(1, int(said[1]) + 1)]
        assert steps == wanted
    assert seen > 20


def test_too_much_is_refused_with_the_limit() -> None:
    answers = {item.answer for item in chats.held_out_items("limits", 60)}
    assert answers == {phrases.ADD_LIMIT, phrases.COMPARE_LIMIT, phrases.WORD_LIMIT}


def test_every_word_of_the_glossary_is_explained_in_one_sentence() -> None:
    asked = (
        "mesh node ticket certificate record path relay stage ring head deployment replica gateway"
    )
    assert set(asked.split()) <= set(phrases.GLOSSARY)
    for term, text in phrases.GLOSSARY.items():
        assert term in text
        assert text.endswith(".") and text.count(". ") == 0


def test_the_word_list_fits_the_task() -> None:
    assert len(set(words.WORDS)) > 600
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words.WORDS)
    assert not set(words.NOUNS) & set(phrases.GLOSSARY)


def test_messages_of_a_chat() -> None:
    item = items.Item("self", "Hi", "Hello!", "self hi")
    assert chats.Chat("Be kind.", (item, item)).messages() == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
    ]
