#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Converts Llama 3's tiktoken file into the tokenizer.json that Hugging Face checkpoints carry.

  make_llama3_tokenizer_json.py tokenizer.model -o tokenizer.json

tokenizer.model lists base64(bytes) and rank; README.md says where to get it. What has to be recovered:
- merges: tiktoken joins any two neighbours whose concatenation has a rank, lowest rank first. So every split of a
  token into two tokens is a merge, ordered by the rank of the result.
- ignore_merges: tiktoken looks a whole pre-token up before it merges anything; some tokens cannot be reached by merges.
Standard library only.
"""
import argparse, base64, json

PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
NAMED = ["begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1",
         "finetune_right_pad_id", "step_id", "start_header_id", "end_header_id", "eom_id", "eot_id",
         "python_tag", "image"]
SPECIALS = 256


def byte_alphabet():
    """GPT-2's printable stand-in for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def read_ranks(path):
    with open(path) as f:
        return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in f if line.strip())}


def all_merges(ranks):
    for token in sorted(ranks, key=ranks.get):
        pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
        yield from sorted(((a, b) for a, b in pairs if a in ranks and b in ranks),
                          key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def tokenizer_json(ranks):
    alphabet = byte_alphabet()
    spell = lambda token: "".join(alphabet[b] for b in token)
    names = NAMED + [f"reserved_special_token_{i}" for i in range(2, 2 + SPECIALS - len(NAMED))]
    added = [{"id": len(ranks) + i, "content": f"<|{name}|>", "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for i, name in enumerate(names)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    begin = added[0]["content"]
    piece = lambda kind, name, type_id: {kind: {"id": name, "type_id": type_id}}
    single = [piece("SpecialToken", begin, 0), piece("Sequence", "A", 0)]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}, byte_level]},
        "post_processor": {
            "type": "TemplateProcessing", "single": single,
            "pair": single + [piece("SpecialToken", begin, 1), piece("Sequence", "B", 1)],
            "special_tokens": {begin: {"id": begin, "ids": [len(ranks)], "tokens": [begin]}}},
        "decoder": {**byte_level, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
                  "vocab": {spell(t): r for t, r in ranks.items()},
                  "merges": [f"{spell(a)} {spell(b)}" for a, b in all_merges(ranks)]}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-o", "--output", required=True)
    args = parser.parse_args()
    made = tokenizer_json(read_ranks(args.model))
    with open(args.output, "w") as f:
        json.dump(made, f, ensure_ascii=False)
    print(f"{len(made['model']['vocab'])} tokens, {len(made['model']['merges'])} merges, "
          f"{len(made['added_tokens'])} special tokens")


if __name__ == "__main__":
    main()
