// SPDX-License-Identifier: Apache-2.0
#include "bench/weights.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "bench/command_line.h"
#include "bench/rank_flags.h"

namespace annulus::bench {
namespace {

namespace fs = std::filesystem;

struct WeightsFlags {
  RankFlags ranks;
  std::vector<int> cp = {2, 4};
  int repeats = 5;
  std::string folder;  // for the copies; empty: the model's own
};

// One file a rank, as every host has its own cache. Written through to the disk: what is dirty
// cannot be taken out of the cache.
absl::StatusOr<std::vector<std::string>> copies_of(const std::string& model,
                                                   const std::string& folder, int count) {
  std::vector<std::string> copies;
  for (int i = 0; i < count; ++i) {
    copies.push_back(absl::StrCat(folder, "/rank-", i, fs::path(model).extension().string()));
    std::error_code error;
    fs::copy_file(model, copies.back(), fs::copy_options::overwrite_existing, error);
    const int fd = error ? -1 : open(copies.back().c_str(), O_RDONLY | O_CLOEXEC);
    const bool written = fd >= 0 && fsync(fd) == 0;
    if (fd >= 0) close(fd);
    if (!written) {
      return absl::FailedPreconditionError(absl::StrCat(
          "cannot copy ", model, " to ", copies.back(), ": name a folder with room by --folder"));
    }
  }
  return copies;
}

// Into the system's cache, which an earlier cold row has left without what nobody read since.
void warm_up(const std::vector<std::string>& files) {
  std::vector<char> piece(size_t{1} << 20);
  for (const std::string& file : files) {
    std::ifstream in(file, std::ios::binary);
    while (in.read(piece.data(), static_cast<std::streamsize>(piece.size()))) {
    }
  }
}

struct Row {
  std::vector<double> seconds;  // until the last rank had its weights, of each repeat
  double cached = 1;            // of the files that were read: the share that was in the cache
  int64_t rank_bytes = 0;       // of the largest rank
};

absl::Status measure(const RankGroupOptions& options, Row& row) {
  const auto group = RankGroup::start(options);
  if (!group.ok()) return group.status();
  double last = 0, cached = 0;
  const auto readers =
      static_cast<size_t>(options.send_weights ? options.topology.tp : options.topology.world());
  for (size_t rank = 0; rank < (*group)->loads().size(); ++rank) {
    const LoadReport& load = (*group)->loads()[rank];
    last = std::max(last, load.seconds);
    row.rank_bytes = std::max(row.rank_bytes, load.weight_bytes);
    if (rank < readers) cached += load.cached / static_cast<double>(readers);
  }
  row.cached = cached;
  row.seconds.push_back(last);
  return absl::OkStatus();
}

void print(int cp, const char* how, const char* cache, const Row& row, double against_s) {
  const double seconds = median(row.seconds);
  const double gbytes_per_s = static_cast<double>(row.rank_bytes) * 1e-9 / seconds;
  std::printf("%3d  %-5s %-5s %8.0f %% %9.3f %9.3f..%-8.3f %9.2f %9.2f %9.2f\n", cp, how, cache,
              100 * row.cached, seconds, *std::min_element(row.seconds.begin(), row.seconds.end()),
              *std::max_element(row.seconds.begin(), row.seconds.end()), gbytes_per_s,
              gbytes_per_s * cp, against_s / seconds);
  std::fflush(stdout);
}

absl::Status run(WeightsFlags& flags) {
  RankGroupOptions options = flags.ranks.options;
  std::error_code error;
  if (!fs::is_regular_file(options.model, error)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--model ", options.model, " is not one file: this benchmark copies it"));
  }
  const std::string parent =
      flags.folder.empty() ? fs::path(options.model).parent_path().string() : flags.folder;
  const std::string folder =
      absl::StrCat(parent.empty() ? "." : parent, "/annulus-weights-", getpid());
  fs::create_directories(folder, error);
  const absl::Cleanup remove = [&] {
    std::error_code ignored;
    fs::remove_all(folder, ignored);
  };
  const int most = *std::max_element(flags.cp.begin(), flags.cp.end());
  const auto copies = copies_of(options.model, folder, most * options.topology.tp);
  if (!copies.ok()) return copies.status();

  std::printf("# annulus-bench weights: tp %d, %d thread(s) a rank, %s, %d repeats, interleaved\n",
              options.topology.tp, options.rank.threads,
              options.link_mbit > 0
                  ? absl::StrCat("links of ", options.link_mbit, " Mbit/s").c_str()
                  : "ranks of one host joined by shared memory",
              flags.repeats);
  std::printf(
      "# Every rank has a file of its own, so that none finds in the cache what another has read; "
      "the files lie on one\n"
      "# disk, which stands for the file server of several hosts. read: every rank reads and "
      "packs. "
      "send: the first one\n"
      "# does, and each hands on what it is sent. The ranks also share the cores of this machine, "
      "which hosts do not:\n"
      "# what packing costs, `read` pays once for each rank here. seconds: until the last rank has "
      "all (median, extremes);\n"
      "# GB/s: packed weights of a rank, and of all ranks, over it.\n");
  std::printf("%3s  %-5s %-5s %10s %9s %19s %9s %9s %9s\n", "cp", "how", "cache", "cached",
              "seconds", "extremes", "GB/s", "GB/s all", "x read");
  options.models = *copies;
  for (const int cp : flags.cp) {
    options.topology.cp = cp;
    Row rows[2][2];  // [cold][send]
    for (int repeat = 0; repeat < flags.repeats; ++repeat) {
      for (const bool cold : {false, true}) {
        for (const bool send : {false, true}) {
          options.cold = cold;
          options.send_weights = send;
          if (!cold) warm_up(*copies);
          absl::Status measured = measure(options, rows[cold][send]);
          if (!measured.ok()) return measured;
        }
      }
    }
    for (const bool cold : {false, true}) {
      for (const bool send : {false, true}) {
        print(cp, send ? "send" : "read", cold ? "cold" : "warm", rows[cold][send],
              median(rows[cold][false].seconds));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

int bench_weights(int argc, char** argv) {
  WeightsFlags flags;
  CLI::App app("Time until every rank has its weights: read by each, or read once and sent.",
               "annulus-bench weights");
  flags.ranks.add_to(app);
  app.remove_option(app.get_option("--cp"));
  app.add_option("--cp", flags.cp, "context-parallel ranks, one table part each")
      ->delimiter(',')
      ->check(CLI::Range(2, 256))
      ->capture_default_str();
  app.add_option("--repeats", flags.repeats, "of each row")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--folder", flags.folder, "for a copy of the model a rank (default: beside it)");
  app.footer(
      "  annulus-bench weights --model M.gguf --cp 2,4\n"
      "  annulus-bench weights --model M.gguf --cp 4 --link-mbit 1000 --folder /mnt/slow    "
      "(root)");
  if (const auto code = parse_or_exit(app, argc, argv)) return *code;
  absl::Status status = flags.ranks.apply();
  if (status.ok()) status = run(flags);
  return status.ok() ? 0 : report("weights", status);
}

}  // namespace annulus::bench
