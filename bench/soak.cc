// SPDX-License-Identifier: Apache-2.0
#include "bench/soak.h"

#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"
#include "bench/golden_cases.h"
#include "bench/recall_run.h"
#include "bench/server_process.h"
#include "bench/soak_streams.h"

namespace annulus::bench {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

struct Options {
  std::string model, cases, precision = "fp32";
  int tp = 1, cp = 2, streams = 64, conversations = 32, longest = 600, kv_rows = 3072;
  double minutes = 1;
  uint64_t seed = 0;
};

constexpr int kPageTokens = 16;  // small ones, so that many sequences fit into few rows

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// What the front end and its ranks hold.
struct Holdings {
  std::map<std::string, int64_t> resident_bytes, descriptors, kv_rows;
  int64_t sessions = 0;
};

int64_t descriptors_of(int64_t pid) {
  std::error_code ignored;
  const fs::directory_iterator folder(absl::StrCat("/proc/", pid, "/fd"), ignored);
  return std::distance(begin(folder), end(folder));
}

absl::StatusOr<Holdings> holdings(const ServerProcess& server, const Client& client) {
  const auto cluster = client.cluster();
  if (!cluster.ok()) return cluster.status();
  Holdings out;
  out.sessions = cluster->sessions();
  const auto add = [&](const std::string& who, int64_t pid) {
    out.resident_bytes[who] = resident_bytes(static_cast<pid_t>(pid));
    out.descriptors[who] = descriptors_of(pid);
  };
  add("front end", server.pid());
  for (const v1::Rank& rank : cluster->ranks()) {
    const std::string who = absl::StrCat("rank ", rank.world_rank());
    add(who, rank.pid());
    out.kv_rows[who] = rank.kv_rows();
  }
  return out;
}

// The holdings once nothing runs. An ended stream's rows go back with a step that follows it, so
// they are waited for; rows that stay are in what is returned.
absl::StatusOr<Holdings> settled(const ServerProcess& server, const Client& client) {
  const Clock::time_point start = Clock::now();
  for (;; std::this_thread::sleep_for(std::chrono::milliseconds(50))) {
    const auto cluster = client.cluster();
    if (!cluster.ok()) return cluster.status();
    const int64_t requests = cluster->requests_running() + cluster->requests_waiting();
    int64_t rows = 0;
    for (const v1::Rank& rank : cluster->ranks()) rows += rank.kv_rows();
    if (requests == 0 && rows == 0) break;
    if (seconds_since(start) < 120) continue;
    if (requests == 0) break;
    return absl::DeadlineExceededError(
        absl::StrCat(cluster->requests_running(), " requests still run and ",
                     cluster->requests_waiting(), " wait 120 s after the last stream ended"));
  }
  return holdings(server, client);
}

// One prompt that takes nearly every KV row: pages that are touched for the first time later would
// look like a leak.
absl::Status touch_kv(const Client& client, const std::vector<int32_t>& ids,
                      const Options& options) {
  const auto rows =
      static_cast<size_t>(options.cp) * static_cast<size_t>(options.kv_rows - 4 * kPageTokens);
  v1::GenerateRequest request;
  request.set_packed_tokens(
      pack_tokens({ids.begin(), ids.begin() + static_cast<int64_t>(std::min(rows, ids.size()))}));
  request.set_max_tokens(1);
  return client.generate(request).status();
}

class Soak {
 public:
  Soak(Options options, const ServerProcess& server, const std::vector<Conversation>& talks,
       std::vector<std::string> prompt_files)
      : options_(std::move(options)),
        server_(server),
        talks_(talks),
        prompt_files_(std::move(prompt_files)) {}

  // Streams for `seconds`, then waits for those that run.
  void run(double seconds) {
    const Clock::time_point start = Clock::now();
    std::vector<std::jthread> threads;
    threads.reserve(static_cast<size_t>(options_.streams));
    for (int i = 0; i < options_.streams; ++i) {
      threads.emplace_back([&] {
        const Client client(server_.address());
        while (seconds_since(start) < seconds) one(client);
        ++idle_;
      });
    }
    double told = 0;
    while (idle_ < options_.streams) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      if (seconds_since(start) < told + 10) continue;
      told = seconds_since(start);
      const std::lock_guard lock(mutex_);
      const long long ended = next_ - options_.streams + idle_, tokens = tokens_;
      std::fprintf(stderr, "%5.0f s: %lld streams ended, %d wrong, %lld tokens\n", told, ended,
                   wrong_, tokens);
    }
    idle_ = 0;
  }

  int64_t streams() const { return next_; }
  int wrong() const { return wrong_; }

  void print() const {
    for (const auto& [what, count] : ends_)
      std::printf("%-14s %-20s %6d\n", what.first.c_str(), what.second.c_str(), count);
  }

 private:
  void one(const Client& client) {
    const int64_t number = next_++;
    std::mt19937_64 random(options_.seed + 1 + static_cast<uint64_t>(number));
    const size_t which = random() % talks_.size();
    const StreamEnd end =
        run_stream(server_.address(), client, talks_[which], prompt_files_[which], number, random);
    const std::lock_guard lock(mutex_);
    tokens_ += end.tokens;
    ++ends_[{name(end.fate),
             end.fate == Fate::kKilledClient ? "-" : absl::StatusCodeToString(end.code)}];
    if (end.wrong.empty()) return;
    if (++wrong_ <= 20) {
      std::fprintf(stderr, "stream %lld (%s, conversation %zu): %s\n",
                   static_cast<long long>(number), name(end.fate), which, end.wrong.c_str());
    }
  }

  const Options options_;
  const ServerProcess& server_;
  const std::vector<Conversation>& talks_;
  const std::vector<std::string> prompt_files_;
  std::atomic<int64_t> next_ = 0;
  std::atomic<int> idle_ = 0;
  std::mutex mutex_;
  int wrong_ = 0;
  int64_t tokens_ = 0;
  std::map<std::pair<std::string, std::string>, int> ends_;
};

// A leak is something that a stream leaves: what is allowed is what allocators keep for reuse.
constexpr int64_t kSlackBytes = 16 << 20, kSlackBytesAStream = 2048;

int compare(const Holdings& before, const Holdings& after, int64_t streams) {
  int faults = 0;
  std::printf("%-10s %15s %15s %15s\n", "", "resident MB", "descriptors", "KV rows");
  for (const auto& [who, bytes] : before.resident_bytes) {
    const auto rows = [&name = who](const Holdings& h) {
      return h.kv_rows.contains(name) ? h.kv_rows.at(name) : 0;
    };
    const int64_t now = after.resident_bytes.at(who);
    const int64_t files = after.descriptors.at(who) - before.descriptors.at(who);
    std::printf("%-10s %6.1f -> %5.1f %6lld -> %5lld %6lld -> %5lld\n", who.c_str(),
                static_cast<double>(bytes) / 1e6, static_cast<double>(now) / 1e6,
                static_cast<long long>(before.descriptors.at(who)),
                static_cast<long long>(after.descriptors.at(who)),
                static_cast<long long>(rows(before)), static_cast<long long>(rows(after)));
    faults += (now - bytes > kSlackBytes + streams * kSlackBytesAStream) + (files > 4) +
              (rows(after) != 0);
  }
  return faults + (before.sessions != after.sessions);
}

absl::Status run(const Options& options) {
  const auto cases = read_cases(options.cases);
  if (!cases.ok()) return cases.status();
  std::vector<int32_t> ids;
  for (const GoldenCase& c : *cases)
    ids.insert(ids.end(), c.prompt_ids.begin(), c.prompt_ids.end());
  if (static_cast<int>(ids.size()) < options.longest)
    return absl::InvalidArgumentError("--cases holds fewer tokens than --longest");

  std::vector<std::string> flags = {"--tp",          std::to_string(options.tp),
                                    "--cp",          std::to_string(options.cp),
                                    "--precision",   options.precision,
                                    "--log-level",   "warn",
                                    "--page-tokens", std::to_string(kPageTokens),
                                    "--kv-rows",     std::to_string(options.kv_rows),
                                    "--max-queue",   std::to_string(options.streams)};
  if (!options.model.empty()) flags.insert(flags.end(), {"--model", options.model});
  const auto server = ServerProcess::start(flags);
  if (!server.ok()) return server.status();
  const Client client(server->address());

  if (absl::Status status = touch_kv(client, ids, options); !status.ok()) return status;
  std::mt19937_64 random(options.seed);
  std::fprintf(stderr, "answering %d conversations alone\n", options.conversations);
  const auto talks = answered_alone(client, ids, options.conversations, options.longest, random);
  if (!talks.ok()) return talks.status();

  std::string folder = fs::temp_directory_path() / "annulus-soak-XXXXXX";
  if (mkdtemp(folder.data()) == nullptr) return absl::UnavailableError("no temporary folder");
  std::vector<std::string> files;
  for (const Conversation& talk : *talks) {
    files.push_back(absl::StrCat(folder, "/", files.size()));
    std::ofstream(files.back(), std::ios::binary) << pack_tokens(talk[0].prompt);
  }

  Soak soak(options, *server, *talks, files);
  // Before anything is compared, every thread has run.
  const double seconds = options.minutes * 60;
  std::fprintf(stderr, "%d streams at once; the first third warms up\n", options.streams);
  soak.run(seconds / 3);
  const auto before = settled(*server, client);
  if (!before.ok()) return before.status();
  const int64_t warm = soak.streams();
  soak.run(seconds * 2 / 3);
  const auto after = settled(*server, client);
  std::error_code ignored;
  fs::remove_all(folder, ignored);
  if (!after.ok()) return after.status();

  std::printf(
      "# annulus-bench soak: tp %d x cp %d, %s, %d streams at once, %.1f minutes, seed %llu\n",
      options.tp, options.cp, options.precision.c_str(), options.streams, options.minutes,
      static_cast<unsigned long long>(options.seed));
  soak.print();
  const int faults = compare(*before, *after, soak.streams() - warm);
  std::printf("%lld streams, %d wrong, %d holdings grew\n", static_cast<long long>(soak.streams()),
              soak.wrong(), faults);
  if (soak.wrong() + faults == 0) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(soak.wrong(), " streams ended wrong, ", faults,
                                          " holdings grew; the server said:\n", server->log()));
}

}  // namespace

int bench_soak(int argc, char** argv) {
  Options o;
  CLI::App app(
      "Many streams at once with random lengths, cancels, deadlines, killed clients and sessions:\n"
      "every stream must end as it may, with the text of the same request alone, and nothing may\n"
      "stay behind.",
      "annulus-bench soak");
  app.add_option("--model", o.model, "model file or folder (the server's default otherwise)");
  app.add_option("--cases", o.cases,
                 "generate.jsonl of tests/golden: prompts are slices of its ids")
      ->required();
  app.add_option("--minutes", o.minutes, "how long")->check(CLI::Range(0.05, 1e4));
  app.add_option("--streams", o.streams, "at once")->check(CLI::Range(1, 1024));
  app.add_option("--conversations", o.conversations, "different ones, answered alone first")
      ->check(CLI::PositiveNumber);
  app.add_option("--longest", o.longest, "tokens of a prompt, at most")->check(CLI::PositiveNumber);
  app.add_option("--kv-rows", o.kv_rows, "of a rank: fewer make requests wait for each other");
  app.add_option("--tp", o.tp, "tensor-parallel ranks");
  app.add_option("--cp", o.cp, "context-parallel ranks");
  app.add_option("--precision", o.precision, "fp32, or default (texts may then differ)");
  app.add_option("--seed", o.seed, "of lengths and fates");
  app.footer("  annulus-bench soak --cases tests/golden/generate.jsonl --minutes 10");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = run(o);
  if (status.ok()) return 0;
  std::fprintf(stderr, "annulus-bench soak: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace annulus::bench
