#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Judges an engine's answers against the goldens; exit status 0 when every case passes.

  check.py GOLDEN.jsonl ANSWERS.jsonl --class {fp32,bf16,bf16state,int8act} [--partial]

One answer a line, matched by name; either of the first two for a generation case:
  {"name", "steps": [{"argmax", "logits"}], "probes": [{"argmax", "logits"}]}   teacher-forced: step i has seen the
      prompt and the golden ids before i. logits: of the golden's top_ids, in that order; "logprobs" instead is as
      good; "lse" is judged when given; probes may be left out.
  {"name", "ids"}                    free-running greedy; judged up to the first step that differs, which must be a tie
  {"name", "mean", "block_means"}    for a likelihood case
--partial: do not fail for cases without an answer. Standard library only.
"""
import argparse, json, sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Bound:
    worst: float  # largest deviation of a logit
    mean: float   # mean deviation over a case
    tie: float    # logits this close may swap
    agree: float  # least share of positions with the golden's argmax, over all cases together
    nll: float    # deviation of the mean negative log-likelihood, nats per token


BOUNDS = {  # about twice what was measured: README.md
    "fp32": Bound(worst=0.001, mean=0.0002, tie=0.001, agree=0.99, nll=0.00001),
    "bf16": Bound(worst=0.8, mean=0.15, tie=0.6, agree=0.97, nll=0.0015),
    "bf16state": Bound(worst=1.5, mean=0.3, tie=1.1, agree=0.97, nll=0.0015),
    "int8act": Bound(worst=2.8, mean=0.45, tie=2.7, agree=0.92, nll=0.006),
}


@dataclass(frozen=True)
class Verdict:
    fault: str       # what is wrong; empty when nothing is
    said: str = ""   # measurements
    agreed: int = 0  # positions whose argmax is the golden's
    looked: int = 0


def ties(step, bound):
    """The ids that an honest engine may choose here."""
    return [i for i, x in zip(step["top_ids"], step["top_logits"]) if step["top_logits"][0] - x <= bound.tie]


def deviations(golden, answer):
    shift = golden["lse"] if "logprobs" in answer else 0.0
    given = answer.get("logprobs") or answer["logits"]
    if len(given) != len(golden["top_logits"]):
        raise ValueError(f"{len(given)} logits for {len(golden['top_logits'])} ids")
    out = [abs(a - (g - shift)) for a, g in zip(given, golden["top_logits"])]
    return out + ([abs(answer["lse"] - golden["lse"])] if "lse" in answer else [])


def judge_forced(golden, answer, bound):
    steps, probes = answer["steps"], answer.get("probes") or []
    if len(steps) != len(golden["steps"]) or len(probes) not in (0, len(golden["probes"])):
        return Verdict(f"{len(steps)} steps and {len(probes)} probes")
    pairs = list(zip(golden["steps"] + golden["probes"], steps + probes))
    off = [d for g, a in pairs for d in deviations(g, a)]
    wrong = [i for i, (g, a) in enumerate(pairs) if a["argmax"] not in ties(g, bound)]
    agreed = sum(a["argmax"] == g["top_ids"][0] for g, a in pairs)
    mean = sum(off) / len(off)
    faults = [f"argmax wrong at {wrong[:5]}"] * bool(wrong)
    faults += ["worst"] * (not max(off) <= bound.worst) + ["mean"] * (not mean <= bound.mean)  # NaN fails
    said = f"worst {max(off):.2e} mean {mean:.2e} top-1 {agreed}/{len(pairs)}"
    return Verdict(", ".join(faults), said, agreed, len(pairs))


def judge_free(golden, answer, bound):
    ids = answer["ids"]
    if len(ids) < len(golden["ids"]):
        return Verdict(f"only {len(ids)} of {len(golden['ids'])} ids")
    for i, (want, got) in enumerate(zip(golden["ids"], ids)):
        if want != got:
            said = f"leaves at step {i}, margin {golden['steps'][i]['margin']:.3g}"
            return Verdict("" if got in ties(golden["steps"][i], bound) else "no tie there", said)
    return Verdict("", f"all {len(golden['ids'])} ids")


def judge_nll(golden, answer, bound):
    off = [abs(a - g) for a, g in zip([answer["mean"], *answer["block_means"]],
                                      [golden["mean"], *golden["block_means"]], strict=True)]
    faults = ["mean"] * (not off[0] <= bound.nll) + ["a block"] * (not max(off[1:]) <= 4 * bound.nll)
    return Verdict(", ".join(faults), f"mean {off[0]:.2e} worst block {max(off[1:]):.2e}")


def judge(golden, answer, bound):
    kind = judge_nll if "losses" in golden else judge_forced if "steps" in answer else judge_free
    try:
        return kind(golden, answer, bound)
    except (KeyError, TypeError, ValueError) as error:
        return Verdict(f"malformed answer: {error!r}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("golden")
    parser.add_argument("answers")
    parser.add_argument("--class", dest="kind", required=True, choices=list(BOUNDS))
    parser.add_argument("--partial", action="store_true")
    args = parser.parse_args()
    bound, verdicts = BOUNDS[args.kind], []
    with open(args.answers) as f:
        answers = {a["name"]: a for a in map(json.loads, f)}
    with open(args.golden) as f:
        for golden in map(json.loads, f):
            if golden["name"] in answers:
                verdict = judge(golden, answers[golden["name"]], bound)
            else:
                verdict = Verdict("" if args.partial else "no answer", "skipped")
            verdicts.append(verdict)
            print(f"{'FAIL' if verdict.fault else 'pass'}  {golden['name']:16} {verdict.said}"
                  f"{'  <- ' + verdict.fault if verdict.fault else ''}")
    agreed, looked = sum(v.agreed for v in verdicts), sum(v.looked for v in verdicts)
    enough = agreed >= bound.agree * looked
    if looked:
        print(f"{'pass' if enough else 'FAIL'}  top-1 in all    {agreed}/{looked} = {agreed / looked:.1%}")
    sys.exit(any(v.fault for v in verdicts) or not enough)


if __name__ == "__main__":
    main()
