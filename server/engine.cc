// SPDX-License-Identifier: Apache-2.0
// Two locks: `mutex_` guards scheduler, clients and status (held for microseconds, never while a
// sink, the link or a callback is called); `inbox_mutex_` guards what wakes the engine thread.
#include "server/engine.h"

#include <sys/prctl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/core/check.h"
#include "server/profile_learner.h"
#include "server/scheduler.h"
#include "server/stop_matcher.h"
#include "server/stragglers.h"
#include "server/tokenizer/incremental_decoder.h"
#include "spdlog/spdlog.h"

namespace annulus::server {
namespace {

using parallel::StepResult;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kRound{1};  // the engine thread comes round at least that often

double ms_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

double s_between(Clock::time_point from, Clock::time_point to) {
  return ms_between(from, to) / 1000;
}

SchedulerLimits limits_of(const parallel::LlamaConfig& config, const Tokenizer* tokenizer,
                          const EngineOptions& options) {
  SchedulerLimits limits;
  limits.context = options.context > 0 ? options.context : config.context;
  limits.vocab = config.vocab;
  if (tokenizer != nullptr) limits.eos_ids = tokenizer->eos_ids();
  limits.max_running = options.max_running;
  limits.max_queue = options.max_queue;
  limits.max_sessions = options.max_sessions;
  limits.max_step_us = 1e3 * options.max_step_ms;
  limits.chunk_tokens = options.chunk_tokens;
  limits.debug_requests = options.debug_requests;
  limits.variant = options.variant;
  return limits;
}

// The side of a request that the scheduler does not know: text, times, where events go.
struct Client {
  Client(const Tokenizer* tokenizer, std::vector<std::string> stops, EventSink event_sink)
      : sink(std::make_shared<EventSink>(std::move(event_sink))), matcher(std::move(stops)) {
    if (tokenizer != nullptr) decoder.emplace(*tokenizer, /*show_special=*/false);
  }

  std::shared_ptr<EventSink> sink;
  std::optional<IncrementalDecoder> decoder;
  StopMatcher matcher;
  int64_t tokens = 0;
  int64_t cached = 0, prefilled = 0;  // tokens of the prompt
  Clock::time_point submitted = Clock::now(), admitted, first_token, last_token;
};

std::string describe(const ProfileLearner& learner) {
  if (learner.epochs_learned() == 0) return "measured";
  return absl::StrFormat(
      "measured, corrected by the steps of %d epoch%s: attention takes x %.2f, transfers x %.2f",
      learner.epochs_learned(), learner.epochs_learned() == 1 ? "" : "s",
      learner.attention_factor(), learner.transfer_factor());
}

// A step that is at the ranks.
struct Pending {
  std::vector<StepResult> results;
};

// Steps since the last window ended (stragglers.h).
struct Window {
  struct Rank {
    RankWindow work;
    double ring_us = 0, waited_us = 0;
  };
  std::vector<Rank> ranks;
  double steps_us = 0;  // of the slowest rank of each
  int64_t steps = 0;
};

}  // namespace

void RankSpent::add(const StepResult& result) {
  steps_us += result.step_us;
  waited_us += result.waited_us;
  for (const parallel::GroupReport& group : result.groups) {
    attention_us += group.attend_us;
    all_to_all_us += group.all_to_all_us;
    const bool gathers = group.variant == parallel::Variant::kGatherQ;
    (gathers ? all_gather_us : sendrecv_us) += group.exposed_us - group.all_to_all_us;
  }
  for (size_t p = 0; p < std::min(result.phase_us.size(), phases_us.size()); ++p) {
    phases_us[p] += result.phase_us[p];
  }
}

struct Engine::Impl {
  Impl(const parallel::LlamaConfig& config, std::shared_ptr<const Tokenizer> text,
       std::unique_ptr<RankLink> rank_link, const EngineOptions& options)
      : tokenizer(std::move(text)),
        scheduler(limits_of(config, tokenizer.get(), options)),
        link(std::move(rank_link)) {
    status.why_not = "waiting for the ranks";
    thread = std::thread([this] { run(); });
    link->start([this](LinkEvent event) {
      const std::lock_guard lock(inbox_mutex);
      inbox.push_back(std::move(event));
      wake.notify_one();
    });
  }

  ~Impl() {
    {
      const std::lock_guard lock(inbox_mutex);
      stopping = true;
      wake.notify_one();
    }
    thread.join();
    link.reset();  // its threads may still call the inbox
  }

  void poke() {
    const std::lock_guard lock(inbox_mutex);
    poked = true;
    wake.notify_one();
  }

  void run();
  void handle(EpochReady ready);
  void handle(RankAnswer answer);
  void handle(EpochLost lost);
  void finish_step(int64_t step, const std::vector<StepResult>& results);
  void watch(const std::vector<StepResult>& results);
  void serving_changed(bool serving);
  void deliver();
  std::string text_of(Client& client, const SequenceEvent& event, const Token& token);
  void post(Client& client, Event event) {
    outbox.push_back(
        [sink = client.sink, event = std::move(event)]() mutable { (*sink)(std::move(event)); });
  }

  const std::shared_ptr<const Tokenizer> tokenizer;

  mutable std::mutex mutex;
  Scheduler scheduler;
  std::map<int64_t, Client> clients;
  std::map<int64_t, Pending> pending;  // by step
  parallel::PolicyInput policy;        // of this epoch
  ProfileLearner learner;
  bool learns = false;  // from this epoch's steps
  ClusterStatus status;
  EngineMetrics metrics;
  Window window;
  Stragglers stragglers{0};
  std::function<void(bool)> on_serving;
  std::vector<std::function<void()>> outbox;  // calls to make without locks, in order

  std::mutex inbox_mutex;
  std::condition_variable wake;
  std::vector<LinkEvent> inbox;  // bounded: the ranks answer at most the plans that are out
  bool poked = false, stopping = false;

  std::atomic<Clock::time_point> came_round = Clock::now();

  std::unique_ptr<RankLink> link;
  std::thread thread;
};

void Engine::Impl::run() {
  prctl(PR_SET_NAME, "annulus-engine");
  bool last = false;
  while (!last) {
    std::vector<LinkEvent> events;
    {
      std::unique_lock lock(inbox_mutex);
      wake.wait_for(lock, kRound, [&] { return !inbox.empty() || poked || stopping; });
      came_round = Clock::now();
      events = std::exchange(inbox, {});
      poked = false;
      last = stopping;
    }
    std::vector<PlannedStep> plans;
    std::vector<std::function<void()>> calls;
    {
      const std::lock_guard lock(mutex);
      for (LinkEvent& event : events) {
        std::visit([this](auto& e) { handle(std::move(e)); }, event);
      }
      if (last) {
        while (!clients.empty()) {
          const int64_t id = clients.begin()->first;
          scheduler.cancel(id);
          deliver();
          clients.erase(id);
        }
      } else {
        while (std::optional<PlannedStep> planned = scheduler.next()) {
          pending[planned->plan.step];
          plans.push_back(std::move(*planned));
        }
      }
      deliver();
      calls = std::exchange(outbox, {});
    }
    // Plans first: the ranks should not wait for readers.
    for (const PlannedStep& planned : plans) {
      link->send(planned.plan, planned.before, planned.expected_us);
    }
    for (std::function<void()>& call : calls) call();
  }
}

void Engine::Impl::serving_changed(bool serving) {
  status.serving = serving;
  if (on_serving) outbox.push_back([callback = on_serving, serving] { callback(serving); });
}

void Engine::Impl::handle(EpochReady ready) {
  if (scheduler.serving()) {
    ++metrics.epochs_lost;
    scheduler.lose_epoch(absl::UnavailableError("the ranks have begun a new epoch"));
    deliver();
  }
  pending.clear();
  const auto same_machine = [](const RankInfo& a, const RankStatus& b) {
    return a.host == b.info.host && a.cpu_isa == b.info.cpu_isa && a.threads == b.info.threads;
  };
  if (ready.topology != status.topology ||
      !std::equal(ready.ranks.begin(), ready.ranks.end(), status.ranks.begin(), status.ranks.end(),
                  same_machine))
    learner = {};
  learns = ready.learn;
  policy = ready.policy;
  if (learns) policy.profile = learner.next(ready.policy.profile);
  scheduler.begin_epoch(ready.epoch, policy, ready.kv_capacity_rows);
  status = {};
  status.epoch = ready.epoch;
  status.topology = ready.topology;
  status.profile = policy.profile;
  status.profile_source = describe(learner);
  status.kv_capacity_rows = ready.kv_capacity_rows;
  for (RankInfo& info : ready.ranks) status.ranks.push_back({.info = std::move(info)});
  status.ranks.resize(static_cast<size_t>(ready.topology.world()));
  metrics.ranks.resize(std::max(metrics.ranks.size(), status.ranks.size()));
  stragglers = Stragglers(status.ranks.size());
  window = {.ranks = std::vector<Window::Rank>(status.ranks.size())};
  spdlog::info("epoch {}: serving with TP {} x CP {}", ready.epoch, ready.topology.tp,
               ready.topology.cp);
  serving_changed(true);
}

void Engine::Impl::handle(EpochLost lost) {
  if (scheduler.serving() && lost.epoch != status.epoch) return;  // an older one
  status.why_not = lost.why;
  if (!scheduler.serving()) return;
  ++metrics.epochs_lost;
  spdlog::warn("epoch {} is over: {}", lost.epoch, lost.why);
  scheduler.lose_epoch(
      absl::UnavailableError(absl::StrCat("epoch ", lost.epoch, " is over: ", lost.why)));
  pending.clear();
  serving_changed(false);
}

void Engine::Impl::handle(RankAnswer answer) {
  StepResult& result = answer.result;
  if (!scheduler.serving() || result.epoch != status.epoch) return;  // late
  const auto rank = static_cast<size_t>(result.world_rank);
  const auto it = pending.find(result.step);
  if (it == pending.end() || rank >= status.ranks.size()) {
    spdlog::error("rank {} answers step {}, which is not out", result.world_rank, result.step);
    return;
  }
  RankStatus& figures = status.ranks[rank];
  figures.kv_rows = result.kv_rows;
  figures.kv_bytes = result.kv_bytes;
  figures.resident_bytes = result.resident_bytes;
  figures.workspace_peak_bytes =
      std::max(figures.workspace_peak_bytes, result.workspace_peak_bytes);
  figures.step_us = static_cast<double>(result.step_us);
  figures.idle_us = static_cast<double>(result.idle_us);
  figures.spent.add(result);
  it->second.results.push_back(std::move(result));
  // A rank that is ahead may finish a step before another has finished the one before.
  while (!pending.empty() && pending.begin()->second.results.size() == status.ranks.size()) {
    auto done = pending.extract(pending.begin());
    finish_step(done.key(), done.mapped().results);
  }
}

void Engine::Impl::finish_step(int64_t step, const std::vector<StepResult>& results) {
  std::vector<parallel::WantedResult> wanted;
  bool successor_everywhere = true;
  for (const StepResult& result : results) {
    wanted.insert(wanted.end(), result.wanted.begin(), result.wanted.end());
    successor_everywhere &= result.plans_waiting > 0;
  }
  watch(results);
  const StepSummary summary = scheduler.complete(step, std::move(wanted));
  metrics.count_step(summary, results);
  ++status.steps_total;
  if (summary.decode_only) {
    ++status.decode_steps;
    if (successor_everywhere) ++status.plans_ahead;
  }
  for (size_t g = 0; g < summary.groups.size(); ++g) {
    const StepSummary::Group& group = summary.groups[g];
    ++status.steps[static_cast<size_t>(group.variant)];
    if (learns) learner.observe(policy, group.variant, group.loads, slowest(results, g));
  }
  deliver();  // before the next plan: a stop string found here ends its request
}

// Who holds the others up?
void Engine::Impl::watch(const std::vector<StepResult>& results) {
  double slowest_us = 0;
  for (const StepResult& result : results) {
    Window::Rank& rank = window.ranks.at(static_cast<size_t>(result.world_rank));
    rank.work.compute_us += result.step_us - result.waited_us;
    rank.work.rows += result.rows;
    rank.work.logit_rows += result.logit_rows;
    rank.work.kv_rows = result.kv_rows;
    for (const parallel::GroupReport& group : result.groups) rank.ring_us += group.exposed_us;
    rank.waited_us += result.waited_us;
    slowest_us = std::max(slowest_us, static_cast<double>(result.step_us));
  }
  window.steps_us += slowest_us;
  if (++window.steps < kWindowSteps || window.steps_us < kWindowUs) return;

  std::vector<RankWindow> work;
  work.reserve(window.ranks.size());
  for (const Window::Rank& rank : window.ranks) work.push_back(rank.work);
  const std::vector<StragglerChange> changes = stragglers.window(work);
  const auto steps = static_cast<double>(window.steps);
  for (size_t r = 0; r < window.ranks.size(); ++r) {
    const Window::Rank& rank = window.ranks[r];
    status.ranks[r].recent = {.compute_us = rank.work.compute_us / steps,
                              .ring_us = rank.ring_us / steps,
                              .other_us = std::max(rank.waited_us - rank.ring_us, 0.0) / steps,
                              .excess = stragglers.excess_of(r),
                              .straggles = stragglers.straggles(r)};
  }
  for (const StragglerChange& change : changes) {
    const RankStatus& rank = status.ranks[static_cast<size_t>(change.rank)];
    if (change.straggles) {
      ++metrics.ranks.at(static_cast<size_t>(change.rank)).straggler_warnings;
      spdlog::warn(
          "rank {} (pid {} on {}) is a straggler: it computes {:.0f} % longer than the ranks' "
          "median, for {} windows of {:.0f} s of steps by now, and all wait for it: `annulus "
          "status` shows each rank, `annulus doctor` measures what its host gives",
          change.rank, rank.info.pid, rank.info.host, 100 * rank.recent.excess, kWindows,
          kWindowUs * 1e-6);
    } else {
      spdlog::info("rank {} (pid {} on {}) is no straggler any longer", change.rank, rank.info.pid,
                   rank.info.host);
    }
  }
  window = {.ranks = std::vector<Window::Rank>(status.ranks.size())};
}

// The text that may go out with this token.
std::string Engine::Impl::text_of(Client& client, const SequenceEvent& event, const Token& token) {
  if (!client.decoder) return "";
  std::string text;
  if (!event.stop_id) text = client.matcher.push(client.decoder->push(token.id));
  if (event.ends && !client.matcher.matched()) {
    text += client.matcher.push(client.decoder->flush());
    text += client.matcher.flush();
  }
  return text;
}

// Turns the scheduler's events into what clients are told. A stop string found on the way ends the
// sequence, which makes further events.
void Engine::Impl::deliver() {
  for (std::vector<SequenceEvent> events = scheduler.take_events(); !events.empty();
       events = scheduler.take_events()) {
    for (SequenceEvent& event : events) {
      const auto it = clients.find(event.id);
      if (it == clients.end()) continue;
      Client& client = it->second;
      const Clock::time_point now = Clock::now();
      if (const auto* accepted = std::get_if<Accepted>(&event.event)) {
        client.admitted = now;
        client.cached = accepted->cached_tokens;
        metrics.queue.observe(s_between(client.submitted, now));
      } else if (const auto* progress = std::get_if<PrefillProgress>(&event.event)) {
        metrics.prompt_tokens += progress->done - client.prefilled;
        metrics.cached_tokens += std::exchange(client.cached, 0);
        client.prefilled = progress->done;
      } else if (Token* token = std::get_if<Token>(&event.event)) {
        ++metrics.generation_tokens;
        if (client.tokens++ == 0) {
          client.first_token = now;
          metrics.first_token.observe(s_between(client.submitted, now));
        } else {
          metrics.token_gap.observe(s_between(client.last_token, now));
        }
        client.last_token = now;
        token->text = text_of(client, event, *token);
        if (client.matcher.matched() && !event.ends) {
          scheduler.finish_early(event.id, client.tokens);
        }
      } else if (Finished* finished = std::get_if<Finished>(&event.event)) {
        if (client.matcher.matched()) {
          finished->reason = FinishReason::kStop;
          finished->stop_text = client.matcher.match();
        }
        Usage& usage = finished->usage;
        usage.queue_ms = ms_between(client.submitted, client.admitted);
        if (client.tokens > 0) {
          usage.ttft_ms = ms_between(client.submitted, client.first_token);
          usage.decode_ms = ms_between(client.first_token, client.last_token);
        }
        if (finished->reason != FinishReason::kCancelled) {
          metrics.finished.observe(s_between(client.submitted, now));
        }
      }
      const bool ended = std::holds_alternative<Finished>(event.event) ||
                         std::holds_alternative<Failed>(event.event);
      post(client, std::move(event.event));
      if (ended) clients.erase(it);
    }
  }
}

Engine::Engine(const parallel::LlamaConfig& config, std::shared_ptr<const Tokenizer> tokenizer,
               std::unique_ptr<RankLink> link, const EngineOptions& options)
    : impl_(std::make_unique<Impl>(config, std::move(tokenizer), std::move(link), options)) {}

Engine::~Engine() = default;

// NOLINTNEXTLINE(performance-unnecessary-value-param): the sink is moved on, through try_emplace.
absl::StatusOr<int64_t> Engine::submit(GenerateRequest request, EventSink sink) {
  if (impl_->tokenizer == nullptr && !request.stop.empty()) {
    return absl::InvalidArgumentError("stop strings need a tokenizer; this model has none");
  }
  absl::StatusOr<int64_t> id;
  {
    const std::lock_guard lock(impl_->mutex);
    if (!impl_->scheduler.serving()) {
      return absl::UnavailableError(
          absl::StrCat("the ranks are not ready: ", impl_->status.why_not));
    }
    std::vector<std::string> stops = request.stop;
    id = impl_->scheduler.submit(std::move(request));
    if (!id.ok()) return id;
    impl_->clients.try_emplace(*id, impl_->tokenizer.get(), std::move(stops), std::move(sink));
  }
  impl_->poke();
  return id;
}

void Engine::cancel(int64_t id) {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->scheduler.cancel(id);
  }
  impl_->poke();
}

void Engine::fail_all(const absl::Status& why) {
  {
    const std::lock_guard lock(impl_->mutex);
    if (impl_->scheduler.serving()) {
      impl_->status.why_not = std::string(why.message());
      impl_->serving_changed(false);
    }
    impl_->scheduler.lose_epoch(why);
    impl_->pending.clear();
  }
  impl_->poke();
}

absl::Status Engine::rewind_session(const std::string& session, int64_t length) {
  absl::Status status;
  {
    const std::lock_guard lock(impl_->mutex);
    status = impl_->scheduler.rewind(session, length);
  }
  impl_->poke();
  return status;
}

absl::StatusOr<std::vector<int32_t>> Engine::session_tokens(const std::string& session) const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->scheduler.session_tokens(session);
}

ClusterStatus Engine::status() const {
  const std::lock_guard lock(impl_->mutex);
  ClusterStatus status = impl_->status;
  status.requests_running = impl_->scheduler.running();
  status.requests_waiting = impl_->scheduler.waiting();
  status.sessions = impl_->scheduler.sessions();
  return status;
}

EngineMetrics Engine::metrics() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->metrics;
}

double Engine::stalled_s() const {
  return s_between(impl_->came_round, Clock::now());
}

int64_t Engine::context() const {
  return impl_->scheduler.limits().context;
}

void Engine::on_serving(std::function<void(bool)> callback) {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->on_serving = std::move(callback);
    if (impl_->status.serving) impl_->serving_changed(true);
  }
  impl_->poke();
}

}  // namespace annulus::server
