// SPDX-License-Identifier: Apache-2.0
#include "bench/regret.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "bench/choosers.h"
#include "bench/rank_flags.h"
#include "bench/variant_times.h"

namespace annulus::bench {
namespace {

using namespace parallel;  // NOLINT: everything here is about ranks

struct Options {
  RankFlags ranks;
  int total = 1024, pairs = 9;
  std::vector<double> links = {10, 30, 100, 250, 500};
  std::vector<double> miss_percent = {1, 2, 3, 4, 6, 10, 20, 50, 100};
  std::string json;
};

class Regret {
 public:
  explicit Regret(const Options& options) : options_(options) {}

  absl::Status run() {
    std::printf(
        "# annulus-bench regret: %s, cp %d, %d new + cached tokens, %d interleaved repeats a row\n"
        "# attention of a step, all layers, slowest rank, ms: median [interval that holds the true "
        "one in 95 %% of cases]\n",
        options_.ranks.options.model.c_str(), options_.ranks.options.topology.cp, options_.total,
        options_.pairs);
    for (const double link : options_.links) {
      if (absl::Status s = rows_of(link); !s.ok()) return s;
    }
    summary();
    return write_json();
  }

 private:
  absl::Status rows_of(double link_mbit) {
    RankGroupOptions options = options_.ranks.options;
    options.link_mbit = link_mbit;
    absl::StatusOr<std::unique_ptr<RankGroup>> group = RankGroup::start(options);
    if (!group.ok()) return group.status();
    const PolicyInput& policy = (*group)->policy();
    const MachineProfile& p = policy.profile;
    std::printf(
        "\n# link %.0f Mbit/s; measured: %.2f MB/s, %.0f us a hop, overlap %.2f; attention %.1f "
        "GFLOP/s: %.0f FLOP a byte\n%6s %6s | %27s | %27s | %27s | %-8s %-8s %7s  %s\n",
        link_mbit, p.link_bytes_per_us, p.small_hop_us(), p.overlap, p.attend_flops_per_us / 1e3,
        p.attend_flops_per_us / p.link_bytes_per_us, "miss%", "new", "pass-kv (predicted)",
        "pass-q (predicted)", "gather-q (predicted)", "fastest", "ours", "regret",
        "Algorithms 1, 5");
    int32_t slot = 0;
    for (const double miss : options_.miss_percent) {
      const auto fresh = std::clamp(static_cast<int32_t>(std::lround(options_.total * miss / 100)),
                                    1, options_.total);
      const Load load{fresh, options_.total - fresh};
      const auto times =
          measure_variants(**group, slot++, options_.total - fresh, fresh, options_.pairs);
      if (!times.ok()) return times.status();
      row(link_mbit, miss, policy, load, *times);
    }
    return absl::OkStatus();
  }

  void row(double link_mbit, double miss, const PolicyInput& policy, const Load& load,
           const VariantTimes& times) {
    std::array<MedianInterval, kVariants> measured;
    for (size_t v = 0; v < kVariants; ++v) measured[v] = median_interval(times.us[v]);
    const auto median_of = [&](Variant v) { return measured[static_cast<size_t>(v)].median; };
    Variant best = Variant::kPassKv;
    for (const Variant v : kAllVariants)
      if (median_of(v) < median_of(best)) best = v;
    const double kv = median_of(Variant::kPassKv), q = median_of(Variant::kPassQ);
    ++rows_;
    if (std::max(kv, q) >= 1.2 * std::min(kv, q)) ++differ_;
    const bool apart = !measured[0].overlaps(measured[1]);
    if (apart && kv < q) ++kv_wins_;
    if (apart && q < kv) ++q_wins_;

    const auto predictions = predict(policy, {&load, 1});
    nlohmann::json entry = {{"link_mbit", link_mbit},
                            {"miss_percent", miss},
                            {"new", load.n_new},
                            {"cached", load.n_cached},
                            {"fastest", name(best)}};
    std::printf("%6.1f %6lld |", miss, static_cast<long long>(load.n_new));
    for (size_t v = 0; v < kVariants; ++v) {
      const MedianInterval& m = measured[v];
      std::printf(" %7.1f [%5.0f,%5.0f] %6.0f |", m.median / 1e3, m.low / 1e3, m.high / 1e3,
                  predictions[v].us / 1e3);
      entry["us"][name(static_cast<Variant>(v))] = {
          {"median", m.median}, {"low", m.low}, {"high", m.high}, {"predicted", predictions[v].us}};
    }
    std::string picks;
    for (Chooser& chooser : choosers_) {
      const Variant pick = chooser.choose(policy, load);
      const bool as_good =
          measured[static_cast<size_t>(pick)].overlaps(measured[static_cast<size_t>(best)]);
      const double lost = as_good ? 0 : median_of(pick) / median_of(best) - 1;
      chooser.add(lost);
      entry["regret"][chooser.name()] = lost;
      entry["choice"][chooser.name()] = name(pick);
      if (chooser.name().starts_with("Algorithm")) picks += " " + std::string(name(pick));
    }
    std::printf(" %-8s %-8s %6.1f%% %s\n", name(best), name(choosers_[0].choose(policy, load)),
                100 * entry["regret"][choosers_[0].name()].get<double>(), picks.c_str());
    std::fflush(stdout);
    json_.push_back(std::move(entry));
  }

  void summary() const {
    std::printf("\n");
    print(choosers_, rows_);
    const bool counts = 3 * differ_ >= rows_ && kv_wins_ > 0 && q_wins_ > 0;
    std::printf(
        "pass-KV and pass-Q differ by 20 %% or more in %d of %d rows; pass-KV is faster beyond "
        "doubt "
        "in %d, pass-Q in %d: the sweep %s (a third of the rows, and each wins somewhere)\n",
        differ_, rows_, kv_wins_, q_wins_, counts ? "counts" : "does NOT count");
  }

  absl::Status write_json() const {
    if (options_.json.empty()) return absl::OkStatus();
    std::ofstream out(options_.json);
    out << json_.dump(1) << "\n";
    out.close();
    if (out) return absl::OkStatus();
    return absl::PermissionDeniedError("--json " + options_.json + " cannot be written");
  }

  const Options& options_;
  std::vector<Chooser> choosers_ = choosers();
  nlohmann::json json_ = nlohmann::json::array();
  int rows_ = 0, differ_ = 0, kv_wins_ = 0, q_wins_ = 0;
};

}  // namespace

int bench_regret(int argc, char** argv) {
  Options options;
  options.ranks.options.model =
      "synthetic:layers=2,dim=512,heads=16,kv_heads=1,head_dim=64,ffn=512,vocab=512";
  CLI::App app(
      "What each way of choosing between pass-KV, pass-Q and gather-Q loses to the fastest, over "
      "links and miss rates.",
      "annulus-bench regret");
  options.ranks.add_to(app);
  app.get_option("--model")->required(false)->capture_default_str();
  app.remove_option(app.get_option("--link-mbit"));
  app.add_option("--links", options.links, "Mbit/s")->delimiter(',')->check(CLI::Range(1.0, 1e5));
  app.add_option("--miss", options.miss_percent, "miss rates in percent")
      ->delimiter(',')
      ->check(CLI::Range(0.01, 100.0));
  app.add_option("--total", options.total, "cached + new tokens")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  app.add_option("--pairs", options.pairs, "interleaved repeats a row")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--json", options.json, "file for all rows");
  app.footer(
      "  Regret is median of the choice / median of the fastest - 1, or 0 where their 95 % "
      "intervals overlap.\n"
      "  annulus-bench regret                                 (root: network namespaces)\n"
      "  annulus-bench regret --links 100 --miss 1,5,20 --pairs 5");
  CLI11_PARSE(app, argc, argv);
  absl::Status status = options.ranks.apply();
  if (status.ok()) status = Regret(options).run();
  if (status.ok()) return 0;
  std::fprintf(stderr, "annulus-bench regret: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace annulus::bench
