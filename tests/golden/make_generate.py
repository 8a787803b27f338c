#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Builds generate.jsonl from specs.jsonl: prompts to ids, then the reference's expectations.

  make_generate.py SPECS.jsonl -o GENERATE.jsonl --model FILE.gguf [--only NAME,NAME]

One spec a line: name, n_new, and one of
  text      a plain prompt; a string, or a list of strings and {"file", "from", "to"} (character offsets)
  messages  a chat, rendered with the model's template; content like text
  turns     a session: [{"user": text, "n_new": most tokens}]; writes one case a turn, named NAME-turn1 and so on.
            A turn's prompt is every id so far plus the new message; generation stops at end-of-turn.
Optional: tokens (keep only the first so many), batch (cases that belong into one batch), probe_positions.
A file "texts/NAME.txt" is the licence text /usr/share/common-licenses/NAME of Debian, checked by its sum.
"""
import argparse, hashlib, json, os, sys, time

import reference
from gguf_tokenizer import GgufTokenizer


LICENSES = "/usr/share/common-licenses"
SUMS = {"GPL-3": "3972dc9744f6499f0f9b2dbf76696f2ae7ad8af9b23dde66d6af86c9dfb36986",
        "Apache-2.0": "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"}


def quoted_file(name):
    """The text that a spec calls texts/NAME.txt."""
    license_name = os.path.basename(name).removesuffix(".txt")
    path = os.path.join(LICENSES, license_name)
    with open(path, "rb") as f:
        raw = f.read()
    if hashlib.sha256(raw).hexdigest() != SUMS[license_name]:
        sys.exit(f"{path} is not the text that the goldens quote (sha256 {SUMS[license_name]})")
    return raw.decode()


class Maker:
    def __init__(self, model_path):
        self.tokenizer, self.model = GgufTokenizer(model_path), reference.Llama(model_path)

    def text(self, parts):
        out = ""
        for part in [parts] if isinstance(parts, (str, dict)) else parts:
            if isinstance(part, dict):
                part = quoted_file(part["file"])[part.get("from", 0):part.get("to")]
            out += part
        return out

    def chat(self, messages):
        return self.tokenizer.encode_chat([{**m, "content": self.text(m["content"])} for m in messages])

    def case(self, name, ids, n_new, **fields):
        n = len(ids)
        spread = {0, 1, 2, *(n * k // 5 for k in (1, 2, 3, 4)), n - 2}
        return {"name": name, **fields, "prompt_ids": ids, "n_new": n_new,
                "probe_positions": sorted(p for p in spread if 0 <= p < n - 1)}

    def single(self, spec):
        source = {k: spec[k] for k in ("text", "messages", "batch") if k in spec}
        ids = self.chat(spec["messages"]) if "messages" in spec else self.tokenizer.encode(self.text(spec["text"]))
        yield reference.expect(self.model, self.case(spec["name"], ids[:spec.get("tokens")], spec["n_new"], **source))

    def session(self, spec):
        ids, closed, eos = [], True, self.tokenizer.eos_id
        for number, turn in enumerate(spec["turns"], 1):
            said = self.chat([{"role": "user", "content": turn["user"]}])
            if number > 1:  # the template puts the system message before a first user message: leave it out
                system = self.chat([{"role": "user", "content": ""}])
                opening = self.tokenizer.encode("user\n")
                start = next(i for i in range(len(system)) if system[i:i + len(opening)] == opening) - 1
                said = ([] if closed else [eos]) + self.tokenizer.encode("\n") + said[start:]
            case = self.case(f"{spec['name']}-turn{number}", ids + said, turn["n_new"], session=spec["name"],
                             turn=number, reused=len(ids), user=turn["user"], stop_ids=[eos])
            result = reference.expect(self.model, case)
            yield result
            ids = ids + said + result["ids"]
            closed = ids[-1] == eos


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--only")
    args = parser.parse_args()
    maker = Maker(args.model)
    with open(args.specs) as specs, open(args.output, "w") as out:
        for spec in map(json.loads, specs):
            if args.only and spec["name"] not in args.only.split(","):
                continue
            began = time.monotonic()
            for case in (maker.session if "turns" in spec else maker.single)(spec):
                print(json.dumps(case, ensure_ascii=False), file=out, flush=True)
                print(f"{case['name']}: {len(case['prompt_ids'])} + {len(case['ids'])} tokens, "
                      f"{time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
