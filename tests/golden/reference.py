#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Llama forward pass in numpy: the yardstick that engines are judged by.

Weights are dequantised to real numbers and every operation runs in float64 (or --dtype float32). --emulate rounds
what a low-precision engine would round, so that bounds for such engines can be measured instead of guessed.

  reference.py expect CASES.jsonl -o GOLDEN.jsonl           greedy continuation and logits of each case
  reference.py answer GOLDEN.jsonl -o ANSWERS.jsonl         the same steps, teacher-forced, as check.py reads them
  reference.py nll    NLL.jsonl    -o NLL.jsonl             negative log-likelihood of each prompt, per position

All take --model FILE.gguf, and --dtype, --emulate, --only NAME,NAME. Needs numpy and gguf. Formats: README.md.
"""
import argparse, json, sys, time
from dataclasses import dataclass

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

CHUNK = 512  # prompt positions per pass; bounds the score matrix to CHUNK x context
TOP = 8      # logits recorded per position


def to_bf16(x):
    """Nearest bfloat16, ties to even, kept in the dtype of x."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(x.dtype)


def to_q8(x):
    """Signed 8 bit in blocks of 32 with an fp16 scale, as GGUF engines quantise activations."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    scale = np.abs(blocks).max(-1, keepdims=True) / 127
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    return (np.rint(blocks * inverse) * scale.astype(np.float16).astype(x.dtype)).reshape(x.shape)


def as_is(x):
    return x


@dataclass(frozen=True)
class Rounding:
    """What an engine rounds. linear: activations entering a matmul; state: the residual stream and op outputs."""
    weight: callable = as_is
    linear: callable = as_is
    query: callable = as_is
    kv: callable = as_is
    probs: callable = as_is
    state: callable = as_is


EMULATE = {
    "none": Rounding(),
    "bf16": Rounding(weight=to_bf16, linear=to_bf16, query=to_bf16, kv=to_bf16, probs=to_bf16),
    "bf16state": Rounding(to_bf16, to_bf16, to_bf16, to_bf16, to_bf16, to_bf16),
    "q8act": Rounding(linear=to_q8, kv=to_bf16),
}


class Config:
    def __init__(self, reader):
        def value(key, default=None):
            field = reader.fields.get(f"llama.{key}")
            return field.contents() if field else default

        assert reader.fields["general.architecture"].contents() == "llama", "not a llama GGUF"
        assert value("rope.scaling.type", "none") == "none", "RoPE scaling is not implemented here"
        self.layers = value("block_count")
        self.dim = value("embedding_length")
        self.heads = value("attention.head_count")
        self.kv_heads = value("attention.head_count_kv", self.heads)
        self.head_dim = value("attention.key_length", self.dim // self.heads)
        self.context = value("context_length")
        self.rope_base = value("rope.freq_base", 10000.0)
        self.eps = value("attention.layer_norm_rms_epsilon")
        assert value("rope.dimension_count", self.head_dim) == self.head_dim, "partial RoPE is not implemented here"


class Cache:
    """Keys (after RoPE) and values of one sequence: per layer [capacity, kv_heads, head_dim]."""

    def __init__(self, config, capacity, dtype):
        shape = (config.layers, capacity, config.kv_heads, config.head_dim)
        self.k, self.v, self.length = np.empty(shape, dtype), np.empty(shape, dtype), 0


class Llama:
    def __init__(self, path, dtype=np.float64, rounding=Rounding()):
        reader = GGUFReader(path)
        self.config, self.dtype, self.rounding = Config(reader), dtype, rounding
        self.w = {t.name: dequantize(t.data, t.tensor_type).astype(dtype) for t in reader.tensors}
        self.w = {n: rounding.weight(w) if w.ndim == 2 else w for n, w in self.w.items()}  # norms stay as they are
        self.head = self.w.get("output.weight", self.w["token_embd.weight"])  # absent when tied to the embedding

    def new_cache(self, capacity):
        return Cache(self.config, capacity, self.dtype)

    def linear(self, x, name):
        return self.rounding.state(self.rounding.linear(x) @ self.w[name].T)

    def norm(self, x, name):
        scale = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.config.eps)
        return self.rounding.state(x * scale.astype(self.dtype) * self.w[name])

    def rope(self, x, first_pos):
        """Rotates x [T, heads, head_dim] in adjacent pairs (0,1), (2,3), ...

        That is the GGUF convention: the converter reorders the rows of the Q and K weights of each head so that the
        pair (i, i + head_dim/2) of the Hugging Face layout becomes (2i, 2i + 1). Angles are always float64.
        """
        half = self.config.head_dim // 2
        freq = self.config.rope_base ** (-np.arange(half, dtype=np.float64) / half)
        angle = (first_pos + np.arange(len(x), dtype=np.float64))[:, None, None] * freq
        cos, sin = np.cos(angle).astype(self.dtype), np.sin(angle).astype(self.dtype)
        even, odd = x[..., 0::2], x[..., 1::2]
        out = np.empty_like(x)
        out[..., 0::2], out[..., 1::2] = even * cos - odd * sin, even * sin + odd * cos
        return out

    def attend(self, q, k, v):
        """q [T, heads, D] are the last T of the positions in k, v [P, kv_heads, D]; causal; returns [T, heads*D]."""
        rows, heads, width = q.shape
        group = heads // k.shape[1]  # query head h reads key/value head h // group
        future = np.triu(np.ones((rows, rows), bool), 1)
        out = np.empty_like(q)
        for h in range(heads):
            keys, values = k[:, h // group], v[:, h // group]
            scores = q[:, h] @ keys.T
            scores *= width ** -0.5
            scores[:, len(k) - rows:][future] = -np.inf
            scores -= scores.max(axis=1, keepdims=True)
            np.exp(scores, out=scores)
            out[:, h] = self.rounding.probs(scores) @ values / scores.sum(axis=1, keepdims=True)
        return self.rounding.state(out.reshape(rows, -1))

    def layer(self, x, i, cache):
        c, r, b, T = self.config, self.rounding, f"blk.{i}.", len(x)
        h = self.norm(x, b + "attn_norm.weight")
        q = self.linear(h, b + "attn_q.weight").reshape(T, c.heads, c.head_dim)
        k = self.linear(h, b + "attn_k.weight").reshape(T, c.kv_heads, c.head_dim)
        v = self.linear(h, b + "attn_v.weight").reshape(T, c.kv_heads, c.head_dim)
        start, end = cache.length, cache.length + T
        cache.k[i, start:end] = r.kv(self.rope(k, start))
        cache.v[i, start:end] = r.kv(v)
        a = self.attend(r.query(self.rope(q, start)), cache.k[i, :end], cache.v[i, :end])
        x = r.state(x + self.linear(a, b + "attn_output.weight"))
        h = self.norm(x, b + "ffn_norm.weight")
        gate, up = self.linear(h, b + "ffn_gate.weight"), self.linear(h, b + "ffn_up.weight")
        h = r.state(gate / (1 + np.exp(-gate)) * up)
        return r.state(x + self.linear(h, b + "ffn_down.weight"))

    def advance(self, ids, cache):
        """Appends ids to the cache; returns their final normalised hidden states [len(ids), dim]."""
        done = []
        for at in range(0, len(ids), CHUNK):
            chunk = ids[at:at + CHUNK]
            x = self.w["token_embd.weight"][chunk]
            for i in range(self.config.layers):
                x = self.layer(x, i, cache)
            cache.length += len(chunk)
            done.append(self.norm(x, "output_norm.weight"))
        return np.concatenate(done)

    def logits(self, hidden):
        return self.rounding.linear(hidden) @ self.head.T


def log_sum_exp(row):
    top = row.max()
    return float(top + np.log(np.exp(row - top).sum()))


def top_of(row):
    """The TOP largest logits, ties to the smaller id (the rule for greedy choice), with lse and margin."""
    ids = np.lexsort((np.arange(len(row)), -row))[:TOP]
    return {"top_ids": ids.tolist(), "top_logits": [round(float(row[i]), 9) for i in ids],
            "lse": round(log_sum_exp(row), 9), "margin": round(float(row[ids[0]] - row[ids[1]]), 9)}


def expect(model, case):
    """Greedy continuation of case["prompt_ids"] by case["n_new"] tokens, or through the first of case["stop_ids"]."""
    prompt, steps, ids = case["prompt_ids"], [], []
    cache = model.new_cache(len(prompt) + case["n_new"])
    hidden = model.advance(prompt, cache)
    probes = [{"pos": p, **top_of(model.logits(hidden[p]))} for p in case.get("probe_positions", [])]
    last = hidden[-1]
    for _ in range(case["n_new"]):
        steps.append(top_of(model.logits(last)))
        ids.append(steps[-1]["top_ids"][0])
        if ids[-1] in case.get("stop_ids", []):
            break
        last = model.advance(ids[-1:], cache)[-1]
    return {**case, "ids": ids, "steps": steps, "probes": probes}


def answer(model, golden):
    """One teacher-forced pass over prompt and golden ids, reporting the logits of the golden's listed ids."""
    prompt, ids = golden["prompt_ids"], golden["ids"]
    fed = prompt + ids[:-1]
    hidden = model.advance(fed, model.new_cache(len(fed)))

    def look(pos, wanted):
        row = model.logits(hidden[pos])
        return {"argmax": int(row.argmax()), "logits": [float(row[i]) for i in wanted["top_ids"]],
                "lse": log_sum_exp(row)}

    return {"name": golden["name"],
            "steps": [look(len(prompt) - 1 + i, s) for i, s in enumerate(golden["steps"])],
            "probes": [look(p["pos"], p) for p in golden["probes"]]}


def nll(model, case, block=512):
    """-log p(ids[i + 1] | ids[0..i]) for every i; means per block of 512 target positions and over all."""
    ids = case["prompt_ids"]
    hidden, loss = model.advance(ids, model.new_cache(len(ids))), []
    for at in range(0, len(ids) - 1, 64):
        targets = ids[at + 1:at + 65]
        rows = model.logits(hidden[at:at + len(targets)])
        loss += [log_sum_exp(row) - float(row[t]) for row, t in zip(rows, targets)]
    blocks = [float(np.mean(loss[max(b - 1, 0):b + block - 1])) for b in range(0, len(ids), block)]
    return {"name": case["name"], "prompt_ids": ids, "mean": round(float(np.mean(loss)), 9),
            "block_means": [round(b, 9) for b in blocks], "losses": [round(x, 7) for x in loss]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["expect", "answer", "nll"])
    parser.add_argument("input")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--model", required=True, help="a llama GGUF file")
    parser.add_argument("--dtype", default="float64", choices=["float64", "float32"])
    parser.add_argument("--emulate", default="none", choices=list(EMULATE))
    parser.add_argument("--only", help="names of the cases to run, comma-separated")
    args = parser.parse_args()

    model = Llama(args.model, np.dtype(args.dtype).type, EMULATE[args.emulate])
    with open(args.input) as source, open(args.output, "w") as target:
        for case in map(json.loads, source):
            if args.only and case["name"] not in args.only.split(","):
                continue
            began = time.monotonic()
            result = {"expect": expect, "answer": answer, "nll": nll}[args.what](model, case)
            print(json.dumps(result, ensure_ascii=False), file=target, flush=True)
            print(f"{case['name']}: {len(case['prompt_ids'])} tokens, {time.monotonic() - began:.0f} s",
                  file=sys.stderr)


if __name__ == "__main__":
    main()
