# SPDX-License-Identifier: Apache-2.0
"""The tokenizer and chat template of a GGUF file, rebuilt with the `tokenizers` and `jinja2` packages.

Covers GPT-2 style byte-level BPE with the "smollm" pre-tokenizer: every numeric character stands alone, then the
GPT-2 pattern splits the rest. Nothing is normalised and no BOS is added (the file says add_bos_token = false).
"""
from gguf import GGUFReader
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTROL = 3  # tokenizer.ggml.token_type


class GgufTokenizer:
    def __init__(self, path):
        fields = GGUFReader(path).fields
        get = lambda key: fields[f"tokenizer.{key}"].contents()
        assert (get("ggml.model"), get("ggml.pre")) == ("gpt2", "smollm"), "only the smollm pre-tokenizer"
        tokens = get("ggml.tokens")
        self.eos_id = get("ggml.eos_token_id")
        self.control = [t for t, kind in zip(tokens, get("ggml.token_type")) if kind == CONTROL]
        merges = [tuple(m.split(" ", 1)) for m in get("ggml.merges")]
        self.hf = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
        self.hf.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
        self.hf.decoder = decoders.ByteLevel()
        self.hf.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in self.control])
        jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        self.template = jinja.from_string(get("chat_template"))
        self._bytes = {c: b for b, c in byte_alphabet().items()}
        self._tokens, self._control = tokens, set(self.control)

    def encode(self, text, parse_special=False):
        """parse_special: whether "<|im_end|>" in the text becomes that control token or plain characters."""
        self.hf.encode_special_tokens = not parse_special
        return self.hf.encode(text, add_special_tokens=False).ids

    def token_bytes(self, token_id):
        """The bytes that a token stands for; a control token stands for its name."""
        token = self._tokens[token_id]
        return token.encode() if token in self._control else bytes(self._bytes[c] for c in token)

    def render(self, messages, add_generation_prompt=True):
        return self.template.render(messages=messages, add_generation_prompt=add_generation_prompt)

    def encode_chat(self, messages, add_generation_prompt=True):
        """Ids of the rendered template, in which only the template's own control tokens are control tokens.

        Every "<" in a content (all control tokens start with it) is followed by a private-use mark while the template
        runs, so no control token can appear in or around a content; marks go before encoding. What lies between two
        control tokens is encoded as one text, so ids equal those of the whole text with parse_special wherever no
        content looks like a control token.
        """
        contents = "".join(m["content"] for m in messages)
        mark = next(c for c in map(chr, range(0xE000, 0xF900)) if c not in contents)
        marked = [{**m, "content": m["content"].replace("<", "<" + mark)} for m in messages]
        pieces = split_control(self.render(marked, add_generation_prompt), self.control)
        return [i for p in pieces for i in self.encode(p.replace(mark, ""), parse_special=p in self._control)]


def split_control(text, control):
    """Cuts text into control tokens and what lies between them."""
    pieces, start = [], 0
    while start < len(text):
        found = [(at, -len(t), t) for t in control if (at := text.find(t, start)) >= 0]
        if not found:
            pieces.append(text[start:])
            break
        at, _, token = min(found)
        pieces += [text[start:at], token] if at > start else [token]
        start = at + len(token)
    return pieces


def byte_alphabet():
    """GPT-2's printable stand-in for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
