"""The bundled GGUF itself, through llama.cpp: what it declares, how it reads, what it answers."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import jinja2
import numpy as np
import pytest
from gguf import GGUFReader

from agent.errors import ModelError
from agent.models import bundled
from agent.models.bundled import chats, evaluate, export, net, phrases, tokenizer, train


@pytest.fixture(scope="module")
def runner() -> Iterator[evaluate.Runner]:
    with evaluate.Runner(bundled.path()) as one:
        yield one


@pytest.fixture(scope="module")
def reader() -> GGUFReader:
    return GGUFReader(bundled.path())


def ask(runner: evaluate.Runner, *questions: str) -> list[str | None]:
    return runner.answers([{"role": "user", "content": question}] for question in questions)


def test_the_file_is_small_and_cuts_well(reader: GGUFReader) -> None:
    assert bundled.path().stat().st_size <= 6_000_000
    assert reader.fields["llama.block_count"].contents() >= 12
    assert reader.fields["general.architecture"].contents() == "llama"


def test_metadata(reader: GGUFReader) -> None:
    wanted = {
        "general.name": "covey-mini",
        "general.license": "AGPL-3.0-or-later",
        "general.description": export.DESCRIPTION,
        "tokenizer.ggml.model": "llama",
        "tokenizer.chat_template": tokenizer.CHAT_TEMPLATE,
        "tokenizer.ggml.bos_token_id": tokenizer.BOS,
        "tokenizer.ggml.eos_token_id": tokenizer.END,
        "llama.context_length": train.MAX_TOKENS,
    }
    assert {key: reader.fields[key].contents() for key in wanted} == wanted
    assert tuple(reader.fields["tokenizer.ggml.tokens"].contents()) == tokenizer.tokens()


def test_the_template_writes_what_was_trained(runner: evaluate.Runner) -> None:
    rng = random.Random(2)
    for _ in range(40):
        messages = chats.training_chat(rng).messages()[:-1]
        ids, _ = tokenizer.encode_chat(messages)
        assert runner.prompt(messages) == [*ids, tokenizer.ASSISTANT]


def test_the_template_as_text(runner: evaluate.Runner) -> None:
    messages = [
        {"role": "system", "content": " Be kind.\n"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "12 + 35"},
    ]
    text = runner.template.render(messages=messages, add_generation_prompt=True)
    start = "<|system|> Be kind.<|end|><|user|> Hi<|end|>"
    assert text == start + "<|assistant|>Hello!<|end|><|user|> 12 + 35<|end|><|assistant|>"
    assert runner.template.render(messages=messages[:2]) == start


def test_the_template_refuses_other_roles(runner: evaluate.Runner) -> None:
    with pytest.raises(jinja2.UndefinedError):
        runner.template.render(messages=[{"role": "tool", "content": "x"}])


TEXTS = (
    "", " ", "  two  spaces ", "What is 12+35?", " What is  12 + 35?", "\n\n", "tab\tnew\nline",
    "Grüße aus Köln", "¿Qué es nodo?", "日本語のテキスト", "👩\u200d🚀 flies", "naïve café — «q»",
    "a\u00a0b", "certificates' gateway/gateways", "WHAT IS A MESH", "<|end|>", "<s>", "</s><unk>",
    "e\u0301", "\u2581literal", "0123456789", "{'a': [1, 2]}", "Wednesdayx Wednesda DayWednesday",
)  # fmt: skip


def test_python_and_llama_cpp_tokenize_alike(runner: evaluate.Runner) -> None:
    rng = random.Random(4)
    letters = "abWhat is ringd  éü€漢👋\n\u2581.,\"'"
    texts = [*TEXTS, *("".join(rng.choices(letters, k=rng.randint(1, 40))) for _ in range(200))]
    texts += [item.question for _ in range(200) for item in chats.training_chat(rng).items]
    for text in texts:
        assert runner.tokenize(text, special=False, bos=False) == tokenizer.encode(text), text
        pieces = b"".join(map(runner.piece, tokenizer.encode(text)))
        assert pieces.decode() == text.replace(tokenizer.SPACE, " ")


def test_bos_is_added_when_asked(runner: evaluate.Runner) -> None:
    assert runner.tokenize("12", special=True, bos=True)[0] == tokenizer.BOS
    assert runner.tokenize("<|user|>", special=True, bos=False) == [tokenizer.USER]


def test_held_out_items_are_answered_exactly(runner: evaluate.Runner) -> None:
    items = [item for task in chats.TASKS for item in chats.held_out_items(task, 12)]
    score = evaluate.score(runner, "all", items)
    assert score.items == 120
    assert score.part >= evaluate.BAR, score.wrong
    missed = [item.task for item, _ in score.wrong]
    assert all(missed.count(task) <= 2 for task in chats.TASKS), score.wrong


def test_people_s_own_phrasings(runner: evaluate.Runner) -> None:
    wanted = {
        "What is 12 + 35?": "12 + 35 = 40 + 7 = 47.",
        "12+35": "12 + 35 = 40 + 7 = 47.",
        "Please add 12 and 35.": "12 + 35 = 40 + 7 = 47.",
        "what is two plus three": "2 + 3 = 5.",
        "Which is larger, 7 or 70?": "Of 7 and 70, 70 is larger.",
        "Is 12 larger than 35?": "Of 12 and 35, 35 is larger, so no.",
        "What day is 3 days after Monday?": "3 days after Monday: Tuesday, Wednesday, Thursday.",
        "What day comes after Friday?": "Saturday comes after Friday.",
        "How many days does February have?": "February has 28 days, and 29 in a leap year.",
        "Spell the word planet.": '"planet" is spelled p-l-a-n-e-t.',
        "reverse mesh": '"mesh" backwards is "hsem".',
        "What is a relay?": phrases.GLOSSARY["relay"],
        "What is the ring?": phrases.GLOSSARY["ring"],
        "Hello!": phrases.HELLO,
        "Who are you?": phrases.WHO,
        "What is the capital of France?": phrases.UNKNOWN,
        "What is 1200 + 35?": phrases.ADD_LIMIT,
    }
    assert dict(zip(wanted, ask(runner, *wanted), strict=True)) == wanted


def test_a_system_text_and_earlier_turns_do_no_harm(runner: evaluate.Runner) -> None:
    history = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is a head?"},
        {"role": "assistant", "content": phrases.GLOSSARY["head"]},
        {"role": "user", "content": "What is 20 + 30?"},
    ]
    assert runner.answers([history, history[:2]]) == [
        "20 + 30 = 50 + 0 = 50.",
        phrases.GLOSSARY["head"],
    ]


def test_side_by_side_answers_are_those_of_one_alone(runner: evaluate.Runner) -> None:
    questions = ["What is 9 + 81?", "Reverse lantern.", "What is a ticket?"]
    assert ask(runner, *questions) == [ask(runner, question)[0] for question in questions]


def test_an_answer_that_does_not_end_is_none(runner: evaluate.Runner) -> None:
    chat = [{"role": "user", "content": "What is a ticket?"}]
    assert runner.answers([chat], max_tokens=3) == [None]


def test_logits_are_those_of_the_whole_vocabulary(runner: evaluate.Runner) -> None:
    row = runner.logits(runner.prompt([{"role": "user", "content": "What is a node?"}]))
    assert row.shape == (len(tokenizer.tokens()),)
    assert tokenizer.tokens()[int(row.argmax())] == "A"


def test_a_cut_file_is_one_clear_error(tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(bundled.path().read_bytes()[:100_000])
    with pytest.raises(ModelError, match=r"cannot load .*cut\.gguf"):
        evaluate.Runner(cut)


def test_export_writes_what_llama_cpp_computes(tmp_path: Path) -> None:
    """A model whose one layer adds nothing: the logits are embedding times output, normed."""
    shape = net.Shape(
        layers=1, width=32, heads=2, feed_forward=32, vocabulary=train.shape().vocabulary
    )
    rng = np.random.default_rng(1)
    vocabulary = rng.standard_normal((2, shape.vocabulary, 32)).astype(np.float16)
    weights = {
        name: np.zeros((1, 32, 32)) for name in ("attn_q", "attn_k", "attn_v", "attn_output")
    }
    weights |= {name: np.zeros((1, 32, 32)) for name in ("ffn_gate", "ffn_up", "ffn_down")}
    weights |= {name: np.ones((1, 32)) for name in ("attn_norm", "ffn_norm")}
    weights |= {"output_norm": np.ones(32), "token_embd": vocabulary[0], "output": vocabulary[1]}
    file = tmp_path / "small.gguf"
    export.write(file, shape, weights)
    with evaluate.Runner(file, at_once=1) as one:
        found = one.logits([tokenizer.BOS, tokenizer.USER])
    x = vocabulary[0][tokenizer.USER].astype(np.float32)
    expected = vocabulary[1].astype(np.float32) @ (x / np.sqrt((x * x).mean() + 1e-5))
    assert np.abs(found - expected).max() < 0.02


def test_heads_are_reordered_from_halves_to_pairs() -> None:
    weight = np.arange(8.0).reshape(8, 1)  # two heads of four values
    assert export.paired(weight, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_training_without_pytorch_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert train.main(["--work", str(tmp_path / "work")]) == 5
    message = capsys.readouterr().err
    assert message.startswith("error: training needs PyTorch") and "covey[train]" in message
    assert message.count("\n") == 1


def test_batches_depend_on_their_number_alone() -> None:
    first = train.batches(3)
    assert first == train.batches(3)
    assert sum(len(ids) for rows in first for ids, _ in rows) >= train.BATCH_TOKENS * 8
    for rows in first:
        longest = max(len(ids) for ids, _ in rows)
        assert len(rows) == 1 or longest * len(rows) <= train.BATCH_TOKENS


def test_the_rate_warms_up_stays_and_falls() -> None:
    rates = [train.rate_part(step, 1000) for step in range(1001)]
    assert rates[0] < 0.02 and rates[200] == 1.0 and rates[1000] == 0.0
    assert rates[:200] == sorted(rates[:200])
    assert rates[250:] == sorted(rates[250:], reverse=True)
