// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/coordinator.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/cpu/queue.h"
#include "server/rpc/examination_wire.h"
#include "server/rpc/profile.h"

namespace annulus::server {

namespace {

using std::chrono::duration;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds kSilence{3};        // without a heartbeat: lost
constexpr seconds kStartSilence{60};  // without news while an epoch starts: lost
constexpr seconds kStepGrace{2};      // a rank's own deadline comes first: it knows which hop
constexpr milliseconds kFailureGrace{150};
constexpr milliseconds kLongestTick{500};   // more is a pause of this process
constexpr milliseconds kProofOfLife{1000};  // two heartbeats: one may have been under way
constexpr size_t kLongestText = 1000;       // of a worker's, in errors
constexpr seconds kYoung{10};
constexpr int64_t kMostKvRows = int64_t{1} << 40;  // whatever a worker claims
constexpr milliseconds kFirstBackOff{100};
constexpr int32_t kMaxDoublings = 6;  // 6.4 s

double seconds_between(EpochCoordinator::Time from, EpochCoordinator::Time to) {
  return duration<double>(to - from).count();
}

// Time does not depend on where secrets begin to differ.
bool same_secret(const std::string& a, const std::string& b) {
  if (a.size() != b.size()) return false;
  unsigned difference = 0;
  for (size_t i = 0; i < a.size(); ++i) difference |= static_cast<unsigned>(a[i] ^ b[i]);
  return difference == 0;
}

std::string one_decimal(double value) {
  return absl::StrCat(std::round(value * 10) / 10);
}

// A worker's words, for one line of an error: bounded, and cut between characters.
std::string one_line(const std::string& text, size_t limit = kLongestText) {
  size_t length = std::min(text.size(), limit);
  while (length < text.size() && length > 0 && (text[length] & 0xc0) == 0x80) --length;
  std::string line = text.substr(0, length);
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < ' ') c = ' ';
  }
  return line;
}

}  // namespace

EpochCoordinator::EpochCoordinator(EpochPlan plan)
    : plan_(std::move(plan)), by_rank_(static_cast<size_t>(plan_.topology.world()), 0) {}

EpochCoordinator::Time EpochCoordinator::awake(Time now) {
  if (seen_ != Time{} && now - seen_ > kLongestTick) asleep_ += now - seen_ - kLongestTick;
  seen_ = now;
  return now - asleep_;
}

void EpochCoordinator::start(Time raw) {
  const Time now = awake(raw);
  started_ = true;
  begin_if_complete(now);
}

void EpochCoordinator::attached(WorkerId worker, Time raw) {
  const Time now = awake(raw);
  Worker& entry = workers_[worker];
  entry.heard = now;
  entry.moved = now;
}

void EpochCoordinator::received(WorkerId id, const v1::WorkerMessage& message, Time raw) {
  const Time now = awake(raw);
  const auto it = workers_.find(id);
  if (it == workers_.end()) return;  // was refused or declared lost
  Worker& worker = it->second;
  worker.heard = now;
  if (!worker.registered && message.message_case() != v1::WorkerMessage::kRegister) {
    if (worker.claim && message.has_heartbeat()) return;
    return refuse(id, "the first message must be Register", now);
  }
  switch (message.message_case()) {
    case v1::WorkerMessage::kRegister: return on_register(id, worker, message.register_(), now);
    // Ranks wait for each other: what one receives another reads, and all start together.
    case v1::WorkerMessage::kLoadProgress:
      for (auto& [other_id, other] : workers_) other.moved = now;
      return;
    case v1::WorkerMessage::kDataAddress: return on_address(worker, message.data_address(), now);
    case v1::WorkerMessage::kReady: return on_ready(id, worker, message.ready(), now);
    case v1::WorkerMessage::kHeartbeat:
      probe(id, worker, raw);
      return on_heartbeat(worker, message.heartbeat(), now);
    case v1::WorkerMessage::kClockReading:
      return on_clock(id, worker, message.clock_reading(), raw);
    case v1::WorkerMessage::kFailure:
      if (message.failure().epoch() == epoch_ && phase_ != Phase::kWaiting && !failure_) {
        failure_ =
            PendingFailure{absl::StrCat(describe(worker), ": ", one_line(message.failure().what())),
                           now + kFailureGrace};
      }
      return;
    case v1::WorkerMessage::kExaminationProgress: {
      const v1::ExaminationProgress& progress = message.examination_progress();
      worker.examined =
          static_cast<double>(std::max(progress.done(), 0)) / std::max(progress.total(), 1);
      worker.moved = now;
      return;
    }
    case v1::WorkerMessage::kAnswer: return on_answer(id, worker, message.answer(), now);
    case v1::WorkerMessage::MESSAGE_NOT_SET: return;
  }
}

void EpochCoordinator::on_register(WorkerId id, Worker& worker, const v1::Register& message,
                                   Time now) {
  const int32_t world = plan_.topology.world();
  if (worker.registered || worker.claim) return refuse(id, "registered twice", now);
  if (message.build() != plan_.build) {
    return refuse(id,
                  absl::StrCat("this worker is annulus ", one_line(message.build(), 64),
                               ", the front end is ", plan_.build, ": run the same build"),
                  now);
  }
  if (!same_secret(message.secret(), plan_.secret)) {
    return refuse(id, "wrong secret: give the worker the secret of its front end", now);
  }
  const bool has_model = message.model_file() != v1::MODEL_FILE_NONE;
  if (!has_model && !plan_.examine && plan_.outline.empty()) {
    return refuse(id,
                  "a generated model is sent to nobody: start the worker with the front end's "
                  "--model instead of --no-model",
                  now);
  }
  // 0: of the doctor and its ranks
  const bool fits = message.model_fingerprint() == plan_.model_fingerprint;
  if (plan_.examine ? !has_model || !fits : has_model && !fits) {
    return refuse(
        id,
        plan_.examine ? "this is `annulus doctor`: start its ranks with --doctor instead of a model"
        : message.model_fingerprint() == 0
            ? "this front end serves a model: give the worker its --model instead of --doctor"
            : "this worker holds another model than the front end: give it the same --model, "
              "--context, --rope-theta and --rope-scaling",
        now);
  }
  if (message.wanted_rank() >= world) {
    return refuse(id,
                  absl::StrCat("there is no rank ", message.wanted_rank(),
                               ": this job has ranks 0 to ", world - 1),
                  now);
  }
  worker.claim = message;
  worker.claimed = now;
  seat(id, now);
}

// Gives a worker the rank it asks for, or lets it wait while nobody knows whether the rank's holder
// lives: of a worker and the one started in its place, either the old one is heard again, and the
// new one refused, or it is lost.
void EpochCoordinator::seat(WorkerId id, Time now) {
  Worker& worker = workers_.at(id);
  const v1::Register& claim = *worker.claim;
  const auto world = static_cast<int32_t>(by_rank_.size());
  const auto holder = [&](int32_t rank) { return by_rank_[static_cast<size_t>(rank)]; };
  std::vector<int32_t> choice;  // best first
  if (claim.wanted_rank() >= 0) {
    choice = {claim.wanted_rank()};
  } else {
    if (claim.has_last_rank() && claim.last_rank() >= 0 && claim.last_rank() < world) {
      choice.push_back(claim.last_rank());
    }
    for (int32_t rank = 0; rank < world; ++rank) choice.push_back(rank);
  }
  // The same process on a new stream: the old one broke unseen.
  for (const int32_t rank : choice) {
    if (holder(rank) == 0) continue;
    const RankInfo& other = workers_.at(holder(rank)).info;
    if (other.pid == claim.pid() && other.host == one_line(claim.host(), 256)) {
      lose(holder(rank), "it attached again on another stream", /*stuck=*/false, now);
      break;
    }
  }
  const auto free =
      std::find_if(choice.begin(), choice.end(), [&](int32_t rank) { return holder(rank) == 0; });
  if (free == choice.end()) {
    const bool all_alive = std::all_of(choice.begin(), choice.end(), [&](int32_t rank) {
      return workers_.at(holder(rank)).heard - worker.claimed > kProofOfLife;
    });
    if (!all_alive) return;
    return refuse(
        id,
        claim.wanted_rank() < 0
            ? absl::StrCat("all ", world, " ranks are taken")
            : absl::StrCat("rank ", choice.front(), " is taken by ",
                           describe(workers_.at(holder(choice.front()))), ", which is alive"),
        now);
  }
  worker.registered = true;
  worker.rank = *free;
  worker.moved = now;
  worker.info = {.world_rank = worker.rank,
                 .host = one_line(claim.host(), 256),
                 .pid = claim.pid(),
                 .cpu_isa = one_line(claim.cpu_isa(), 64),
                 .threads = claim.threads()};
  worker.weights = {.host = worker.info.host,
                    .holds = false,
                    .file = claim.model_file() == v1::MODEL_FILE_NONE     ? ModelFile::kNone
                            : claim.model_file() == v1::MODEL_FILE_SHARED ? ModelFile::kShared
                                                                          : ModelFile::kLocal};
  worker.claim.reset();
  by_rank_[static_cast<size_t>(worker.rank)] = id;
  spdlog::info("{} attached ({} threads, {})", describe(worker), worker.info.threads,
               worker.info.cpu_isa);
  probe(id, worker, now + asleep_);
  begin_if_complete(now);
}

void EpochCoordinator::seat_claims(Time now) {
  std::vector<WorkerId> claims;
  for (const auto& [id, worker] : workers_) {
    if (worker.claim) claims.push_back(id);
  }
  for (const WorkerId id : claims) seat(id, now);
}

// A step whose ranks move on is slow, not dead.
void EpochCoordinator::on_heartbeat(Worker& worker, const v1::Heartbeat& message, Time now) {
  const bool moved = message.progress() != worker.heartbeat.progress();
  worker.heartbeat = message;
  if (moved && !flights_.empty()) flights_.front().since = now;
}

void EpochCoordinator::probe(WorkerId id, Worker& worker, Time raw) {
  if (!plan_.trace || worker.probed) return;
  worker.probed = raw;
  v1::FrontMessage out;
  out.mutable_clock_probe();
  effects_.messages.push_back({id, std::move(out)});
}

// Times as the clock shows them, this process's pauses included.
void EpochCoordinator::on_clock(WorkerId id, Worker& worker, const v1::ClockReading& message,
                                Time raw) {
  if (!worker.probed) return;
  worker.clock.add(kernels::nanoseconds(*worker.probed), message.worker_ns(),
                   kernels::nanoseconds(raw));
  worker.probed.reset();
  if (!worker.clock.settled()) probe(id, worker, raw);
}

void EpochCoordinator::on_address(Worker& worker, const v1::DataAddress& message, Time now) {
  if (message.epoch() != epoch_ || phase_ != Phase::kOpening) return;
  worker.address = message.address();
  worker.weights.holds = message.holds_weights();
  worker.done = true;
  worker.moved = now;
  if (all_done()) send_peers(now);
}

void EpochCoordinator::send_peers(Time now) {
  std::vector<WeightFacts> facts;
  v1::FrontMessage out;
  out.mutable_peers()->set_epoch(epoch_);
  for (const WorkerId id : by_rank_) {
    out.mutable_peers()->add_addresses(workers_.at(id).address);
    facts.push_back(workers_.at(id).weights);
  }
  const parallel::Topology& topology = plan_.topology;
  const auto routes = route_weights(topology, facts, plan_.weights);
  if (!routes.ok()) return end_epoch(std::string(routes.status().message()), now);
  next_phase(Phase::kLoading, now);
  for (int32_t rank = 0; rank < topology.world(); ++rank) {
    const parallel::WeightRoute& route = (*routes)[static_cast<size_t>(rank)];
    const int32_t tp_rank = topology.tp_rank(rank);
    RankInfo& info = workers_.at(by_rank_[static_cast<size_t>(rank)]).info;
    info.weights_from = route.from < 0 ? -1 : topology.world_rank(tp_rank, route.from);
    v1::WeightRoute* const weights = out.mutable_peers()->mutable_weights();
    weights->Clear();
    weights->set_table(route.table);
    if (route.from >= 0) weights->set_from(info.weights_from);
    if (route.to >= 0) weights->set_to(topology.world_rank(tp_rank, route.to));
    effects_.messages.push_back({by_rank_[static_cast<size_t>(rank)], out});
  }
}

void EpochCoordinator::on_ready(WorkerId id, Worker& worker, const v1::Ready& message, Time now) {
  if (message.epoch() != epoch_ || phase_ != Phase::kLoading) return;
  if (plan_.examine) return on_examined(id, worker, message.examination(), now);
  const auto profile =
      profile_from_values({message.profile().values().begin(), message.profile().values().end()});
  if (!profile.ok() || message.kv_capacity_rows() < 1) {
    return lose(
        id, profile.ok() ? "it has room for no KV at all" : std::string(profile.status().message()),
        /*stuck=*/false, now);
  }
  worker.profile = *profile;
  worker.kv_capacity_rows = message.kv_capacity_rows();
  worker.info.weight_bytes = message.weight_bytes();
  worker.info.load_s = message.load_s();
  worker.done = true;
  worker.moved = now;
  if (!all_done()) return;

  EpochReady ready;
  ready.epoch = epoch_;
  ready.topology = plan_.topology;
  ready.policy = plan_.policy;
  ready.policy.cp = plan_.topology.cp;
  ready.policy.profile = workers_.at(by_rank_.front()).profile;
  ready.kv_capacity_rows = worker.kv_capacity_rows;
  for (const WorkerId other : by_rank_) {
    const Worker& entry = workers_.at(other);
    ready.kv_capacity_rows =
        std::min({ready.kv_capacity_rows, entry.kv_capacity_rows, kMostKvRows});
    ready.ranks.push_back(entry.info);
    // What a GPU reports are times of enqueueing.
    ready.learn = ready.learn && kernels::parse_cpu_isa(entry.info.cpu_isa).ok();
  }
  begin_running(now);
  log_weights(ready.ranks);
  spdlog::debug("epoch {} is ready: tp {} x cp {}, KV for {} tokens a rank", epoch_,
                plan_.topology.tp, plan_.topology.cp, ready.kv_capacity_rows);
  effects_.events.emplace_back(std::move(ready));
}

void EpochCoordinator::on_examined(WorkerId id, Worker& worker, const v1::Examination& message,
                                   Time now) {
  auto examination = from_proto(message);
  if (!examination.ok()) {
    return lose(id, std::string(examination.status().message()), /*stuck=*/false, now);
  }
  worker.examination = *std::move(examination);
  worker.done = true;
  worker.moved = now;
  if (!all_done()) return;
  Examined& all = effects_.examined.emplace();
  for (const WorkerId other : by_rank_) {
    all.ranks.push_back(workers_.at(other).info);
    all.examinations.push_back(workers_.at(other).examination);
  }
  begin_running(now);
}

void EpochCoordinator::begin_running(Time now) {
  next_phase(Phase::kRunning, now);
  failed_starts_ = 0;
  stepped_ = false;
  epoch_began_ = now;
  v1::FrontMessage out;
  out.mutable_start()->set_epoch(epoch_);
  broadcast(out);
}

void EpochCoordinator::log_weights(const std::vector<RankInfo>& ranks) const {
  int sent = 0, read = 0;
  double slowest_s = 0;
  for (const RankInfo& rank : ranks) {
    if (rank.weights_from >= 0) {
      ++sent;
    } else if (rank.load_s > 0) {
      ++read;
    }
    slowest_s = std::max(slowest_s, rank.load_s);
  }
  if (sent + read == 0) return;
  spdlog::info("epoch {}: weights read by {} ranks, sent to {}, held by {}; the slowest took {} s",
               epoch_, read, sent, static_cast<int>(ranks.size()) - read - sent,
               one_decimal(slowest_s));
}

void EpochCoordinator::on_answer(WorkerId id, Worker& worker, const v1::StepAnswer& message,
                                 Time now) {
  if (message.epoch() != epoch_ || phase_ != Phase::kRunning) return;  // of an epoch that is over
  auto result = parallel::decode_result(message.result());
  if (!result.ok()) {
    return lose(id, absl::StrCat("its answer does not parse: ", result.status().message()),
                /*stuck=*/false, now);
  }
  const auto flight = std::find_if(flights_.begin(), flights_.end(),
                                   [&](const Flight& entry) { return entry.step == result->step; });
  const auto rank = static_cast<size_t>(worker.rank);
  if (flight == flights_.end() || flight->answered[rank] || result->world_rank != worker.rank ||
      result->epoch != epoch_) {
    return lose(id, absl::StrCat("it answered step ", result->step, ", which it was not asked"),
                /*stuck=*/false, now);
  }
  if (const auto fits = check_answer(flight->expected[rank], *result, plan_.vocab); !fits.ok()) {
    return lose(id,
                absl::StrCat("its answer to step ", result->step, " ", std::string(fits.message())),
                /*stuck=*/false, now);
  }
  if (plan_.trace) {
    const auto [offset_ns, error_ns] = worker.clock.best();
    auto intervals = read_intervals(message.intervals(), offset_ns);
    if (!intervals.ok())
      return lose(id, std::string(intervals.status().message()), /*stuck=*/false, now);
    flight->traced.ranks[rank] = *std::move(intervals);
    flight->traced.clocks[rank] = {.offset_ns = offset_ns, .error_ns = error_ns};
  }
  flight->answered[rank] = true;
  effects_.events.emplace_back(RankAnswer{*std::move(result)});
  while (!flights_.empty() &&
         std::all_of(flights_.front().answered.begin(), flights_.front().answered.end(),
                     [](bool answered) { return answered; })) {
    if (!flights_.front().traced.name.empty())
      effects_.traced.push_back(std::move(flights_.front().traced));
    flights_.pop_front();
    stepped_ = true;
    if (!flights_.empty()) flights_.front().since = now;
  }
}

void EpochCoordinator::closed(WorkerId worker, Time raw) {
  const Time now = awake(raw);
  remove(worker, "its stream broke (the process ended or its host is cut off)", /*stuck=*/false,
         now);
}

void EpochCoordinator::tick(Time raw) {
  const Time now = awake(raw);
  std::vector<std::pair<WorkerId, std::string>> lost;
  for (const auto& [id, worker] : workers_) {
    if (now - worker.heard > kSilence) {
      lost.emplace_back(id, absl::StrCat("no heartbeat for ",
                                         one_decimal(seconds_between(worker.heard, now)), " s"));
    } else if ((phase_ == Phase::kOpening || phase_ == Phase::kLoading) && worker.registered &&
               !worker.done && now - worker.moved > kStartSilence) {
      lost.emplace_back(id, absl::StrCat("no news for ", kStartSilence.count(), " s while epoch ",
                                         epoch_, " started"));
    }
  }
  for (const auto& [id, why] : lost) lose(id, why, /*stuck=*/true, now);

  if (failure_ && now >= failure_->until) end_epoch(std::string(failure_->why), now);
  if (phase_ == Phase::kRunning && !flights_.empty()) {
    const Flight& oldest = flights_.front();
    const double taken_s = seconds_between(oldest.since, now);
    if (taken_s > oldest.deadline_s + duration<double>(kStepGrace).count()) {
      end_epoch(absl::StrCat("step ", oldest.step, " passed its deadline of ",
                             one_decimal(oldest.deadline_s), " s without progress; no answer from ",
                             late_ranks(oldest)),
                now);
    }
  }
  seat_claims(now);
  begin_if_complete(now);
  announce_waiting();
}

// Whoever asks why nothing is served hears the end of the last epoch and what the next one lacks.
void EpochCoordinator::announce_waiting() {
  if (!started_ || ending_ || phase_ == Phase::kRunning) {
    announced_.clear();
    return;
  }
  std::string why =
      absl::StrCat(last_end_, last_end_.empty() ? "" : "; ", "waiting for ", status().waiting_for);
  if (status().waiting_for.empty() || why == announced_) return;
  announced_ = std::move(why);
  effects_.events.emplace_back(EpochLost{epoch_, announced_});
}

void EpochCoordinator::send_plan(const parallel::StepPlan& plan, const parallel::ShardState& before,
                                 double expected_us, Time raw) {
  const Time now = awake(raw);
  if (phase_ != Phase::kRunning || plan.epoch != epoch_) return;
  const double limit_s = deadline_s(expected_us);
  flights_.push_back({.step = plan.step,
                      .deadline_s = limit_s,
                      .since = now,
                      .answered = std::vector<bool>(by_rank_.size(), false),
                      .expected = expected_answers(plan, before, plan_.topology)});
  if (plan_.trace) {
    flights_.back().traced = {.name = step_name(plan),
                              .ranks = std::vector<std::vector<kernels::Interval>>(by_rank_.size()),
                              .clocks = std::vector<TraceClock>(by_rank_.size())};
  }
  for (int32_t cp_rank = 0; cp_rank < plan_.topology.cp; ++cp_rank) {
    v1::FrontMessage out;
    out.mutable_plan()->set_epoch(epoch_);
    out.mutable_plan()->set_deadline_s(limit_s);
    out.mutable_plan()->set_plan(parallel::encode(parallel::plan_for_rank(before, plan, cp_rank)));
    for (int32_t tp_rank = 0; tp_rank < plan_.topology.tp; ++tp_rank) {
      const auto rank = static_cast<size_t>(plan_.topology.world_rank(tp_rank, cp_rank));
      effects_.messages.push_back({by_rank_[rank], out});
    }
  }
}

void EpochCoordinator::shutdown() {
  ending_ = true;
  phase_ = Phase::kWaiting;
  v1::FrontMessage out;
  out.mutable_shutdown();
  broadcast(out);
}

EpochCoordinator::Effects EpochCoordinator::take() {
  return std::exchange(effects_, {});
}

EpochCoordinator::Status EpochCoordinator::status() const {
  Status out{.epoch = epoch_,
             .running = phase_ == Phase::kRunning,
             .waiting_for = {},
             .ranks_ready = 0,
             .failed_starts = failed_starts_,
             .last_end = last_end_};
  if (phase_ == Phase::kLoading) {
    out.examined = 1;
    for (const WorkerId id : by_rank_) {
      out.examined = std::min(out.examined, id == 0 ? 0 : workers_.at(id).examined);
    }
  }
  std::vector<size_t> missing;
  for (size_t rank = 0; rank < by_rank_.size(); ++rank) {
    const WorkerId id = by_rank_[rank];
    const bool starting = phase_ == Phase::kOpening || phase_ == Phase::kLoading;
    if (id == 0 || (starting && !workers_.at(id).done)) missing.push_back(rank);
  }
  out.ranks_ready = static_cast<int64_t>(by_rank_.size() - missing.size());
  if (!missing.empty()) {
    out.waiting_for =
        absl::StrCat(missing.size() == 1 ? "rank " : "ranks ", absl::StrJoin(missing, ", "),
                     phase_ == Phase::kWaiting   ? " to attach"
                     : phase_ == Phase::kOpening ? " to open the data plane"
                     : plan_.examine             ? " to measure"
                                                 : " to load weights");
  }
  return out;
}

void EpochCoordinator::refuse(WorkerId id, const std::string& why, Time now) {
  spdlog::warn("a worker was refused: {}", why);
  v1::FrontMessage out;
  out.mutable_refused()->set_why(why);
  effects_.messages.push_back({id, std::move(out)});
  remove(id, why, /*stuck=*/false, now);
}

void EpochCoordinator::begin_if_complete(Time now) {
  if (!started_ || ending_ || phase_ != Phase::kWaiting || now < next_epoch_) return;
  if (std::find(by_rank_.begin(), by_rank_.end(), 0) != by_rank_.end()) return;
  ++epoch_;
  epoch_began_ = now;
  next_phase(Phase::kOpening, now);
  for (size_t rank = 0; rank < by_rank_.size(); ++rank) {
    v1::FrontMessage out;
    v1::Assignment* assignment = out.mutable_assignment();
    assignment->set_epoch(epoch_);
    assignment->set_world_rank(static_cast<int32_t>(rank));
    assignment->set_tp(plan_.topology.tp);
    assignment->set_cp(plan_.topology.cp);
    assignment->set_precision(plan_.precision);
    assignment->set_context(plan_.context);
    assignment->set_kv_capacity_rows(plan_.kv_capacity_rows);
    assignment->set_page_tokens(plan_.page_tokens);
    assignment->set_workspace_limit_bytes(plan_.workspace_limit_bytes);
    assignment->set_profile(plan_.profile);
    assignment->set_trace(plan_.trace);
    assignment->set_graphs(plan_.graphs);
    assignment->set_tune_gemm(plan_.tune_gemm);
    assignment->set_cudnn_attention(plan_.cudnn_attention);
    assignment->set_chunk_tokens(plan_.chunk_tokens);
    assignment->set_examine(plan_.examine);
    if (workers_.at(by_rank_[rank]).weights.file == ModelFile::kNone) {
      assignment->set_outline(plan_.outline);
    }
    effects_.messages.push_back({by_rank_[rank], std::move(out)});
  }
}

bool EpochCoordinator::all_done() const {
  return std::all_of(by_rank_.begin(), by_rank_.end(),
                     [&](WorkerId id) { return id != 0 && workers_.at(id).done; });
}

void EpochCoordinator::next_phase(Phase phase, Time now) {
  phase_ = phase;
  for (auto& [id, worker] : workers_) {
    worker.done = false;
    worker.moved = now;
  }
}

// It may be alive, and then must hear of it.
void EpochCoordinator::lose(WorkerId id, const std::string& why, bool stuck, Time now) {
  v1::FrontMessage out;
  out.mutable_dropped()->set_why(why);
  effects_.messages.push_back({id, std::move(out)});
  remove(id, why, stuck, now);
}

void EpochCoordinator::remove(WorkerId id, const std::string& why, bool stuck, Time now) {
  const auto node = workers_.extract(id);
  if (node.empty()) return;
  effects_.close.push_back(id);
  const Worker& worker = node.mapped();
  if (!worker.registered) return;
  by_rank_[static_cast<size_t>(worker.rank)] = 0;
  if (stuck) effects_.stuck_pids.push_back(worker.info.pid);
  if (ending_) return;
  const std::string line = absl::StrCat(describe(worker), " was lost: ", why);
  if (phase_ == Phase::kWaiting) {
    spdlog::warn("{}", line);
  } else {
    end_epoch(line, now);
  }
}

void EpochCoordinator::end_epoch(const std::string& why, Time now) {
  const bool ran = phase_ == Phase::kRunning;
  // The end of an epoch that ran is the engine's to log.
  if (!ran) spdlog::warn("epoch {} did not start: {}", epoch_, why);
  phase_ = Phase::kWaiting;
  failure_.reset();
  flights_.clear();
  last_end_ = why;
  if (!ran) ++failed_starts_;
  young_ends_ = now - epoch_began_ < kYoung && !(ran && stepped_) ? young_ends_ + 1 : 0;
  // The first loss is answered at once; a fault that stays must not spin.
  next_epoch_ = young_ends_ <= 1
                    ? now
                    : now + kFirstBackOff * (1 << std::min(young_ends_ - 1, kMaxDoublings));
  v1::FrontMessage out;
  out.mutable_abort_epoch()->set_epoch(epoch_);
  out.mutable_abort_epoch()->set_why(why);
  broadcast(out);
  effects_.events.emplace_back(EpochLost{epoch_, why});
}

void EpochCoordinator::broadcast(const v1::FrontMessage& message) {
  for (const WorkerId id : by_rank_) {
    if (id != 0) effects_.messages.push_back({id, message});
  }
}

std::string EpochCoordinator::describe(const Worker& worker) const {
  return absl::StrCat("rank ", worker.rank, " (pid ", worker.info.pid, " on ", worker.info.host,
                      ")");
}

std::string EpochCoordinator::late_ranks(const Flight& flight) const {
  std::vector<std::string> late;
  for (size_t rank = 0; rank < by_rank_.size(); ++rank) {
    if (flight.answered[rank] || by_rank_[rank] == 0) continue;
    const Worker& worker = workers_.at(by_rank_[rank]);
    late.push_back(absl::StrCat(describe(worker), ", in step ", worker.heartbeat.step(), " layer ",
                                worker.heartbeat.layer(), " hop ", worker.heartbeat.hop()));
  }
  return absl::StrJoin(late, "; ");
}

}  // namespace annulus::server
