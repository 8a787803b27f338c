// SPDX-License-Identifier: Apache-2.0
#include "bench/recall_run.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <map>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"

namespace annulus::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint32_t kTop = 4;  // ids reported at every checked position
constexpr size_t kMostFaults = 20;
constexpr double kQuietMs = 2e3;  // of a cluster without steps: nothing is left to come
constexpr int kReports = 16;      // lines while a prompt runs

// Allowed |answered - computed| log-probability. Scores are sums of exact products, rounded once
// at 2^-18, and exp doubles that: probabilities err by 2e-5 of themselves with the order of a
// million additions. Logits are at most 104 of them apart: 2e-3; twice and a half that in fp32.
// With a bf16 cache a rotated component whose fp32 cosine falls on the other side of a tie moves a
// score by 2^-8, that is p = 1/2 by 2^-10 and its logit by 104 of these; where P, the head's output
// and the last norm's are rounded to bf16 too (vdpbf16ps), each moves logits by 2^-9 of themselves,
// and with them every difference: `apart`, from the best. A lost or doubled needle moves p = 1/2 by
// 1/6 and these differences by 1.3 at the least.
constexpr double kToleranceF32 = 5e-3, kToleranceBf16 = 104 * 0x1p-10;

double tolerance(const RecallOptions& options, double apart) {
  return options.bf16_cache ? kToleranceBf16 + apart * 3 / 512 : kToleranceF32;
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

v1::GenerateRequest request_for(const RecallPrompt& prompt, const RecallOptions& options) {
  v1::GenerateRequest request;
  request.set_packed_tokens(pack_tokens(prompt.ids));
  request.set_ignore_eos(true);
  request.set_top_logprobs(kTop);
  request.set_max_tokens(static_cast<uint32_t>(prompt.forced.size() + 1));
  for (const int32_t id : prompt.forced) request.add_forced_tokens(static_cast<uint32_t>(id));
  for (const RecallCheck& check : prompt.prompt_checks) {
    request.add_prompt_logprob_positions(check.position);
  }
  request.set_attention(options.attention);
  if (options.in_chunks) request.set_chunk_tokens(static_cast<uint32_t>(prompt.layout.chunk));
  return request;
}

// Follows a run: checks what comes, prints, samples memory.
class Run {
 public:
  Run(const Client& client, const RecallPrompt& prompt, const RecallOptions& options)
      : client_(client), prompt_(prompt), options_(options) {
    report_.found_by_rank.assign(static_cast<size_t>(prompt.layout.cp), 0);
  }

  absl::StatusOr<RecallReport> run() {
    auto before = client_.cluster();
    if (!before.ok()) return before.status();
    report_.resident_before = resident(*before);
    print_header();
    start_ = last_line_ = Clock::now();
    const absl::Status status =
        client_.stream(request_for(prompt_, options_), [this](v1::GenerateResponse& event) {
          take(event);
          return true;
        });
    if (!status.ok()) return status;
    auto after = emptied();
    if (!after.ok()) return after.status();
    finish(*after);
    return std::move(report_);
  }

 private:
  template <class... Parts>
  void fault(const Parts&... parts) {
    if (report_.faults.size() < kMostFaults) report_.faults.push_back(absl::StrCat(parts...));
  }

  static std::vector<int64_t> resident(const v1::GetClusterResponse& cluster) {
    std::vector<int64_t> bytes;
    for (const v1::Rank& rank : cluster.ranks()) {
      bytes.push_back(resident_bytes(static_cast<pid_t>(rank.pid())));
    }
    return bytes;
  }

  // The cluster once it holds no rows, or after ten seconds: rows are freed by a step of their own.
  absl::StatusOr<v1::GetClusterResponse> emptied() const {
    for (int i = 0;; ++i) {
      auto cluster = client_.cluster();
      if (!cluster.ok() || i == 1000) return cluster;
      if (std::all_of(cluster->ranks().begin(), cluster->ranks().end(),
                      [](const v1::Rank& rank) { return rank.kv_rows() == 0; })) {
        return cluster;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }

  void take(v1::GenerateResponse& event) {
    switch (event.event_case()) {
      case v1::GenerateResponse::kProgress: progress(event.progress()); break;
      case v1::GenerateResponse::kPromptLogprob: {
        const v1::PromptLogprob& p = event.prompt_logprob();
        report_.logprobs.push_back({p.position(), {p.top().begin(), p.top().end()}});
        break;
      }
      case v1::GenerateResponse::kToken: {
        // Token k is chosen from the logits of the position before it.
        const int64_t position = prompt_.layout.tokens - 1 + tokens_++;
        if (position == prompt_.layout.tokens - 1) break;  // among the prompt's
        const v1::Token& t = event.token();
        report_.logprobs.push_back({position, {t.top().begin(), t.top().end()}});
        break;
      }
      case v1::GenerateResponse::kFinished:
        report_.decode_ms = event.finished().usage().decode_ms();
        for (const auto& [variant, n] : event.finished().usage().prefill_steps()) {
          report_.prefill_steps[variant] = n;
        }
        if (event.finished().reason() != "length")
          fault("it ended with ", event.finished().reason());
        break;
      default: break;
    }
  }

  void progress(const v1::PrefillProgress& p) {
    ++report_.progress_events;
    const int64_t gap = p.done() - done_;
    report_.longest_gap_tokens = std::max(report_.longest_gap_tokens, gap);
    if (gap <= 0) fault("progress goes from ", done_, " to ", p.done());
    if (p.total() != prompt_.layout.tokens) fault("progress says ", p.total(), " tokens in all");
    done_ = p.done();
    report_.prefill_s = seconds_since(start_);
    const int64_t part = prompt_.layout.tokens / kReports;
    if (done_ / std::max<int64_t>(part, 1) == lines_ && done_ < prompt_.layout.tokens) return;
    lines_ = done_ / std::max<int64_t>(part, 1);
    const auto cluster = client_.cluster();
    if (!cluster.ok()) return fault("while it ran: ", std::string(cluster.status().message()));
    sample(*cluster);
  }

  // KV and memory now. The first sample is the warm-up: buffers have their size by then.
  void sample(const v1::GetClusterResponse& cluster) {
    const std::vector<int64_t> bytes = resident(cluster);
    std::vector<int64_t> kv_rows, kv_bytes;
    int64_t workspace = 0;
    for (const v1::Rank& rank : cluster.ranks()) {
      kv_rows.push_back(rank.kv_rows());
      kv_bytes.push_back(rank.kv_bytes());
      workspace = std::max(workspace, rank.workspace_peak_bytes());
    }
    const auto [least, most] = std::minmax_element(kv_rows.begin(), kv_rows.end());
    report_.least_kv_rows = *least;
    report_.most_kv_rows = *most;
    // Chunks are whole multiples of 2 CP but for the last, which adds a row to some ranks, and of
    // the plans in flight, two where steps are short, some ranks have answered all and some none.
    const int64_t in_flight = 2 * prompt_.layout.chunk / prompt_.layout.cp + 2;
    const bool whole_chunks = prompt_.layout.chunk % (2 * prompt_.layout.cp) == 0;
    if (options_.in_chunks && whole_chunks && *most - *least > in_flight) {
      fault("after ", done_, " tokens the ranks hold ", *least, " to ", *most, " rows");
    }
    if (warm_bytes_.empty()) {
      warm_bytes_ = bytes;
      warm_kv_ = kv_bytes;
      warm_workspace_ = workspace;
    }
    for (size_t r = 0; r < bytes.size(); ++r) {
      // What may grow: the rows' pages; 4 bytes of position a row, twice while the list doubles;
      // 4 bytes for every position of other ranks that a step looks at; pass-KV's buffers, which
      // hold a rank's share three times. And 8 MiB for the allocator. Nothing else knows the
      // length of the prompt.
      const int64_t allowed = kv_bytes[r] - warm_kv_[r] + workspace - warm_workspace_ +
                              12 * (kv_rows[r] + 1) + 4 * done_ + (int64_t{8} << 20);
      const int64_t growth = bytes[r] - warm_bytes_[r];
      if (growth - allowed > report_.resident_growth - report_.allowed_growth ||
          report_.allowed_growth == 0) {
        report_.resident_growth = growth;
        report_.allowed_growth = allowed;
      }
      if (bytes[r] > 0 && growth > allowed) {
        fault("rank ", r, " grew by ", growth,
              " bytes of memory since the first chunks, more than the ", allowed,
              " that its rows explain");
      }
    }
    print_line(bytes);
  }

  void finish(const v1::GetClusterResponse& after) {
    report_.resident_after = resident(after);
    if (done_ != prompt_.layout.tokens) fault("progress ended at ", done_);
    const int64_t most_gap = options_.in_chunks ? prompt_.layout.chunk : prompt_.layout.tokens;
    if (report_.longest_gap_tokens > most_gap) {
      fault("no progress over ", report_.longest_gap_tokens, " tokens");
    }
    // A chunk that is no multiple of 2 CP gives some ranks a row more.
    const int64_t chunks =
        (prompt_.layout.tokens + prompt_.layout.chunk - 1) / prompt_.layout.chunk;
    const bool whole = prompt_.layout.chunk % (2 * prompt_.layout.cp) == 0;
    if (report_.most_kv_rows - report_.least_kv_rows > (whole ? 2 : chunks + 1)) {
      fault("at the end the ranks held ", report_.least_kv_rows, " to ", report_.most_kv_rows,
            " rows");
    }
    for (const v1::Rank& rank : after.ranks()) {
      if (rank.kv_rows() != 0) {
        fault("rank ", rank.world_rank(), " still holds ", rank.kv_rows(), " rows");
      }
    }
    check_all();
  }

  void check_all() {
    std::vector<RecallCheck> wanted = prompt_.prompt_checks;
    wanted.insert(wanted.end(), prompt_.decode_checks.begin(), prompt_.decode_checks.end());
    std::sort(
        report_.logprobs.begin(), report_.logprobs.end(),
        [](const RecallLogprobs& a, const RecallLogprobs& b) { return a.position < b.position; });
    if (report_.logprobs.size() != wanted.size()) {
      return fault(report_.logprobs.size(), " positions were answered, not ", wanted.size());
    }
    std::set<int32_t> found;
    for (size_t i = 0; i < wanted.size(); ++i) check(wanted[i], report_.logprobs[i], found);
    for (const int32_t code : found) {
      const int64_t at = prompt_.needles[static_cast<size_t>(code)].position;
      ++report_.found_by_rank[static_cast<size_t>(prompt_.rank_of(at))];
    }
    for (size_t r = 0; r < report_.found_by_rank.size(); ++r) {
      if (report_.found_by_rank[r] == 0) fault("no needle of rank ", r, " came back");
    }
    if (found.size() != prompt_.needles.size()) {
      fault(found.size(), " different needles came back, not ", prompt_.needles.size());
    }
  }

  void check(const RecallCheck& check, const RecallLogprobs& got, std::set<int32_t>& found) {
    if (got.position != check.position || got.top.size() != kTop) {
      return fault("position ", check.position, " has no answer of ", kTop, " ids");
    }
    ++report_.checked;
    const RecallModel& model = prompt_.model;
    const RecallAnswer want = prompt_.answer(check, options_.bf16_cache);
    const auto best = static_cast<int32_t>(got.top[0].id());
    if (check.ask) {
      ++report_.asked;
      if (best == model.needle_id(check.code)) {
        ++report_.found;
        found.insert(check.code);
      } else {
        fault("asked at position ", check.position, ", the needle at position ",
              prompt_.needles[static_cast<size_t>(check.code)].position, " did not come back: id ",
              best);
      }
    }
    if (best != want.best && want.margin > 2 * tolerance(options_, want.margin)) {
      fault("position ", check.position, " answers id ", best, ", not ", want.best);
    }
    for (const v1::TokenLogprob& each : got.top) {
      const double computed = want.logprob(model, static_cast<int32_t>(each.id()));
      const double error = std::abs(static_cast<double>(each.logprob()) - computed);
      if (error > report_.worst_logprob) {
        report_.worst_logprob = error;
        report_.worst_position = check.position;
      }
      if (!(error <= tolerance(options_, -computed))) {
        fault("position ", check.position, ": log-probability of id ", each.id(), " is ",
              each.logprob(), ", computed ", computed);
        return;
      }
    }
  }

  void print_header() const {
    if (options_.out == nullptr) return;
    std::fprintf(options_.out, "%10s %9s %10s %17s  %-s\n", "tokens", "seconds", "tokens/s",
                 "KV rows/rank", "resident MB by rank, front end");
  }

  void print_line(const std::vector<int64_t>& bytes) {
    if (options_.out == nullptr) return;
    const double s = std::chrono::duration<double>(Clock::now() - last_line_).count();
    std::string memory;
    for (const int64_t b : bytes) absl::StrAppend(&memory, b / 1000000, " ");
    if (options_.front_end > 0) {
      absl::StrAppend(&memory, "| ", resident_bytes(options_.front_end) / 1000000);
    }
    std::fprintf(options_.out, "%10lld %9.1f %10.0f %8lld-%-8lld  %s\n",
                 static_cast<long long>(done_), seconds_since(start_),
                 static_cast<double>(done_ - last_done_) / std::max(s, 1e-9),
                 static_cast<long long>(report_.least_kv_rows),
                 static_cast<long long>(report_.most_kv_rows), memory.c_str());
    std::fflush(options_.out);
    last_line_ = Clock::now();
    last_done_ = done_;
  }

  const Client& client_;
  const RecallPrompt& prompt_;
  const RecallOptions& options_;
  RecallReport report_;
  Clock::time_point start_, last_line_;
  int64_t done_ = 0, last_done_ = 0, lines_ = 0, tokens_ = 0;
  std::vector<int64_t> warm_bytes_, warm_kv_;
  int64_t warm_workspace_ = 0;
};

}  // namespace

absl::StatusOr<RecallReport> run_recall(const Client& client, const RecallPrompt& prompt,
                                        const RecallOptions& options) {
  return Run(client, prompt, options).run();
}

absl::StatusOr<double> largest_difference(const RecallReport& a, const RecallReport& b) {
  if (a.logprobs.size() != b.logprobs.size()) {
    return absl::OutOfRangeError("different numbers of positions");
  }
  double worst = 0;
  for (size_t i = 0; i < a.logprobs.size(); ++i) {
    const RecallLogprobs &x = a.logprobs[i], &y = b.logprobs[i];
    if (x.position != y.position || x.top.size() != y.top.size() || x.top.empty() ||
        x.top[0].id() != y.top[0].id()) {
      return absl::OutOfRangeError(
          absl::StrCat("position ", x.position, " is answered differently"));
    }
    for (size_t k = 0; k < x.top.size(); ++k) {
      worst = std::max(worst, std::abs(static_cast<double>(x.top[k].logprob()) -
                                       static_cast<double>(y.top[k].logprob())));
    }
  }
  return worst;
}

absl::StatusOr<CancelReport> cancel_recall(const Client& client, const RecallPrompt& prompt,
                                           const RecallOptions& options, double after) {
  const auto at = static_cast<int64_t>(after * static_cast<double>(prompt.layout.tokens));
  CancelReport report;
  Clock::time_point cancelled;
  const absl::Status status =
      client.stream(request_for(prompt, options), [&](v1::GenerateResponse& event) {
        if (event.has_progress()) report.tokens_done = event.progress().done();
        if (report.tokens_done < at) return true;  // at 0: Accepted is enough
        cancelled = Clock::now();
        return false;
      });
  if (status.code() != absl::StatusCode::kCancelled) {
    return absl::InternalError(absl::StrCat("a cancelled prompt ended with: ", status.ToString()));
  }
  for (int64_t steps_at_effect = -1;;) {
    const auto cluster = client.cluster();
    if (!cluster.ok()) return cluster.status();
    const double ms = 1e3 * seconds_since(cancelled);
    int64_t rows = 0;
    for (const v1::Rank& rank : cluster->ranks()) {
      rows += rank.kv_rows();
      report.longest_step_ms = std::max(report.longest_step_ms, rank.step_us() / 1e3);
    }
    if (cluster->requests_running() + cluster->requests_waiting() == 0) {
      if (steps_at_effect < 0) {
        steps_at_effect = cluster->steps_total();
        report.effect_ms = ms;
      }
      // Until the step that runs is done, the ranks' rows are those before it. Where no step comes
      // any more, the last ones had ended before this looked.
      const int64_t steps = cluster->steps_total() - steps_at_effect;
      const bool quiet = steps == report.steps && rows == 0;
      if (quiet && (steps > 0 || ms > report.empty_ms + kQuietMs)) return report;
      if (!quiet || report.empty_ms == 0) report.empty_ms = ms;
      report.steps = steps;
    }
    if (ms > 60e3) {
      return absl::DeadlineExceededError(
          absl::StrCat("a minute after the cancel ", cluster->requests_running(),
                       " requests run and ", rows, " rows are held"));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

int64_t resident_bytes(pid_t pid) {
  std::ifstream statm(absl::StrCat("/proc/", pid, "/statm"));
  int64_t total = 0, resident_pages = 0;
  statm >> total >> resident_pages;
  return resident_pages * sysconf(_SC_PAGESIZE);
}

}  // namespace annulus::bench
