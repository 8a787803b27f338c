// SPDX-License-Identifier: Apache-2.0
#include "bench/learn.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "bench/command_line.h"
#include "bench/learning.h"
#include "bench/rank_flags.h"
#include "bench/variant_times.h"

namespace annulus::bench {
namespace {

using namespace parallel;  // NOLINT: everything here is about ranks

struct Options {
  RankFlags ranks;
  int epochs = 5, repeats = 3, total = 2048;
  double wrong_attention = 1, wrong_transfers = 0.1;
  std::vector<double> miss_percent = {1, 3, 6, 12, 25, 100};
};

// An epoch's ranks are new processes, which measure anew.
absl::Status run(const Options& options) {
  std::printf("# annulus-bench learn: %s, tp %d x cp %d, %d new + cached tokens, %d samples\n",
              options.ranks.options.model.c_str(), options.ranks.options.topology.tp,
              options.ranks.options.topology.cp, options.total, options.repeats);
  LearningTrace trace(options.wrong_attention, options.wrong_transfers);
  for (int epoch = 0; epoch < options.epochs; ++epoch) {
    absl::StatusOr<std::unique_ptr<RankGroup>> group = RankGroup::start(options.ranks.options);
    if (!group.ok()) return group.status();
    std::vector<LearningPoint> points;
    for (const double miss : options.miss_percent) {
      const auto fresh = std::clamp(static_cast<int32_t>(std::lround(options.total * miss / 100)),
                                    1, options.total);
      auto times = measure_variants(**group, static_cast<int32_t>(points.size()),
                                    options.total - fresh, fresh, options.repeats);
      if (!times.ok()) return times.status();
      LearningPoint point{{fresh, options.total - fresh}, {}, {}};
      for (size_t v = 0; v < point.us.size(); ++v) point.us[v] = median(times->us[v]);
      std::move(std::begin(times->parts), std::end(times->parts), point.times.begin());
      points.push_back(std::move(point));
    }
    trace.epoch((*group)->policy(), points);
  }
  trace.summary();
  return absl::OkStatus();
}

}  // namespace

int bench_learn(int argc, char** argv) {
  Options options;
  CLI::App app(
      "The machine profile from epoch to epoch, each with new ranks that measure the machine "
      "(wrongly, if told to), corrected by the times of the variants that were chosen.",
      "annulus-bench learn");
  options.ranks.add_to(app);
  app.add_option("--epochs", options.epochs, "epochs")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--wrong-attention", options.wrong_attention,
                 "attention is measured to take so many times as long as it does")
      ->check(number_up_to(0, 100))
      ->capture_default_str();
  app.add_option("--wrong-transfers", options.wrong_transfers, "the same of transfers")
      ->check(number_up_to(0, 100))
      ->capture_default_str();
  app.add_option("--total", options.total, "cached + new tokens")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  app.add_option("--miss", options.miss_percent, "miss rates in percent")
      ->delimiter(',')
      ->check(CLI::Range(0.01, 100.0))
      ->capture_default_str();
  app.add_option("--repeats", options.repeats, "samples of a point in an epoch")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.footer(
      "  annulus-bench learn --model M --cp 2\n"
      "  annulus-bench learn --model M --cp 2 --link-mbit 100      (root: the link is shaped)\n"
      "  annulus-bench simulate learn --machine gtt                (in virtual time)");
  if (const auto code = parse_or_exit(app, argc, argv)) return *code;
  absl::Status status = options.ranks.apply();
  if (status.ok()) status = run(options);
  return status.ok() ? 0 : report("learn", status);
}

}  // namespace annulus::bench
