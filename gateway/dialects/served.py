"""Which dialects are served, by the path that clients POST to. A core, used by `app.py`."""

from __future__ import annotations

from gateway.dialects import anthropic, foundation, ollama, ollama_embed, responses, tokens
from gateway.dialects.names import Known
from gateway.dialects.port import Dialect

DIALECTS: dict[str, Dialect] = {
    "/v1/messages": anthropic.Messages(),
    "/v1/messages/count_tokens": anthropic.CountTokens(),
    "/v1/responses": responses.Responses(),
}


def by_name(known: Known) -> dict[str, Dialect]:
    """Return those that look at the names of the models that there are."""
    return {
        "/tokenize": tokens.Tokens("/tokenize", known),
        "/detokenize": tokens.Tokens("/detokenize", known),
        "/api/chat": ollama.Chat(known),
        "/api/generate": ollama.Generate(known),
        "/api/embed": ollama_embed.Embed(known),
        "/api/embeddings": ollama_embed.Embeddings(known),
        "/generate": foundation.Generate(known),
    }
