// SPDX-License-Identifier: Apache-2.0
#include "bench/simulate_questions.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/simulate_figure.h"

namespace annulus::bench {
namespace {

using parallel::Topology;
using parallel::Variant;

Workload prompt_of(int64_t prompt, int64_t cached, std::optional<Variant> variant = {}) {
  Workload work;
  work.prompt = prompt;
  work.cached = cached;
  work.variant = variant;
  return work;
}

// Rows behind a context that is there; the step measured is the last of a few.
Workload decode_of(int64_t context, int32_t batch, std::optional<Variant> variant = {}) {
  Workload work = prompt_of(2, context - 2, variant);
  work.answer = 3;
  work.batch = batch;
  return work;
}

bool fits(const SimFlags& flags, Topology t, const Workload& work) {
  return rank_bytes(flags.model, t, work) <= flags.machine.memory_gb * 1e9;
}

void head(const SimFlags& flags, const std::string& what) {
  std::printf("# %s on %s: %s\n", flags.model.config.name.c_str(), flags.machine.name.c_str(),
              what.c_str());
}

}  // namespace

void Questions::add_to(CLI::App& app, SimFlags& flags) {
  const auto command = [&](const char* name, const char* help) {
    CLI::App* const sub = app.add_subcommand(name, help);
    flags.add_to(*sub);
    return sub;
  };
  const auto tp = [&](CLI::App* sub) {
    sub->add_option("--tp", tp_, "tensor-parallel ranks")->capture_default_str();
  };
  best_ = command("best", "the fewest GPUs, and the best TP x CP of them, that meet a latency");
  best_->add_option("--prompt", prompt_, "tokens")->capture_default_str();
  best_->add_option("--ttft-ms", ttft_ms_, "time to the first token")->required();
  best_->add_option("--ttit-ms", ttit_ms_, "time to every other token (0: any)");
  best_->add_option("--gpus", gpus_, "at most")->capture_default_str();
  passq_ = command("passq", "where pass-Q starts to win: a sweep over the miss rate");
  tp(passq_);
  passq_->add_option("--cp", cp_, "context-parallel ranks")->capture_default_str();
  passq_->add_option("--total", prompt_, "cached and new tokens")->capture_default_str();
  links_ = command("links", "what slower links cost");
  tp(links_);
  links_->add_option("--cp", cp_, "context-parallel ranks")->capture_default_str();
  links_->add_option("--prompt", prompt_, "tokens")->capture_default_str();
  decode_ = command("decode", "what a token costs in each layout");
  tp(decode_);
  decode_->add_option("--context", prompt_, "tokens")->capture_default_str();
  decode_->add_option("--batch", batches_, "sequences at once")->delimiter(',');
  decode_->add_option("--cp", cps_, "context-parallel ranks")->delimiter(',');
  scale_ = command("scale", "time to the first token on more and more GPUs");
  tp(scale_);
  scale_->add_option("--prompt", prompts_, "tokens")->delimiter(',');
  scale_->add_option("--gpus", gpus_, "at most")->capture_default_str();
  scale_->add_option("--figure", figure_, "an SVG file to write");
}

absl::Status Questions::answer(const SimFlags& flags) const {
  if (prompt_ < 4) return absl::InvalidArgumentError(absl::StrCat(prompt_, " tokens are too few"));
  if (best_->parsed()) return best(flags);
  if (passq_->parsed()) return passq(flags);
  if (links_->parsed()) return links(flags);
  if (decode_->parsed()) return decode(flags);
  return scale(flags);
}

absl::Status Questions::best(const SimFlags& flags) const {
  head(flags,
       absl::StrFormat("%d tokens, TTFT <= %g ms%s, at most %d GPUs", prompt_, ttft_ms_,
                       ttit_ms_ > 0 ? absl::StrFormat(", TTIT <= %g ms", ttit_ms_) : "", gpus_));
  std::printf("%6s %4s %4s %10s %10s %8s %s\n", "GPUs", "TP", "CP", "TTFT ms", "TTIT ms", "GB/GPU",
              "");
  for (int32_t gpus = 1; gpus <= std::min(gpus_, kMostRanks); gpus *= 2) {
    std::optional<Topology> best;
    double best_us = 0;
    for (int32_t tp = 1; tp <= gpus; tp *= 2) {
      const Topology t{tp, gpus / tp};
      Workload work = prompt_of(prompt_, 0);
      work.answer = 3;
      if (!check_layout(flags.model, flags.machine, t).ok()) continue;
      if (!fits(flags, t, work)) continue;
      const absl::StatusOr<Simulated> run = simulate(flags.model, flags.machine, t, work);
      if (!run.ok()) return run.status();
      const bool meets =
          run->ttft_us() <= ttft_ms_ * 1e3 && (ttit_ms_ <= 0 || run->ttit_us() <= ttit_ms_ * 1e3);
      std::printf("%6d %4d %4d %10.1f %10.2f %8.1f %s\n", gpus, t.tp, t.cp, run->ttft_us() / 1e3,
                  run->ttit_us() / 1e3, rank_bytes(flags.model, t, work) / 1e9,
                  meets ? "meets" : "");
      std::fflush(stdout);
      if (meets && (!best || run->ttft_us() < best_us)) {
        best = t;
        best_us = run->ttft_us();
      }
    }
    if (!best) continue;
    std::printf("best: TP %d x CP %d, %d GPUs\n", best->tp, best->cp, gpus);
    return absl::OkStatus();
  }
  std::printf("best: none of these layouts meets it\n");
  return absl::OkStatus();
}

absl::Status Questions::passq(const SimFlags& flags) const {
  head(flags,
       absl::StrFormat("TP %d x CP %d, %d tokens cached and new, TTFT in ms", tp_, cp_, prompt_));
  std::printf("%8s %9s %9s %11s %11s %11s  %-9s %-9s %6s\n", "miss %", "cached", "new", "pass-kv",
              "pass-q", "gather-q", "fastest", "policy", "loss %");
  double before_miss = 0, before_gain = 0;
  std::string crossing = "pass-KV and pass-Q do not cross in this sweep";
  for (const double miss :
       {0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, 12.5, 20.0, 50.0, 99.0}) {
    const auto fresh =
        std::max<int64_t>(2, static_cast<int64_t>(static_cast<double>(prompt_) * miss / 100));
    double ms[parallel::kVariants] = {};
    for (int32_t v = 0; v < parallel::kVariants; ++v) {
      const absl::StatusOr<Simulated> run =
          simulate(flags.model, flags.machine, {tp_, cp_},
                   prompt_of(fresh, prompt_ - fresh, static_cast<Variant>(v)));
      if (!run.ok()) return run.status();
      ms[v] = run->ttft_us() / 1e3;
    }
    const absl::StatusOr<Simulated> chosen =
        simulate(flags.model, flags.machine, {tp_, cp_}, prompt_of(fresh, prompt_ - fresh));
    if (!chosen.ok()) return chosen.status();
    const auto fastest = static_cast<Variant>(std::min_element(ms, ms + parallel::kVariants) - ms);
    std::printf("%8.2f %9lld %9lld %11.2f %11.2f %11.2f  %-9s %-9s %6.1f\n", miss,
                static_cast<long long>(prompt_ - fresh), static_cast<long long>(fresh), ms[0],
                ms[1], ms[2], parallel::name(fastest),
                variants_text(chosen->prefill[0].variants).c_str(),
                100 * (chosen->ttft_us() / 1e3 / ms[static_cast<size_t>(fastest)] - 1));
    std::fflush(stdout);
    const double gain = ms[0] / ms[1] - 1;  // of pass-Q
    if (before_gain > 0 && gain <= 0) {
      const double at = before_miss + (miss - before_miss) * before_gain / (before_gain - gain);
      crossing = absl::StrFormat("pass-Q wins below a miss rate of %.1f %%", at);
    }
    before_miss = miss;
    before_gain = gain;
  }
  std::printf("%s\n", crossing.c_str());
  return absl::OkStatus();
}

absl::Status Questions::links(const SimFlags& flags) const {
  head(flags, absl::StrFormat("TP %d x CP %d; links between nodes slowed down, all else as it is",
                              tp_, cp_));
  const int64_t fresh = std::max<int64_t>(2, prompt_ / 20);
  std::printf("%8s | %21s | %21s | %9s\n", "", absl::StrFormat("%d new", prompt_).c_str(),
              absl::StrFormat("%d new of %d", fresh, prompt_).c_str(), "decode");
  std::printf("%8s | %11s %9s | %11s %9s | %9s\n", "GB/s", "TTFT ms", "", "TTFT ms", "", "TTIT ms");
  for (const double slower : {1.0, 2.0, 4.0, 8.0, 16.0, 32.0}) {
    Machine machine = flags.machine;
    machine.net_gb_s /= slower;
    machine.collective_gb_s /= slower;
    const absl::StatusOr<Simulated> full =
        simulate(flags.model, machine, {tp_, cp_}, prompt_of(prompt_, 0));
    if (!full.ok()) return full.status();
    const absl::StatusOr<Simulated> part =
        simulate(flags.model, machine, {tp_, cp_}, prompt_of(fresh, prompt_ - fresh));
    if (!part.ok()) return part.status();
    const absl::StatusOr<Simulated> token =
        simulate(flags.model, machine, {tp_, cp_}, decode_of(prompt_, 1));
    if (!token.ok()) return token.status();
    std::printf("%8.2f | %11.1f %9s | %11.1f %9s | %9.2f\n", machine.net_gb_s,
                full->ttft_us() / 1e3, variants_text(full->prefill[0].variants).c_str(),
                part->ttft_us() / 1e3, variants_text(part->prefill[0].variants).c_str(),
                token->ttit_us() / 1e3);
    std::fflush(stdout);
  }
  return absl::OkStatus();
}

absl::Status Questions::decode(const SimFlags& flags) const {
  head(flags, absl::StrFormat("decode behind %d tokens, TTIT in ms", prompt_));
  std::printf("%4s %4s %6s %6s %10s %10s %12s %s\n", "TP", "CP", "GPUs", "batch", "pass-q",
              "gather-q", "tokens/s/GPU", "");
  for (const int32_t cp : cps_) {
    for (const int32_t batch : batches_) {
      const Topology t{tp_, cp};
      double ms[2] = {};
      for (const Variant v : {Variant::kPassQ, Variant::kGatherQ}) {
        const absl::StatusOr<Simulated> run =
            simulate(flags.model, flags.machine, t, decode_of(prompt_, batch, v));
        if (!run.ok()) return run.status();
        ms[v == Variant::kGatherQ] = run->ttit_us() / 1e3;
      }
      std::printf("%4d %4d %6d %6d %10.2f %10.2f %12.2f %s\n", t.tp, t.cp, t.world(), batch, ms[0],
                  ms[1], 1e3 * batch / std::min(ms[0], ms[1]) / t.world(),
                  fits(flags, t, decode_of(prompt_, batch)) ? "" : "does not fit");
      std::fflush(stdout);
    }
  }
  return absl::OkStatus();
}

absl::Status Questions::scale(const SimFlags& flags) const {
  head(flags, absl::StrFormat("TP %d, more and more CP ranks", tp_));
  std::printf("%9s %6s %5s %11s %9s %11s %10s %10s %9s\n", "tokens", "GPUs", "CP", "TTFT ms",
              "speed-up", "efficiency", "waiting %", "variant", "simulated");
  std::vector<Series> series;
  for (const int64_t prompt : prompts_) {
    Series line{absl::StrFormat("%d tokens", prompt), {}};
    for (int32_t cp = 1; cp * tp_ <= std::min(gpus_, kMostRanks); cp *= 2) {
      const Topology t{tp_, cp};
      const Workload work = prompt_of(prompt, 0);
      const auto start = std::chrono::steady_clock::now();
      const absl::StatusOr<Simulated> run = simulate(flags.model, flags.machine, t, work);
      if (!run.ok()) return run.status();
      const double s =
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      line.points.emplace_back(t.world(), run->ttft_us() / 1e6);
      const double speed_up = line.points[0].second / line.points.back().second;
      const Shares& mean = run->prefill[0].times.mean;
      std::printf("%9lld %6d %5d %11.1f %9.2f %11.3f %10.1f %10s %7.1f s%s\n",
                  static_cast<long long>(prompt), t.world(), cp, run->ttft_us() / 1e3, speed_up,
                  speed_up / cp,
                  100 * (of(mean, Share::kWait) + of(mean, Share::kHop)) / run->ttft_us(),
                  variants_text(run->prefill[0].variants).c_str(), s,
                  fits(flags, t, work) ? "" : "  KV does not fit");
      std::fflush(stdout);
    }
    series.push_back(std::move(line));
  }
  if (figure_.empty()) return absl::OkStatus();
  std::ofstream out(figure_);
  out << scaling_svg(absl::StrFormat("Time to first token, %s on %s, TP%d x CP, simulated",
                                     flags.model.config.name, flags.machine.name, tp_),
                     series);
  if (!out.flush()) {
    return absl::InvalidArgumentError(absl::StrCat(figure_, ": cannot be written"));
  }
  return absl::OkStatus();
}

}  // namespace annulus::bench
