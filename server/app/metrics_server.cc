// SPDX-License-Identifier: Apache-2.0
#include "server/app/metrics_server.h"

#include <prometheus/collectable.h>
#include <prometheus/exposer.h>
#include <prometheus/metric_family.h>

#include <exception>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/host_port.h"
#include "server/one_line.h"

namespace annulus::server {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

struct Sample {
  double value = 0;
  Labels labels{};
};
using Samples = std::vector<Sample>;

Samples one(double value) {
  return {{value}};
}

MetricFamily gauge(const char* name, const char* help, const Samples& samples) {
  MetricFamily out{name, help, MetricType::Gauge, {}};
  for (const Sample& sample : samples) {
    ClientMetric& metric = out.metric.emplace_back();
    metric.label = sample.labels;
    metric.gauge.value = sample.value;
  }
  return out;
}

MetricFamily counter(const char* name, const char* help, const Samples& samples) {
  MetricFamily out{name, help, MetricType::Counter, {}};
  for (const Sample& sample : samples) {
    ClientMetric& metric = out.metric.emplace_back();
    metric.label = sample.labels;
    metric.counter.value = sample.value;
  }
  return out;
}

void add(MetricFamily& family, const Histogram& histogram, Labels labels = {}) {
  ClientMetric& metric = family.metric.emplace_back();
  metric.label = std::move(labels);
  uint64_t below = 0;
  for (size_t b = 0; b < histogram.counts.size(); ++b) {
    below += static_cast<uint64_t>(histogram.counts[b]);
    const double bound =
        b < histogram.bounds.size() ? histogram.bounds[b] : std::numeric_limits<double>::infinity();
    metric.histogram.bucket.push_back({below, bound});
  }
  metric.histogram.sample_count = below;
  metric.histogram.sample_sum = histogram.sum;
}

MetricFamily histogram(const char* name, const char* help, const Histogram& values) {
  MetricFamily out{name, help, MetricType::Histogram, {}};
  add(out, values);
  return out;
}

template <class Rank, class Value>
Samples by_rank(const std::vector<Rank>& ranks, const Value& value, const Labels& more = {}) {
  Samples out;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    Labels labels = {{"rank", absl::StrCat(rank)}};
    labels.insert(labels.end(), more.begin(), more.end());
    out.push_back({static_cast<double>(value(ranks[rank])), std::move(labels)});
  }
  return out;
}

using Families = std::vector<MetricFamily>;

void add_requests(const MetricsView& view, Families& out) {
  Samples by_code;
  for (size_t code = 0; code < view.requests.size(); ++code) {
    by_code.push_back({static_cast<double>(view.requests[code]),
                       {{"code", absl::StatusCodeToString(static_cast<absl::StatusCode>(code))}}});
  }
  const ClusterStatus& cluster = view.cluster;
  const EngineMetrics& engine = view.engine;
  const auto count = [](int64_t n) { return one(static_cast<double>(n)); };
  out.push_back(counter("annulus_requests_total",
                        "Generate calls that have ended, by the gRPC code that the client saw.",
                        by_code));
  out.push_back(gauge("annulus_requests_running", "Requests that are being computed.",
                      count(cluster.requests_running)));
  out.push_back(gauge("annulus_requests_waiting", "Requests that wait to be computed.",
                      count(cluster.requests_waiting)));
  out.push_back(gauge("annulus_sessions", "Sessions that are kept.", count(cluster.sessions)));
  out.push_back(counter("annulus_prompt_tokens_total",
                        "Prompt tokens whose KV is there, computed or found in the cache.",
                        count(engine.prompt_tokens)));
  out.push_back(counter("annulus_cached_tokens_total",
                        "Prompt tokens whose KV was found in the cache of a session.",
                        count(engine.cached_tokens)));
  out.push_back(counter("annulus_generation_tokens_total", "Tokens generated.",
                        count(engine.generation_tokens)));
  out.push_back(histogram("annulus_request_queue_time_seconds",
                          "From submission to admission, or to the end of a request that was "
                          "cancelled while it waited.",
                          engine.queue));
  out.push_back(histogram("annulus_time_to_first_token_seconds",
                          "From submission to the first token.", engine.first_token));
  out.push_back(histogram("annulus_time_per_output_token_seconds",
                          "From one token of a request to its next.", engine.token_gap));
  out.push_back(histogram("annulus_e2e_request_latency_seconds",
                          "From submission to the end of requests that were answered whole.",
                          engine.finished));
}

void add_steps(const EngineMetrics& engine, Families& out) {
  Samples by_variant;
  MetricFamily times{"annulus_step_time_seconds",
                     "A step on its slowest rank. Prefill: it computes prompt tokens.",
                     MetricType::Histogram,
                     {}};
  for (size_t phase = 0; phase < kStepPhases; ++phase) {
    const ClientMetric::Label label{"phase", kStepPhaseNames[phase]};
    for (size_t v = 0; v < engine.steps[phase].size(); ++v) {
      const char* variant = parallel::name(static_cast<parallel::Variant>(v));
      by_variant.push_back(
          {static_cast<double>(engine.steps[phase][v]), {{"attention", variant}, label}});
    }
    add(times, engine.step_time[phase], {label});
  }
  out.push_back(counter("annulus_steps_total",
                        "Steps, by the attention variant that they used; one that used two counts "
                        "for both.",
                        by_variant));
  out.push_back(std::move(times));
}

// What ranks have done since the front end began, whoever they were.
void add_rank_counts(const std::vector<RankCounts>& ranks, Families& out) {
  out.push_back(counter("annulus_rank_compute_seconds_total", "Time in steps, but for waiting.",
                        by_rank(ranks, [](const RankCounts& r) { return r.compute_s; })));
  Samples waits = by_rank(ranks, [](const RankCounts& r) { return r.ring_s; }, {{"where", "ring"}});
  const Samples others =
      by_rank(ranks, [](const RankCounts& r) { return r.other_s; }, {{"where", "other"}});
  waits.insert(waits.end(), others.begin(), others.end());
  out.push_back(counter("annulus_rank_exposed_communication_seconds_total",
                        "Time in steps waiting for peers: in attention (ring, gather, return of "
                        "partials) or elsewhere (sums over TP ranks, sampled ids).",
                        waits));
  out.push_back(counter("annulus_rank_idle_seconds_total",
                        "Time between steps, waiting for the front end.",
                        by_rank(ranks, [](const RankCounts& r) { return r.idle_s; })));
  out.push_back(counter("annulus_rank_attention_sent_bytes_total",
                        "Bytes that attention sent to peers.",
                        by_rank(ranks, [](const RankCounts& r) { return r.sent_bytes; })));
  out.push_back(counter("annulus_rank_straggler_warnings_total",
                        "Times that it became a straggler.",
                        by_rank(ranks, [](const RankCounts& r) { return r.straggler_warnings; })));
}

// The ranks of the epoch that serves.
void add_ranks(const ClusterStatus& cluster, Families& out) {
  const std::vector<RankStatus>& ranks = cluster.ranks;
  Samples infos;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    const auto world_rank = static_cast<int32_t>(rank);
    infos.push_back({1,
                     {{"rank", absl::StrCat(rank)},
                      {"tp_rank", absl::StrCat(cluster.topology.tp_rank(world_rank))},
                      {"cp_rank", absl::StrCat(cluster.topology.cp_rank(world_rank))},
                      {"host", one_line(ranks[rank].info.host)}}});
  }
  out.push_back(gauge("annulus_rank_info", "Where a rank runs; always 1.", infos));
  out.push_back(gauge("annulus_kv_rows_used", "Tokens whose KV a rank holds.",
                      by_rank(ranks, [](const RankStatus& r) { return r.kv_rows; })));
  out.push_back(gauge("annulus_kv_rows_capacity", "Tokens whose KV a rank can hold.",
                      by_rank(ranks, [&](const RankStatus&) { return cluster.kv_capacity_rows; })));
  out.push_back(gauge("annulus_rank_resident_memory_bytes", "Resident memory of a rank's process.",
                      by_rank(ranks, [](const RankStatus& r) { return r.resident_bytes; })));
  out.push_back(gauge("annulus_rank_straggler", "1: all wait for it, and a warning names it.",
                      by_rank(ranks, [](const RankStatus& r) { return r.recent.straggles; })));
  out.push_back(gauge("annulus_rank_excess_ratio",
                      "Compute time over the ranks' median, less one, its share of the work "
                      "considered; of the last window of steps.",
                      by_rank(ranks, [](const RankStatus& r) { return r.recent.excess; })));
}

Families families(const MetricsFacts& facts, const MetricsView& view) {
  const auto& [tp, cp] = facts.topology;
  const auto number = [](auto n) { return one(static_cast<double>(n)); };
  Families out;
  out.push_back(gauge("annulus_build_info", "What is served by which build; always 1.",
                      {{1,
                        {{"version", facts.version},
                         {"model", one_line(facts.model)},
                         {"precision", facts.precision},
                         {"context", absl::StrCat(facts.context)},
                         {"tp", absl::StrCat(tp)},
                         {"cp", absl::StrCat(cp)}}}}));
  out.push_back(gauge("annulus_serving", "1: all ranks are there and loaded.",
                      number(view.cluster.serving ? 1 : 0)));
  out.push_back(
      gauge("annulus_epoch", "Number of the present or last epoch.", number(view.cluster.epoch)));
  out.push_back(counter("annulus_epochs_lost_total",
                        "Epochs that ended because a rank was lost or a step hung.",
                        number(view.engine.epochs_lost)));
  out.push_back(gauge("annulus_ranks", "Ranks of an epoch: TP x CP.", number(tp * cp)));
  out.push_back(
      gauge("annulus_ranks_ready",
            "Ranks that nobody waits for: attached, and while an epoch starts also loaded.",
            number(view.ranks_ready)));
  out.push_back(gauge("annulus_engine_stalled_seconds",
                      "Since the engine's thread last came round; it does so every second.",
                      number(view.engine_stalled_s)));
  add_requests(view, out);
  add_steps(view.engine, out);
  add_rank_counts(view.engine.ranks, out);
  if (view.cluster.serving) add_ranks(view.cluster, out);
  std::erase_if(out, [](const MetricFamily& family) { return family.metric.empty(); });
  return out;
}

class Scrape final : public prometheus::Collectable {
 public:
  Scrape(MetricsFacts facts, std::function<MetricsView()> look)
      : facts_(std::move(facts)), look_(std::move(look)) {}
  Families Collect() const override { return families(facts_, look_()); }

 private:
  const MetricsFacts facts_;
  const std::function<MetricsView()> look_;
};

// CivetWeb's own names. No keep-alive and no folder to serve is what it does unasked.
std::vector<std::string> options(const std::string& address) {
  return {"listening_ports",    address, "num_threads",       "16",
          "request_timeout_ms", "2000",  "linger_timeout_ms", "1000"};
}

}  // namespace

struct MetricsServer::Impl {
  Impl(const std::string& address, std::shared_ptr<Scrape> what)
      : scrape(std::move(what)), exposer(options(address)) {
    exposer.RegisterCollectable(scrape);
  }

  std::shared_ptr<Scrape> scrape;
  prometheus::Exposer exposer;
};

MetricsServer::MetricsServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

MetricsServer::~MetricsServer() = default;

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::start(
    const std::string& host, int port, MetricsFacts facts, std::function<MetricsView()> look) {
  const std::string address = join_host_port(host, port);
  try {
    auto scrape = std::make_shared<Scrape>(std::move(facts), std::move(look));
    return std::unique_ptr<MetricsServer>(
        new MetricsServer(std::make_unique<Impl>(address, std::move(scrape))));
  } catch (const std::exception&) {  // it says no more than "Possible problem binding to port"
    return absl::UnavailableError(absl::StrCat(
        "cannot listen on ", address,
        " for metrics: the port is taken or the address is not this machine's (port 0 takes any "
        "free one)"));
  }
}

int MetricsServer::port() const {
  return impl_->exposer.GetListeningPorts().front();
}

}  // namespace annulus::server
