// SPDX-License-Identifier: Apache-2.0
#include "bench/step.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "bench/command_line.h"
#include "bench/rank_flags.h"
#include "bench/step_ops.h"

namespace annulus::bench {
namespace {

using namespace parallel;  // NOLINT: everything here is about ranks
using kernels::Phase;

struct Options {
  int tokens = 512, cached = 2048, batch = 1, repeats = 5;
  std::vector<std::string> steps = {"full", "partial", "decode"}, variants = {"auto"};
};

// One step, the mean of the ranks but for the first. Microseconds.
struct Measured {
  double slowest_us = 0, us = 0;
  std::array<double, kernels::kPhases> phase_us{};
  double hops_us = 0, all_to_all_us = 0;  // waited for, of kWait
  double sent_bytes = 0;                  // in attention
};

Measured mean_of(const std::vector<StepResult>& results) {
  Measured mean;
  const auto n = static_cast<double>(results.size());
  for (const StepResult& r : results) {
    const GroupReport& g = r.groups.at(0);
    mean.slowest_us = std::max<double>(mean.slowest_us, r.step_us);
    for (size_t p = 0; p < r.phase_us.size(); ++p) {
      mean.phase_us[p] += static_cast<double>(r.phase_us[p]) / n;
      mean.us += static_cast<double>(r.phase_us[p]) / n;
    }
    mean.all_to_all_us += static_cast<double>(g.all_to_all_us) / n;
    mean.hops_us += static_cast<double>(g.exposed_us - g.all_to_all_us) / n;
    mean.sent_bytes += static_cast<double>(g.bytes_sent) / n;
  }
  return mean;
}

// The repeat whose time is the median; the first warms up and is none.
absl::StatusOr<Measured> measure(RankGroup& group, const StepWork& work, Placement placement,
                                 int repeats) {
  const int32_t vocab = group.config().vocab;
  const auto cached = work.load.n_cached;
  const auto fresh = static_cast<int32_t>(work.load.n_new);
  const auto sequences = static_cast<int32_t>(work.sequences);
  for (int32_t slot = 0; slot < sequences; ++slot) {
    StepPlan prepare;
    if (cached > 0) {
      prepare = append_plan(slot, 0, static_cast<int32_t>(cached), Variant::kPassKv,
                            Placement::kPrompt, vocab);
    }
    prepare.ops = {admit_op(slot)};
    if (const auto r = group.run(prepare); !r.ok()) return r.status();
  }
  std::vector<Measured> samples;
  for (int repeat = 0; repeat <= repeats; ++repeat) {
    StepPlan plan;
    plan.groups = {{work.variant, {}}};
    for (int32_t slot = 0; slot < sequences; ++slot) {
      plan.ops.push_back(slot_op(Op::Kind::kTruncate, slot, cached));
      Item item = append_plan(slot, cached, fresh, work.variant, placement, vocab).items[0];
      item.wanted = {{.position = cached + fresh - 1, .sample = true}};
      plan.items.push_back(std::move(item));
      plan.groups[0].items.push_back(slot);
    }
    const auto results = group.run(plan);
    if (!results.ok()) return results.status();
    if (repeat > 0) samples.push_back(mean_of(*results));
  }
  StepPlan end;
  for (int32_t slot = 0; slot < sequences; ++slot)
    end.ops.push_back(slot_op(Op::Kind::kRelease, slot));
  if (const auto r = group.run(end); !r.ok()) return r.status();
  const auto middle = samples.begin() + static_cast<std::ptrdiff_t>((samples.size() - 1) / 2);
  std::nth_element(
      samples.begin(), middle, samples.end(),
      [](const Measured& a, const Measured& b) { return a.slowest_us < b.slowest_us; });
  return *middle;
}

class Table {
 public:
  Table(const Limits& limits, double step_us) : limits_(limits), step_us_(step_us) {
    std::printf("  %-18s %10s %7s %15s %15s %9s\n", "op", "ms", "share", "rate", "limit",
                "reached");
  }

  void row(const char* what, double us, const Demand& demand) {
    if (us <= 0) return;
    std::printf("  %-18s %10.3f %6.1f%%", what, us / 1e3, 100 * us / step_us_);
    const Bound least = bound(limits_, demand);
    least_us_ += least.us;
    if (least.us > 0) {
      const bool multiplies = least.by == Resource::kMultiply;
      const double amount = multiplies ? demand.flop : demand.bytes;
      const char* const unit = multiplies ? "GFLOP/s" : "GB/s";
      std::printf(" %7.1f %-7s %7.1f %-7s %8.0f%%", amount / us / 1e3, unit,
                  amount / least.us / 1e3, unit, 100 * least.us / us);
    }
    std::printf("\n");
  }
  double least_us() const { return least_us_; }  // of the rows so far

 private:
  const Limits& limits_;
  double step_us_, least_us_ = 0;
};

void print(const RankGroup& group, const Topology& topology, const StepWork& work, const char* kind,
           const Measured& m) {
  const auto rows = static_cast<double>(work.load.n_new * work.sequences);
  std::printf(
      "\n%s: %lld new behind %lld, %lld sequence(s), %s: %.2f ms on the slowest rank, %.0f "
      "tokens/s\n",
      kind, static_cast<long long>(work.load.n_new), static_cast<long long>(work.load.n_cached),
      static_cast<long long>(work.sequences), name(work.variant), m.slowest_us / 1e3,
      rows * 1e6 / m.slowest_us);
  const StepDemands demands =
      step_demands(group.config(), topology, group.policy(), group.linear_bytes(), work);
  Table table(group.limits(), m.us);
  for (size_t p = 0; p < kernels::kPhases; ++p) {
    const auto phase = static_cast<Phase>(p);
    if (phase != Phase::kWait) table.row(kernels::name(phase), m.phase_us[p], demands[p]);
  }
  table.row("wait, hops", m.hops_us, {});
  table.row("wait, All2All", m.all_to_all_us, {});
  table.row("wait, others",
            m.phase_us[static_cast<size_t>(Phase::kWait)] - m.hops_us - m.all_to_all_us, {});
  std::printf("  %-18s %10.3f %6.1f%% %31s %9.3f ms %6.0f%%\n", "all", m.us / 1e3, 100.0,
              "each op at its limit", table.least_us() / 1e3, 100 * table.least_us() / m.us);
  if (topology.cp == 1) return;
  const double layers = group.config().layers, hops = (topology.cp - 1) * layers;
  const double returned = returned_bytes(group.policy(), work);
  const auto transfer = [&](const char* what, double bytes, double messages, double waited) {
    const double us = bound(group.limits(), {.sent_bytes = bytes, .messages = messages}).us;
    std::printf(
        "  %s: %.3f MB sent a rank, %.3f ms at the limit of the link, waited %.3f ms: %.0f%% "
        "hidden\n",
        what, bytes / 1e6, us / 1e3, waited / 1e3, 100 * std::clamp(1 - waited / us, 0.0, 1.0));
  };
  const bool gathers = work.variant == Variant::kGatherQ;
  transfer(gathers ? "gather" : "hops", std::max(0.0, m.sent_bytes - returned),
           gathers ? layers : hops, m.hops_us);
  if (returned > 0) transfer("All2All", returned, layers, m.all_to_all_us);
}

absl::Status run(const RankFlags& flags, const Options& options) {
  std::vector<std::optional<Variant>> variants;
  for (const std::string& text : options.variants) {
    if (text == "auto") {
      variants.emplace_back();
      continue;
    }
    const absl::StatusOr<Variant> variant = parse_variant(text);
    if (!variant.ok()) return variant.status();
    variants.emplace_back(*variant);
  }
  absl::StatusOr<std::unique_ptr<RankGroup>> started = RankGroup::start(flags.options);
  if (!started.ok()) return started.status();
  RankGroup& group = **started;
  const Topology& topology = flags.options.topology;
  const Limits& limits = group.limits();
  std::printf(
      "# annulus-bench step: %s, tp %d x cp %d, %d thread(s) a rank, %s, the median of %d repeats\n"
      "# limits of a rank, measured by all at once: multiply %.1f GFLOP/s, read %.1f GB/s; link "
      "%.1f MB/s and %.1f us a message\n"
      "# times are means of the ranks; reached: time at the nearer limit over time taken; above "
      "100 %%: from a cache\n",
      group.config().name.c_str(), topology.tp, topology.cp, flags.options.rank.threads,
      flags.precision.c_str(), options.repeats, limits.flops_per_us / 1e3,
      limits.read_bytes_per_us / 1e3, limits.link_bytes_per_us, limits.link_latency_us);
  for (const std::string& kind : options.steps) {
    const bool decode = kind == "decode";
    StepWork work{.load = {decode ? 1 : options.tokens, kind == "full" ? 0 : options.cached},
                  .sequences = options.batch};
    const std::vector<Load> loads(static_cast<size_t>(options.batch), work.load);
    for (const std::optional<Variant>& variant : variants) {
      work.variant = variant ? *variant : choose(group.policy(), loads);
      const auto measured =
          measure(group, work, decode ? Placement::kDecode : Placement::kPrompt, options.repeats);
      if (!measured.ok()) return measured.status();
      print(group, topology, work, kind.c_str(), *measured);
      std::fflush(stdout);
    }
  }
  return absl::OkStatus();
}

}  // namespace

int bench_step(int argc, char** argv) {
  RankFlags flags;
  Options options;
  CLI::App app("One step of a model on real ranks: time, limit and fraction reached of every op.",
               "annulus-bench step");
  flags.add_to(app);
  flags.add_trace_to(app);
  app.add_option("--steps", options.steps, "of full, partial (behind cached tokens), decode")
      ->delimiter(',')
      ->check(CLI::IsMember({"full", "partial", "decode"}))
      ->capture_default_str();
  app.add_option("--tokens", options.tokens, "new tokens of a sequence, in full and partial")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--cached", options.cached, "tokens before them, in partial and decode")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--batch", options.batch, "sequences in the step")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--variants", options.variants, "of auto, pass-kv, pass-q, gather-q")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--repeats", options.repeats, "measured repeats")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.footer(
      "  annulus-bench step --model M --cp 2\n"
      "  annulus-bench step --model M --cp 2 --steps decode --batch 8 --variants pass-q,gather-q\n"
      "  annulus-bench step --model M --cp 3 --transports tcp,self --steps partial --repeats 1 "
      "--trace step.json");
  if (const auto code = parse_or_exit(app, argc, argv)) return *code;
  flags.options.rank.profile = true;
  absl::Status status = flags.apply();
  if (status.ok()) status = run(flags, options);
  return status.ok() ? 0 : report("step", status);
}

}  // namespace annulus::bench
