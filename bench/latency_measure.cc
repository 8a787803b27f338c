// SPDX-License-Identifier: Apache-2.0
#include "bench/latency_measure.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace annulus::bench {
namespace {

constexpr int kChecked = 8;  // greedy tokens that are compared

int64_t cached_of(int64_t length, double miss) {
  const auto fresh = static_cast<int64_t>(std::llround(static_cast<double>(length) * miss));
  return length - std::clamp<int64_t>(fresh, 1, length);
}

// The mean over ranks of what they have spent so far.
absl::StatusOr<Breakdown> spent(const Client& client, int64_t epoch) {
  const auto cluster = client.cluster();
  if (!cluster.ok()) return cluster.status();
  if (cluster->epoch() != epoch) {
    return absl::AbortedError("the server began a new epoch while it was measured");
  }
  Breakdown sum;
  for (const v1::Rank& rank : cluster->ranks()) {
    const v1::Spent& spent = rank.spent();
    double waits = spent.sendrecv_us() + spent.all_to_all_us() + spent.all_gather_us();
    sum["steps"] += spent.steps_us();
    sum["sendrecv"] += spent.sendrecv_us();
    sum["all_to_all"] += spent.all_to_all_us();
    sum["all_gather"] += spent.all_gather_us();
    if (spent.phases_us().empty()) {
      sum["attention"] += spent.attention_us();
      sum["rest"] += spent.steps_us() - spent.attention_us() - waits;
      continue;
    }
    for (const auto& [phase, us] : spent.phases_us()) {
      if (phase == "attention" || phase == "merge") {
        sum["attention"] += us;
      } else if (phase == "wait") {
        sum["other_wait"] += us - waits;  // sums of TP, ids of sampled tokens
      } else if (absl::StartsWith(phase, "matmul") || phase == "head") {
        sum["gemm"] += us;
      } else {
        sum["other"] += us;
      }
    }
  }
  for (auto& [part, us] : sum) us /= std::max(1, cluster->ranks_size());
  return sum;
}

// to += (after - before) / by.
void add_growth(Breakdown& to, const Breakdown& before, const Breakdown& after, double by) {
  for (const auto& [part, us] : after) {
    const auto it = before.find(part);
    to[part] += std::max(0.0, us - (it == before.end() ? 0 : it->second)) / by;
  }
}

std::vector<CheckedToken> checked(const std::vector<v1::Token>& tokens) {
  std::vector<CheckedToken> out;
  for (const v1::Token& token : tokens) {
    const double lead = token.top_size() > 1
                            ? static_cast<double>(token.top(0).logprob()) - token.top(1).logprob()
                            : 0;
    out.push_back({token.id(), token.logprob(), lead});
  }
  return out;
}

std::string most_of(const google::protobuf::Map<std::string, int64_t>& counts) {
  std::string best;
  int64_t most = 0;
  for (const auto& [variant, count] : counts) {
    if (count > most || (count == most && variant < best)) {
      best = variant;
      most = count;
    }
  }
  return best;
}

class Measurement {
 public:
  Measurement(const Client& client, const Served& served, const LatencyPlan& plan,
              const OnLatencyProgress& on_progress)
      : client_(client),
        served_(served),
        plan_(plan),
        on_progress_(on_progress),
        variants_(plan.variants_of(served.cluster.cp())),
        session_(absl::StrCat("annulus-bench-latency-", getpid())) {}

  absl::Status run(const OnLatencyPoint& on_point) {
    const absl::Cleanup close = [this] { client_.close_session(session_).IgnoreError(); };
    for (const int64_t length : plan_.lengths) {
      const std::vector<int32_t> prompt = synthetic_ids(length, served_.model.vocab());
      for (const double miss : plan_.misses) {
        auto point = measure_point(prompt, miss);
        if (!point.ok()) return point.status();
        on_point(*std::move(point));
      }
    }
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<std::vector<LatencyRow>> measure_point(const std::vector<int32_t>& prompt,
                                                        double miss) {
    LatencyRow row;
    row.tp = served_.cluster.tp();
    row.cp = served_.cluster.cp();
    row.length = static_cast<int64_t>(prompt.size());
    row.miss = miss;
    row.cached = cached_of(row.length, miss);
    std::vector<LatencyRow> rows(variants_.size(), row);
    where_ = absl::StrFormat("%d tokens, miss %g %%", row.length, 100 * miss);
    packed_ = pack_tokens(prompt);
    client_.close_session(session_).IgnoreError();
    if (row.cached > 0) {
      v1::GenerateRequest prefix = request("auto", 1);
      prefix.set_packed_tokens(packed_.substr(0, static_cast<size_t>(row.cached) * 4));
      if (const auto answer = ask(prefix, row.cached); !answer.ok()) return answer.status();
    }
    for (int turn = 0; turn < plan_.warmup + plan_.repetitions; ++turn) {
      for (size_t v = 0; v < variants_.size(); ++v) {
        rows[v].variant = variants_[v];
        turn_ = absl::StrFormat("%s, %s %d of %d", variants_[v],
                                turn < plan_.warmup ? "warm-up" : "repetition",
                                turn < plan_.warmup ? turn + 1 : turn - plan_.warmup + 1,
                                turn < plan_.warmup ? plan_.warmup : plan_.repetitions);
        if (absl::Status status = measure_turn(rows[v], turn); !status.ok()) return status;
      }
    }
    return rows;
  }

  absl::Status measure_turn(LatencyRow& row, int turn) {
    const bool counts = turn >= plan_.warmup;
    // Length 0 closes the session: where nothing is cached it may not be there yet.
    const absl::Status rewound = client_.rewind_session(session_, row.cached);
    if (!rewound.ok() && row.cached > 0) return explain(rewound);
    v1::GenerateRequest prompt = request(row.variant, turn == 0 ? kChecked : 1);
    prompt.set_packed_tokens(packed_);
    if (turn == 0) prompt.set_top_logprobs(2);
    const auto before = spent(client_, served_.cluster.epoch());
    if (!before.ok()) return before.status();
    const auto answer = ask(prompt, row.fresh());
    if (!answer.ok()) return answer.status();
    if (answer->accepted.cached_tokens() != row.cached) {
      return absl::AbortedError(absl::StrCat("of ", row.cached, " tokens that should be cached ",
                                             answer->accepted.cached_tokens(),
                                             " were: somebody else uses the server"));
    }
    if (turn == 0) row.answer = checked(answer->tokens);
    if (answer->tokens.empty() || row.answer.empty())
      return explain(absl::AbortedError("the answer has no token"));
    row.strayed += answer->tokens[0].id() != row.answer[0].id;
    if (counts) {
      const auto after = spent(client_, served_.cluster.epoch());
      if (!after.ok()) return after.status();
      add_growth(row.prefill_us, *before, *after, plan_.repetitions);
      row.ttft_ms.push_back(answer->ttft_ms);
      row.chosen = most_of(answer->finished.usage().prefill_steps());
    }
    const bool last = turn + 1 == plan_.warmup + plan_.repetitions;
    return last && plan_.output > 0 ? measure_decode(row) : absl::OkStatus();
  }

  // Goes on behind the prompt: one more token of it, then as many steps as there are gaps.
  absl::Status measure_decode(LatencyRow& row) {
    v1::GenerateRequest more = request(row.variant, plan_.output + 1);
    more.set_append(true);
    more.set_packed_tokens(pack_tokens({1}));
    const auto before = spent(client_, served_.cluster.epoch());
    if (!before.ok()) return before.status();
    const auto answer = ask(more, plan_.output);
    if (!answer.ok()) return answer.status();
    const auto after = spent(client_, served_.cluster.epoch());
    if (!after.ok()) return after.status();
    add_growth(row.decode_us, *before, *after, plan_.output + 1);
    for (size_t i = 1; i < answer->token_ms.size(); ++i)
      row.ttit_ms.push_back(answer->token_ms[i] - answer->token_ms[i - 1]);
    return absl::OkStatus();
  }

  v1::GenerateRequest request(const std::string& variant, int max_tokens) const {
    v1::GenerateRequest out;
    out.set_session(session_);
    out.set_max_tokens(static_cast<uint32_t>(max_tokens));
    out.set_ignore_eos(true);
    out.set_attention(attention_of(variant));
    return out;
  }

  absl::StatusOr<Answer> ask(const v1::GenerateRequest& request, int64_t tokens) {
    const std::string note = absl::StrCat(where_, ", ", turn_);
    if (on_progress_) on_progress_(done_, note);
    auto answer =
        client_.generate(request, plan_.timeout_s, [&](const v1::PrefillProgress& progress) {
          const double share = static_cast<double>(progress.done()) /
                               std::max(1.0, static_cast<double>(progress.total()));
          if (on_progress_) on_progress_(done_ + share * static_cast<double>(tokens), note);
        });
    done_ += static_cast<double>(tokens);
    if (!answer.ok()) return explain(answer.status());
    return answer;
  }

  absl::Status explain(const absl::Status& status) const {
    return {status.code(), absl::StrCat("at ", where_, ": ", status.message(),
                                        absl::IsDeadlineExceeded(status)
                                            ? absl::StrCat(" after --timeout ", plan_.timeout_s)
                                            : "")};
  }

  const Client& client_;
  const Served& served_;
  const LatencyPlan& plan_;
  const OnLatencyProgress& on_progress_;
  const std::vector<std::string> variants_;
  const std::string session_;
  std::string packed_, where_, turn_ = "caching the prefix";
  double done_ = 0;
};

}  // namespace

std::vector<std::string> LatencyPlan::variants_of(int cp) const {
  return cp > 1 ? variants : std::vector<std::string>{variants.front()};
}

double LatencyPlan::tokens(int cp) const {
  const auto choices = static_cast<double>(variants_of(cp).size());
  double sum = 0;
  for (const int64_t length : lengths) {
    for (const double miss : misses) {
      const int64_t cached = cached_of(length, miss);
      sum += static_cast<double>(cached) +
             choices * (static_cast<double>(length - cached) * (warmup + repetitions) + output);
    }
  }
  return sum;
}

nlohmann::json LatencyPlan::to_json() const {
  return {{"lengths", lengths}, {"misses", misses},           {"variants", variants},
          {"warmup", warmup},   {"repetitions", repetitions}, {"output", output}};
}

nlohmann::json describe(const std::string& address, const Served& served) {
  nlohmann::json ranks = nlohmann::json::array();
  for (const v1::Rank& rank : served.cluster.ranks()) {
    ranks.push_back({{"world_rank", rank.world_rank()},
                     {"tp_rank", rank.tp_rank()},
                     {"cp_rank", rank.cp_rank()},
                     {"host", rank.host()},
                     {"pid", rank.pid()},
                     {"device", rank.cpu_isa()},
                     {"threads", rank.threads()}});
  }
  nlohmann::json profile = nlohmann::json::object();
  for (const auto& [field, value] : served.cluster.profile()) profile[field] = value;
  return {{"address", address},
          {"tp", served.cluster.tp()},
          {"cp", served.cluster.cp()},
          {"context", served.model.served_context()},
          {"ranks", ranks},
          {"profile", profile}};
}

absl::Status check_fits(const LatencyPlan& plan, const Served& served) {
  const int64_t longest = *std::max_element(plan.lengths.begin(), plan.lengths.end());
  const int64_t behind = std::max(kChecked, plan.output + 2);
  if (longest + behind <= served.model.served_context()) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrCat(
      "length ", longest, " and ", behind, " tokens behind it do not fit the served context of ",
      served.model.served_context(), "; lower --lengths or serve with a larger --context"));
}

absl::Status measure_latency(const Client& client, const Served& served, const LatencyPlan& plan,
                             const OnLatencyProgress& on_progress, const OnLatencyPoint& on_point) {
  return Measurement(client, served, plan, on_progress).run(on_point);
}

}  // namespace annulus::bench
