"""Models' files, and what else of a model is read: templates, grammars, what a model says.

Targets for `decoders.py`. A GGUF file is made by anybody; the agent reads its header itself, and
llama.cpp, which an engine process encloses, only what passed here.
"""

from __future__ import annotations

import dataclasses
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import gguf
import msgspec
import numpy as np
from target import Target
from underlay import file_reader

from agent.engine import cut, cuttable, gbnf, splits
from agent.engine.gguf_file import GgufFile
from agent.engine.serve import tools
from agent.engine.serve.json_grammar import JsonGrammar
from agent.engine.serve.template import ChatTemplate
from agent.errors import UsageError
from agent.models import partfile, wanted
from agent.unreadable import UNREADABLE

NOW = datetime(2026, 1, 2, tzinfo=UTC)
TEMPLATE = (
    b"{%- for m in messages %}{{ m['role'] + ':' }}{{ m.content | trim }}\n{% endfor %}"
    b"{% if add_generation_prompt %}{{ bos_token }}{{ strftime_now('%Y') }}{% endif %}"
)
GRAMMAR = b'root ::= (item "," ws)* item{1,3}\nitem ::= [a-z]+ | "\\"" root "\\""\nws ::= " "?\n'
SCHEMAS = (
    b'{"type":"object","properties":{"a":{"type":"integer","minimum":-5,"maximum":120},'
    b'"b":{"type":"array","items":{"$ref":"#/$defs/x"},"minItems":1,"maxItems":3}},'
    b'"required":["a"],"additionalProperties":{"type":"string","maxLength":9},'
    b'"$defs":{"x":{"anyOf":[{"enum":["p","q"]},{"type":["null","number"]}]}}}',
    b'{"allOf":[{"$ref":"#/definitions/t"},{"required":["next"]}],"definitions":{"t":'
    b'{"type":"object","properties":{"next":{"$ref":"#/definitions/t"}}}}}',
    b'{"prefixItems":[{"const":1.5},{"format":"date-time","type":"string"}],"items":false}',
)
CALLS = (
    b'<tool_call>{"name":"f","arguments":{"a":[1,2]}}</tool_call> and <tool_call>{"name":"g"}',
    b'[TOOL_CALLS][{"name":"f","arguments":{}}]', b'[TOOL_CALLS]f[ARGS]{"a":1}[TOOL_CALLS]g[ARGS]{',
    b'<|python_tag|>{"name":"f","parameters":{"a":"}"}}; {"name":"g","parameters":{}}',
)  # fmt: skip


def targets() -> list[Target]:
    """Return them, with samples."""
    header = partfile.Header(plan="0" * 64)
    return [
        Target("GGUF file", file_reader(look, "model.gguf"), (model(), model(part=True))),
        Target("GGUF file to cut", file_reader(cut_there, "model.gguf"), (model(),),
               (UsageError, *Target.refuses_with, ValueError)),
        Target("file of a split model", lambda raw: splits.parse(raw.decode(errors="replace")),
               (b"small-00001-of-00003.gguf",), ()),
        Target("chat template", render, (TEMPLATE,), (UsageError,)),
        Target("grammar", lambda raw: gbnf.check(raw.decode(errors="surrogateescape")),
               (GRAMMAR, JsonGrammar().text("value").encode()), (UsageError,)),
        Target("schema", to_grammar, SCHEMAS, (UsageError, *UNREADABLE)),
        Target("calls of tools", read_calls, CALLS, ()),
        Target("journal of a transfer",
               file_reader(lambda path: partfile._read(path, header, 9), "model.journal"),
               (msgspec.json.encode(header) + b"\n3\n5\n",), ()),
        Target("name of a model's source", parse_source,
               (b"hf:org/repo/small-00001-of-00002.gguf", b"https://example.com/a.gguf", b"/a/b"),
               (UsageError,)),
    ]  # fmt: skip


def model(*, part: bool = False) -> bytes:
    """Return a tiny model with a few fields and tensors; `part`: one that was cut."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.gguf")
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_name("tiny")
        writer.add_context_length(64)
        writer.add_embedding_length(32)
        writer.add_block_count(2)
        writer.add_head_count(2)
        writer.add_head_count_kv([2, 1] if part else 2)
        if not part:
            writer.add_feed_forward_length(32)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_token_list([b"<s>", b"a", b"b"])
        writer.add_chat_template(TEMPLATE.decode())
        if part:
            for key, value in (("start", 0), ("stop", 1), ("layers", 2)):
                writer.add_uint32(f"covey.cut.{key}", value)
            writer.add_string("covey.cut.model_sha256", "0" * 64)
        kind = gguf.GGMLQuantizationType.Q8_0
        rows = gguf.quants.quantize(np.ones((3, 32), np.float32), kind)
        writer.add_tensor("token_embd.weight", rows, raw_dtype=kind)
        writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
        for layer in range(2):
            writer.add_tensor(f"blk.{layer}.attn_norm.weight", np.ones(32, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def look(path: Path) -> object:
    """Read all that the agent ever asks of a model's file."""
    with GgufFile(path) as file:
        origin = cut.origin(file)
        for field in file.fields.values():
            file.get(field.key)
        facts = file.facts()
        return origin, file.header_sha256, cuttable.cut_rule(file), dataclasses.asdict(facts)


def cut_there(path: Path) -> object:
    """Cut a model's file into two, if it may be cut."""
    with GgufFile(path) as file:
        cut.needed(file, 1, file.layers)
        return cut.write_part(file, 0, 1, path.with_name("part.gguf"))


def render(raw: bytes) -> str:
    """Compile a template and render two messages by it."""
    template = ChatTemplate(raw.decode(errors="replace"), bos="<s>", eos="</s>")
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    return template.render(messages, now=NOW, tools=[{"name": "f"}])


def to_grammar(raw: bytes) -> None:
    """Make a grammar of a schema; it has to be one that is read."""
    schema = msgspec.json.decode(raw)
    grammar = JsonGrammar()
    gbnf.check(grammar.text(grammar.schema(schema)))


def read_calls(raw: bytes) -> None:
    """Look for calls in an answer that comes in pieces, for every format there is."""
    text = raw.decode(errors="replace")
    for _, format_ in tools._FORMATS:
        reader = tools.CallReader(format_, ("f", "g"), lambda: "call_1", several=True)
        for at in range(0, len(text), 16):
            reader.push(text[at : at + 16])
        reader.flush()


def parse_source(raw: bytes) -> object:
    """Say where a model is to come from."""
    text = raw.decode(errors="surrogateescape")
    return wanted.parse(text, "", "", "https://huggingface.co", ())
