#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws what `annulus-bench latency` measured, in the form of the figures and tables of arXiv 2411.01783.

    python latency_plot.py latency.json FOLDER        (annulus-bench latency --plot FOLDER calls it)

Each figure is written as SVG and PNG where its points are there: a sweep over CP for the first three and the breakdown
over layouts, several miss rates and variants for those over the miss rate.
"""
import json
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.patches import Patch  # noqa: E402
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator  # noqa: E402

VARIANTS = {  # Okabe and Ito's colours: told apart by everybody
    "pass-kv": ("pass-KV", "#0072B2", "o"),
    "pass-q": ("pass-Q", "#D55E00", "s"),
    "gather-q": ("gather-Q", "#009E73", "^"),
}
PARTS = [  # of a stacked bar, from below; hatched: exposed communication
    ("attention", "attention", "#0072B2", ""),
    ("gemm", "GEMM", "#999999", ""),
    ("other", "other computing", "#DDDDDD", ""),
    ("rest", "GEMM and other computing", "#BBBBBB", ""),
    ("sendrecv", "SendRecv", "#E69F00", "////"),
    ("all_to_all", "All2All", "#D55E00", "////"),
    ("all_gather", "AllGather", "#009E73", "////"),
    ("other_wait", "TP sums, sampled ids", "#F0E442", "////"),
]
EXPOSED = ("sendrecv", "all_to_all", "all_gather", "other_wait")

plt.rcParams.update({
    "figure.dpi": 150, "savefig.bbox": "tight", "font.size": 9, "axes.titlesize": 10, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#E6E6E6", "axes.axisbelow": True, "lines.linewidth": 1.6,
    "lines.markersize": 5, "legend.frameon": False, "hatch.linewidth": 0.5, "svg.hashsalt": "annulus",
})


def tokens(count):
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if count >= unit and count % unit == 0:
            return f"{count // unit}{name}"
    return f"{count:,}"


def variant_name(variant):
    return VARIANTS[variant][0] if variant in VARIANTS else variant


def duration(ms, _=None):
    return "0" if ms == 0 else f"{ms / 1000:g} s" if ms >= 1000 else f"{ms:g} ms"


def percent(share):
    return f"{100 * share:g} %"


def median(row, what):
    samples = row[what]["samples"]
    return statistics.median(samples) if samples else None


def spread(row, what):
    """The median's distance to the quartiles: what an error bar shows."""
    samples = row[what]["samples"]
    if len(samples) < 2:
        return 0, 0
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return middle - low, high - middle


class Results:
    def __init__(self, data):
        self.rows = data["rows"]
        self.model = data["model"]
        self.precision = data["precision"]
        devices = {rank["device"] for server in data["servers"] for rank in server["ranks"]}
        self.subtitle = f"{self.model}, {', '.join(sorted(devices))}" if devices else self.model

    def values(self, name):
        return sorted({row[name] for row in self.rows})

    def find(self, **wanted):
        return [row for row in self.rows if all(row[key] == value for key, value in wanted.items())]

    def served(self, **wanted):
        """What a user would see: the row of `auto`, else the fastest of the forced ones."""
        rows = self.find(**wanted)
        auto = [row for row in rows if row["variant"] == "auto"]
        return (auto or sorted(rows, key=lambda row: median(row, "ttft_ms")) or [None])[0]

    def sweep(self, axis, length, what, **fixed):
        """[(size of the axis, row)] of the prompt without a cached prefix, where it was measured."""
        rows = [self.served(length=length, miss=1, **{axis: size}, **fixed) for size in self.values(axis)]
        return [(row[axis], row) for row in rows if row and row[what]["samples"]]


def shades(count):
    return [plt.cm.viridis(0.05 + 0.8 * i / max(1, count - 1)) for i in range(count)]


def sizes_axis(axis, sizes, label):
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel(label)


def times_axis(axis, label):
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axis.yaxis.set_major_formatter(FuncFormatter(duration))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_ylabel(label)


def title(figure_or_axis, text, subtitle):
    figure_or_axis.set_title(f"{text}\n", loc="left", fontweight="bold")
    figure_or_axis.text(0, 1.02, subtitle, transform=figure_or_axis.transAxes, color="#666666", fontsize=8)


def over_cp(results, what, heading, label, ideal):
    """Figure 6 and Table 6 of the paper: one line a length; error bars span the middle half of the samples."""
    tp = results.values("tp")[0]
    lines = [(length, results.sweep("cp", length, what, tp=tp)) for length in results.values("length")]
    lines = [(length, points) for length, points in lines if len(points) > 1]
    if not lines:
        return None
    figure, axis = plt.subplots(figsize=(5.2, 3.6))
    for (length, points), colour in zip(lines, shades(len(lines))):
        sizes = [size for size, _ in points]
        ms = [median(row, what) for _, row in points]
        errors = list(zip(*(spread(row, what) for _, row in points)))
        axis.errorbar(sizes, ms, yerr=errors, color=colour, marker="o", capsize=2, elinewidth=0.8, label=tokens(length))
        if ideal:
            axis.plot(sizes, [ms[0] * sizes[0] / size for size in sizes], color=colour, ls=":", lw=0.9)
    sizes_axis(axis, sorted({size for _, points in lines for size, _ in points}),
               f"context-parallel ranks (CP), each of TP {tp}")
    if ideal:
        times_axis(axis, label)
    else:
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter(FuncFormatter(duration))
        axis.set_ylabel(label)
    title(axis, heading, results.subtitle)
    handles, labels = axis.get_legend_handles_labels()
    handles, labels = handles[::-1], labels[::-1]  # as the lines lie
    if ideal:
        handles.append(Line2D([], [], color="#666666", ls=":", lw=0.9))
        labels.append("1 / CP")
    axis.legend(handles, labels, title="tokens", loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def scaling(results):
    """Figure 7 of the paper: how many times as fast as the smallest layout."""
    tp, cp = results.values("tp")[0], results.values("cp")[0]
    sweeps = [("cp", "CP", "-", dict(tp=tp)), ("tp", "TP", "--", dict(cp=cp))]
    lengths = results.values("length")
    figure, axis = plt.subplots(figsize=(5.2, 3.6))
    ranks, drawn = {1}, set()
    for length, colour in zip(lengths, shades(len(lengths))):
        for name, label, style, fixed in sweeps:
            points = results.sweep(name, length, "ttft_ms", **fixed)
            if len(points) < 2:
                continue
            first_size, first = points[0]
            sizes = [size / first_size for size, _ in points]
            ratios = [median(first, "ttft_ms") / median(row, "ttft_ms") for _, row in points]
            axis.plot(sizes, ratios, color=colour, ls=style, marker="o", label=f"{label}, {tokens(length)}")
            ranks.update(sizes)
            drawn.add(label)
    if not drawn:
        plt.close(figure)
        return None
    most = max(ranks)
    axis.plot([1, most], [1, most], color="#666666", ls=":", lw=0.9, label="ideal")
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}x"))
    axis.set_ylabel("TTFT of the smallest layout / TTFT")
    sizes_axis(axis, sorted(ranks), f"{' or '.join(sorted(drawn))} in units of the smallest (TP {tp} x CP {cp})")
    title(axis, "Scaling ratio", results.subtitle)
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles[-1::-1], labels[-1::-1], title="tokens", loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def over_miss_rate(results, tp, cp, length):
    """Table 4 and Figure 9 of the paper: every variant's TTFT, and pass-KV's over pass-Q's; rings mark what auto chose."""
    rows = results.find(tp=tp, cp=cp, length=length)
    by = {v: {row["miss"]: row for row in rows if row["variant"] == v} for v in (*VARIANTS, "auto")}
    misses = sorted(by["pass-kv"].keys() & by["pass-q"].keys())
    if len(misses) < 2:
        return None
    figure, (times, ratios) = plt.subplots(2, 1, figsize=(5.2, 5.0), sharex=True, height_ratios=(3, 2))
    for variant, (label, colour, marker) in VARIANTS.items():
        points = sorted(by[variant].items())
        if not points:
            continue
        x = [100 * miss for miss, _ in points]
        ms = [median(row, "ttft_ms") for _, row in points]
        errors = list(zip(*(spread(row, "ttft_ms") for _, row in points)))
        times.errorbar(x, ms, yerr=errors, color=colour, marker=marker, capsize=2, elinewidth=0.8, label=label)
    chosen = [(miss, by[row["chosen"]].get(miss)) for miss, row in sorted(by["auto"].items()) if row["chosen"] in by]
    ring = dict(ls="", marker="o", ms=11, mfc="none", mec="black", mew=1.1)
    picked = [(100 * miss, median(row, "ttft_ms")) for miss, row in chosen if row]
    if picked:
        times.plot(*zip(*picked), label="chosen by auto", **ring)
    times_axis(times, "TTFT")
    title(times, f"Partial prefill, CP {cp}, {tokens(length)} tokens cached and new", results.subtitle)
    handles, labels = times.get_legend_handles_labels()
    rings = [i for i, label in enumerate(labels) if label == "chosen by auto"]  # last
    order = [i for i in range(len(labels)) if i not in rings] + rings
    times.legend([handles[i] for i in order], [labels[i] for i in order], loc="upper left")

    ratio = {m: median(by["pass-kv"][m], "ttft_ms") / median(by["pass-q"][m], "ttft_ms") for m in misses}
    ratios.axhline(1, color="#666666", lw=0.9)
    ratios.plot([100 * m for m in misses], list(ratio.values()), color="#444444", marker="D", ms=4)
    for miss, row in sorted(by["auto"].items()):
        if miss in ratio and row["chosen"] in VARIANTS:
            name, colour, _ = VARIANTS[row["chosen"]]
            ratios.plot([100 * miss], [ratio[miss]], marker="D", ms=6, color=colour, mec="black", mew=0.8)
    ratios.set_ylabel("TTFT of pass-KV\nover pass-Q")
    used = [v for v in VARIANTS if any(row["chosen"] == v for row in by["auto"].values())]
    if used:
        ratios.legend([Line2D([], [], ls="", marker="D", ms=6, color=VARIANTS[v][1], mec="black", mew=0.8) for v in used],
                      [f"auto chose {VARIANTS[v][0]}" for v in used], loc="best")
    ratios.set_xscale("log")
    ratios.set_xticks([100 * m for m in misses], [f"{100 * m:g}" for m in misses])
    ratios.xaxis.set_minor_locator(NullLocator())
    ratios.set_xlabel("KV-cache miss rate, %")
    figure.align_ylabels()
    return figure


def bars(axis, rows, phase, labels):
    """Stacked parts of each row, the exposed share above. Answers which parts there are."""
    seen = []
    for x, row in enumerate(rows):
        spent, bottom = row["breakdown_us"][phase], 0
        for key, _, colour, hatch in PARTS:
            ms = spent.get(key, 0) / 1000
            if ms <= 0:
                continue
            axis.bar(x, ms, bottom=bottom, width=0.7, color=colour, hatch=hatch, edgecolor="white", linewidth=0.4)
            bottom += ms
            if key not in seen:
                seen.append(key)
        exposed = sum(spent.get(key, 0) for key in EXPOSED)
        if spent.get("steps"):
            axis.annotate(f"{100 * exposed / spent['steps']:.0f} %", (x, bottom), xytext=(0, 2), fontsize=7,
                          textcoords="offset points", ha="center", color="#444444")
    axis.set_xticks(range(len(rows)), labels, fontsize=7)
    axis.grid(axis="x", visible=False)
    axis.margins(x=0.02, y=0.1)
    axis.yaxis.set_major_formatter(FuncFormatter(duration))
    return seen


def parts_legend(axis, seen):
    handles = [Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=f"{name} (exposed)" if hatch else name)
               for key, name, colour, hatch in PARTS if key in seen]
    axis.legend(handles=handles[::-1], loc="upper left", bbox_to_anchor=(1.01, 1))


def breakdown(results, heading, rows, labels):
    """Tables 5 and 8 of the paper: where the ranks' time goes (means over ranks and repetitions)."""
    rows_labels = [(row, label) for row, label in zip(rows, labels) if row["breakdown_us"]["prefill"]]
    if not rows_labels:
        return None
    rows, labels = zip(*rows_labels)
    decodes = [row for row in rows if row["breakdown_us"]["decode"]]
    panels = 2 if decodes else 1
    figure, axes = plt.subplots(panels, 1, figsize=(max(4.4, 1.2 + 0.62 * len(rows)), 3.1 * panels), squeeze=False)
    seen = bars(axes[0][0], rows, "prefill", labels)
    axes[0][0].set_ylabel("until the first token")
    title(axes[0][0], heading, f"{results.subtitle}; above the bars: exposed communication")
    if decodes:
        seen += bars(axes[1][0], decodes, "decode", [label for row, label in zip(rows, labels) if row in decodes])
        axes[1][0].set_ylabel("a token of the answer")
    parts_legend(axes[0][0], seen)
    figure.subplots_adjust(hspace=0.35)
    return figure


def breakdown_over_miss_rate(results, heading, columns):
    """Table 5 of the paper; every miss rate has its own scale."""
    columns = [(miss, [row for row in rows if row["breakdown_us"]["prefill"]]) for miss, rows in columns]
    columns = [(miss, rows) for miss, rows in columns if rows]
    if len(columns) < 2:
        return None
    width = sum(0.9 + 0.5 * len(rows) for _, rows in columns)
    figure, axes = plt.subplots(1, len(columns), figsize=(width, 3.1), width_ratios=[len(rows) for _, rows in columns])
    seen = []
    for axis, (miss, rows) in zip(axes, columns):
        seen += bars(axis, rows, "prefill", [variant_name(row["variant"]) for row in rows])
        axis.set_xlabel(f"miss rate {percent(miss)}")
    axes[0].set_ylabel("until the first token")
    title(axes[0], heading, f"{results.subtitle}; above the bars: exposed communication")
    parts_legend(axes[-1], seen)
    figure.subplots_adjust(wspace=0.45)
    return figure


def breakdowns(results):
    length = results.values("length")[-1]
    order = {variant: i for i, variant in enumerate(VARIANTS)}

    def forced(rows):
        """Without auto where what it chose stands beside it."""
        variants = {row["variant"] for row in rows}
        return sorted((row for row in rows if row["variant"] != "auto" or variants == {"auto"}),
                      key=lambda row: order.get(row["variant"], 9))

    rows = []
    for tp in results.values("tp"):
        for cp in results.values("cp"):
            rows += forced(results.find(tp=tp, cp=cp, length=length, miss=1))
    many_tp = len(results.values("tp")) > 1

    def layout(row):
        where = f"CP {row['cp']}" + (f"\nTP {row['tp']}" if many_tp else "")
        variant = row["chosen"] if row["variant"] == "auto" else row["variant"]
        return where if row["cp"] == 1 else f"{where}\n{variant_name(variant)}"

    yield "breakdown_over_layouts", breakdown(results, f"Where the time goes, {tokens(length)} tokens", rows,
                                              [layout(row) for row in rows])
    cp, tp = results.values("cp")[-1], results.values("tp")[0]
    misses = results.values("miss")
    if cp > 1 and len(misses) > 1:
        if len(misses) > 4:  # as many as can be read
            misses = [misses[round(i * (len(misses) - 1) / 3)] for i in range(4)]
        yield "breakdown_over_miss_rate", breakdown_over_miss_rate(
            results, f"Where the time goes, CP {cp}, {tokens(length)} tokens cached and new",
            [(miss, forced(results.find(tp=tp, cp=cp, length=length, miss=miss))) for miss in misses])


def figures(results):
    yield "ttft_over_cp", over_cp(results, "ttft_ms", "Time to the first token", "TTFT", ideal=True)
    yield "scaling_ratio", scaling(results)
    yield "ttit_over_cp", over_cp(results, "ttit_ms", "Time between tokens", "TTIT", ideal=False)
    for tp in results.values("tp"):
        for cp in results.values("cp"):
            for length in results.values("length"):
                yield f"miss_rate_tp{tp}_cp{cp}_{length}", over_miss_rate(results, tp, cp, length)
    yield from breakdowns(results)


def main(data, folder):
    results = Results(json.loads(Path(data).read_text()))
    written = 0
    for name, figure in figures(results):
        if figure is None:
            continue
        for suffix in ("svg", "png"):
            path = Path(folder) / f"{name}.{suffix}"
            figure.savefig(path, metadata={"Date": None} if suffix == "svg" else None)
            print(f"# figure {path}")
            written += 1
        plt.close(figure)
    if not written:
        print("# no figure: one needs several CP sizes, or several miss rates with pass-kv and pass-q forced")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: latency_plot.py latency.json FOLDER")
    main(sys.argv[1], sys.argv[2])
