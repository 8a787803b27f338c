// SPDX-License-Identifier: Apache-2.0
#include "server/app/worker.h"

#include <spdlog/spdlog.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <csignal>
#include <fstream>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/core/check.h"
#include "parallel/model/checkpoint.h"
#include "server/app/build.h"
#include "server/app/bus_error.h"
#include "server/app/device.h"
#include "server/app/host_facts.h"
#include "server/app/step_pipeline.h"
#include "server/app/worker_inbox.h"
#include "server/one_line.h"
#include "server/rpc/control_client.h"
#include "server/rpc/examination_wire.h"
#include "server/rpc/profile.h"

namespace annulus::server {

namespace {

using Clock = std::chrono::steady_clock;
using kernels::DeviceError;

constexpr std::chrono::milliseconds kHeartbeat{500};
constexpr absl::Duration kFirstRetry = absl::Milliseconds(100);
constexpr absl::Duration kLongestRetry = absl::Seconds(2);

constexpr size_t kTimelineIntervals = size_t{1} << 17;  // of a step: 10.5 MB

constexpr int kBrokenDeviceExit = 3;  // as of an NCCL that cannot be aborted

enum class SessionEnd { kDisconnected, kDropped, kShutdown, kRefused };

std::string host_name() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "unknown";
}

int64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t total_pages = 0, resident_pages = 0;
  statm >> total_pages >> resident_pages;
  return resident_pages * sysconf(_SC_PAGESIZE);
}

float us_since(Clock::time_point start) {
  return std::chrono::duration<float, std::micro>(Clock::now() - start).count();
}

// What is kept over epochs and attachments, beside the device.
struct Kept {
  // The model's files, or where this host has none, the outline of the last assignment. Empty: for
  // `annulus doctor`.
  std::optional<parallel::Checkpoint> checkpoint;
  int32_t last_rank = -1;  // -1: none yet
};

// One attachment to a front end.
class Session {
 public:
  Session(const WorkerOptions& options, Kept& kept, Device& device, ControlClient& client)
      : options_(options),
        kept_(kept),
        device_(device),
        client_(client),
        steps_(inbox_, [this](parallel::StepResult result) { answer(std::move(result)); }) {}

  SessionEnd run();
  bool heard() const { return heard_; }  // after run(): whether a front end said anything

 private:
  void read_loop();
  void heartbeat_loop();
  // False: the session is over.
  bool handle(const v1::FrontMessage& message, SessionEnd& end);
  template <class Work>
  void attempt(const char* what, const Work& work);
  void on_assignment(const v1::Assignment& assignment);
  absl::Status assign(const v1::Assignment& assignment);
  absl::Status check_memory(const v1::Assignment& assignment) const;
  void on_peers(const v1::Peers& peers);
  void examine(EpochRank& epoch, const std::vector<std::string>& addresses);
  absl::Status meet(EpochRank& epoch, const std::vector<std::string>& addresses,
                    const v1::WeightRoute& weights);
  absl::Status load(EpochRank& epoch, const v1::WeightRoute& weights, double& load_s);
  void on_plan(const v1::Plan& plan);
  void run_steps();
  void answer(parallel::StepResult result);
  void fail(const std::string& what);
  void drop_epoch();
  std::shared_ptr<EpochRank> current();
  bool over(int64_t epoch);

  const WorkerOptions& options_;
  Kept& kept_;
  Device& device_;
  ControlClient& client_;
  Inbox inbox_;

  v1::Assignment assignment_;
  parallel::RankOptions rank_options_;
  std::unique_ptr<kernels::Timeline> timeline_;  // null: nobody asked for a trace
  StepPipeline steps_;

  std::mutex mutex_;
  std::condition_variable stop_heartbeats_, aborted_;
  std::shared_ptr<EpochRank> epoch_;  // shared with whoever aborts or looks
  int64_t over_ = 0;                  // epochs up to this one are over
  std::string over_why_;
  int aborting_ = 0;  // threads inside abort(), with a reference of their own
  bool ended_ = false;
  bool heard_ = false;
};

SessionEnd Session::run() {
  v1::WorkerMessage hello;
  v1::Register* registration = hello.mutable_register_();
  registration->set_build(kBuild);
  registration->set_wanted_rank(options_.wanted_rank);
  registration->set_host(host_name());
  registration->set_pid(getpid());
  registration->set_cpu_isa(device_.name());
  registration->set_threads(options_.threads);
  const bool shared = kept_.checkpoint && kept_.checkpoint->is_shared();
  registration->set_model_file(options_.no_model ? v1::MODEL_FILE_NONE
                               : shared          ? v1::MODEL_FILE_SHARED
                                                 : v1::MODEL_FILE_LOCAL);
  if (kept_.checkpoint) registration->set_model_fingerprint(kept_.checkpoint->fingerprint());
  registration->set_secret(options_.secret);
  if (kept_.last_rank >= 0) registration->set_last_rank(kept_.last_rank);
  if (!client_.write(std::move(hello))) return SessionEnd::kDisconnected;

  std::thread reader([this] { read_loop(); });
  std::thread heart([this] { heartbeat_loop(); });
  SessionEnd end = SessionEnd::kDisconnected;
  for (;;) {
    run_steps();
    const std::optional<v1::FrontMessage> message = inbox_.pop();
    heard_ = heard_ || message.has_value();
    if (!message || !handle(*message, end)) break;
  }
  drop_epoch();
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  stop_heartbeats_.notify_all();
  heart.join();
  if (end == SessionEnd::kDisconnected) {
    client_.cancel();
  } else {
    client_.say_goodbye();
  }
  reader.join();
  return end;
}

// Ends an epoch under the compute thread's hands; the rest of each message is its business.
void Session::read_loop() {
  const auto end_epochs = [this](int64_t epoch, const std::string& why) {
    std::shared_ptr<EpochRank> running;
    {
      const std::lock_guard lock(mutex_);
      over_ = std::max(over_, epoch);
      over_why_ = why;
      if (!epoch_ || epoch_->epoch() > epoch) return;
      running = epoch_;
      ++aborting_;
    }
    running->abort(why);
    running.reset();
    {
      const std::lock_guard lock(mutex_);
      --aborting_;
    }
    aborted_.notify_all();
  };
  v1::FrontMessage message;
  while (client_.read(&message)) {
    if (message.has_clock_probe()) {  // answered here: computing must not come in between
      v1::WorkerMessage reading;
      reading.mutable_clock_reading()->set_worker_ns(kernels::nanoseconds(Clock::now()));
      client_.write_at_once(std::move(reading));
      message.Clear();
      continue;
    }
    if (message.has_abort_epoch()) {
      end_epochs(message.abort_epoch().epoch(), message.abort_epoch().why());
    } else if (message.has_shutdown()) {
      end_epochs(INT64_MAX, "the front end ends");
    } else if (message.has_dropped()) {
      end_epochs(INT64_MAX, "the front end gave this worker up");
    }
    inbox_.push(std::move(message));
    message.Clear();
  }
  end_epochs(INT64_MAX, "the front end is gone");
  inbox_.close();
}

void Session::heartbeat_loop() {
  std::unique_lock lock(mutex_);
  while (!stop_heartbeats_.wait_for(lock, kHeartbeat, [this] { return ended_; })) {
    v1::WorkerMessage message;
    v1::Heartbeat* heartbeat = message.mutable_heartbeat();
    if (epoch_) {
      const parallel::Rank::Breadcrumb crumb = epoch_->breadcrumb();
      heartbeat->set_step(crumb.step);
      heartbeat->set_progress(crumb.progress);
      heartbeat->set_layer(crumb.layer);
      heartbeat->set_hop(crumb.hop);
    }
    lock.unlock();
    client_.write(std::move(message));
    lock.lock();
  }
}

bool Session::handle(const v1::FrontMessage& message, SessionEnd& end) {
  switch (message.message_case()) {
    case v1::FrontMessage::kAssignment: on_assignment(message.assignment()); return true;
    case v1::FrontMessage::kPeers: on_peers(message.peers()); return true;
    case v1::FrontMessage::kStart: return true;
    case v1::FrontMessage::kPlan: on_plan(message.plan()); return true;
    case v1::FrontMessage::kAbortEpoch:
      if (const auto epoch = current(); epoch && epoch->epoch() <= message.abort_epoch().epoch()) {
        spdlog::info("epoch {} is over: {}", epoch->epoch(), message.abort_epoch().why());
        drop_epoch();
      }
      return true;
    case v1::FrontMessage::kRefused:
      spdlog::error("the front end at {} refused this worker: {}", options_.connect,
                    message.refused().why());
      end = SessionEnd::kRefused;
      return false;
    case v1::FrontMessage::kDropped:
      spdlog::warn(
          "the front end at {} gave this worker up: {}; its epoch is over here, attaching "
          "again",
          options_.connect, message.dropped().why());
      end = SessionEnd::kDropped;
      return false;
    case v1::FrontMessage::kShutdown: end = SessionEnd::kShutdown; return false;
    case v1::FrontMessage::kClockProbe:  // read_loop()'s
    case v1::FrontMessage::MESSAGE_NOT_SET: return true;
  }
  return true;
}

// What the machine fails in this ends the epoch, not the worker.
template <class Work>
void Session::attempt(const char* what, const Work& work) {
  std::string failure;
  try {
    return work();
  } catch (const DeviceError& error) {
    failure = error.what();
  } catch (const std::bad_alloc&) {
    failure = absl::StrCat("out of memory ", what);
  } catch (const std::system_error& error) {  // no more threads
    failure = absl::StrCat("no resources ", what, ": ", error.what());
  }
  fail(failure);
}

void Session::on_assignment(const v1::Assignment& assignment) {
  drop_epoch();
  if (over(assignment.epoch())) return;
  assignment_ = assignment;
  attempt("for the data plane", [&] {
    const absl::Status status = assign(assignment);
    if (!status.ok()) fail(std::string(status.message()));
  });
}

absl::Status Session::assign(const v1::Assignment& assignment) {
  const parallel::Topology topology{assignment.tp(), assignment.cp()};
  if (topology.tp < 1 || topology.cp < 1 || assignment.world_rank() < 0 ||
      assignment.world_rank() >= topology.world()) {
    return absl::InvalidArgumentError("the assignment names no rank of its layout");
  }
  if (assignment.examine() != (options_.model.empty() && !options_.no_model)) {
    return absl::InvalidArgumentError("the assignment is of another kind than this worker");
  }
  const EpochWish wish{topology, assignment.cudnn_attention()};
  if (absl::Status ready = device_.ready_for(wish); !ready.ok()) return ready;
  if (options_.no_model) {
    auto outline = parallel::Checkpoint::from_outline(assignment.outline());
    if (!outline.ok()) return outline.status();
    kept_.checkpoint = *std::move(outline);
  }
  const kernels::Precision precision =
      assignment.precision() == "fp32" ? kernels::Precision::kF32 : kernels::Precision::kDefault;
  kernels::set_check_context(absl::StrCat("rank ", assignment.world_rank()));
  rank_options_ = {.precision = precision,
                   .kv_capacity_rows = assignment.kv_capacity_rows(),
                   .context = assignment.context(),
                   .page_tokens = assignment.page_tokens(),
                   .workspace_limit_bytes = assignment.workspace_limit_bytes(),
                   .profile = assignment.profile(),
                   .graphs = assignment.graphs(),
                   .tune_gemm = assignment.tune_gemm(),
                   .threads = options_.threads,
                   .isa = options_.isa};

  if (assignment.trace() && timeline_ == nullptr)
    timeline_ = std::make_unique<kernels::Timeline>(kTimelineIntervals);
  WeightKey key;
  if (assignment.examine()) {
    spdlog::debug("rank {}: to be examined", assignment.world_rank());
  } else {
    key = {kept_.checkpoint->fingerprint(), topology.tp, topology.tp_rank(assignment.world_rank()),
           precision};
  }
  auto epoch = device_.begin(assignment.epoch(), wish, assignment.world_rank(), key);
  if (!epoch.ok()) return epoch.status();
  // Other weights that were held are gone now.
  if (absl::Status enough = check_memory(assignment); !enough.ok()) return enough;
  kept_.last_rank = assignment.world_rank();
  v1::WorkerMessage message;
  message.mutable_data_address()->set_epoch(assignment.epoch());
  message.mutable_data_address()->set_address((*epoch)->address());
  message.mutable_data_address()->set_holds_weights(device_.holds_weights());
  {
    const std::lock_guard lock(mutex_);
    epoch_ = *std::move(epoch);
  }
  client_.write(std::move(message));
  return absl::OkStatus();
}

absl::Status Session::check_memory(const v1::Assignment& assignment) const {
  if (assignment.examine()) return absl::OkStatus();
  const auto room = device_.room();
  if (!room.ok()) return room.status();
  if (!room->has_value()) return absl::OkStatus();
  const parallel::Topology topology{assignment.tp(), assignment.cp()};
  if (auto tp = parallel::check_tp(kept_.checkpoint->config(), topology.tp); !tp.ok()) return tp;
  parallel::MemoryQuestion question;
  question.topology = topology;
  question.context =
      assignment.context() > 0 ? assignment.context() : kept_.checkpoint->config().context;
  question.kv_rows = assignment.kv_capacity_rows();
  question.precision = rank_options_.precision;
  question.gpu = true;
  if (assignment.chunk_tokens() > 0) question.chunk_tokens = assignment.chunk_tokens();
  question.page_tokens = assignment.page_tokens();
  question.workspace_limit_bytes = assignment.workspace_limit_bytes();
  return check_room(*kept_.checkpoint, question, **room);
}

void Session::on_peers(const v1::Peers& peers) {
  const std::shared_ptr<EpochRank> epoch = current();
  if (!epoch || epoch->epoch() != peers.epoch() || epoch->met() || over(peers.epoch())) return;
  const std::vector<std::string> addresses(peers.addresses().begin(), peers.addresses().end());
  if (assignment_.examine()) {
    return attempt("while measuring", [&] { examine(*epoch, addresses); });
  }
  attempt("for weights, KV and workspace", [&] {
    const absl::Status status = meet(*epoch, addresses, peers.weights());
    if (!status.ok()) fail(std::string(status.message()));
  });
}

absl::Status Session::meet(EpochRank& epoch, const std::vector<std::string>& addresses,
                           const v1::WeightRoute& weights) {
  if (absl::Status met = epoch.connect(addresses); !met.ok()) return met;
  double load_s = 0;
  if (absl::Status loaded = load(epoch, weights, load_s); !loaded.ok()) return loaded;
  const auto profile = epoch.meet(kept_.checkpoint->config(), rank_options_, timeline_.get());
  if (!profile.ok()) return profile.status();
  v1::WorkerMessage message;
  v1::Ready* ready = message.mutable_ready();
  ready->set_epoch(epoch.epoch());
  ready->set_kv_capacity_rows(epoch.rank().kv_capacity_rows());
  ready->set_weight_bytes(device_.weight_bytes());
  ready->set_load_s(load_s);
  for (const auto& [field, value] : profile_values(*profile)) {
    (*ready->mutable_profile()->mutable_values())[field] = value;
  }
  client_.write(std::move(message));
  return absl::OkStatus();
}

// load_s: 0 where the weights were here.
absl::Status Session::load(EpochRank& epoch, const v1::WeightRoute& weights, double& load_s) {
  const parallel::Topology topology{assignment_.tp(), assignment_.cp()};
  const auto peer = [&](bool there, int32_t world_rank) -> absl::StatusOr<int32_t> {
    if (!there) return -1;
    const bool fits = world_rank >= 0 && world_rank < topology.world() &&
                      world_rank != assignment_.world_rank() &&
                      topology.tp_rank(world_rank) == topology.tp_rank(assignment_.world_rank());
    if (fits) return topology.cp_rank(world_rank);
    return absl::InvalidArgumentError(absl::StrCat("weights by way of rank ", world_rank));
  };
  const auto from = peer(weights.has_from(), weights.from());
  const auto to = peer(weights.has_to(), weights.to());
  if (!from.ok()) return from.status();
  if (!to.ok()) return to.status();
  const bool held = device_.holds_weights();
  if (held && *from >= 0) return absl::InvalidArgumentError("weights for a rank that holds them");
  if (!held && *from < 0 && kept_.checkpoint->is_outline()) {
    return absl::InvalidArgumentError("nobody sends weights to a rank without the model's file");
  }

  if (*from >= 0) {
    spdlog::info("rank {}: rank {} sends the weights", assignment_.world_rank(), weights.from());
  }
  const Clock::time_point began = Clock::now();
  Clock::time_point told = began;
  absl::Status loaded =
      epoch.load(*kept_.checkpoint, {.from = *from, .to = *to, .table = weights.table()},
                 [&](int64_t done, int64_t total) {
                   if (Clock::now() - told < kHeartbeat) return;
                   told = Clock::now();
                   v1::WorkerMessage message;
                   message.mutable_load_progress()->set_done_bytes(done);
                   message.mutable_load_progress()->set_total_bytes(total);
                   client_.write(std::move(message));
                 });
  if (!loaded.ok()) return loaded;
  const double seconds = static_cast<double>(us_since(began)) * 1e-6;
  const double gbytes_per_s = static_cast<double>(device_.weight_bytes()) * 1e-9 / seconds;
  const std::string rate = absl::StrFormat("%.1f s (%.2f GB/s)", seconds, gbytes_per_s);
  const std::string sent = *to < 0 ? "" : absl::StrCat(", sent on to rank ", weights.to());
  if (held) {
    spdlog::info("rank {}: epoch {} goes on with the weights that are here{}",
                 assignment_.world_rank(), epoch.epoch(),
                 sent.empty() ? sent : absl::StrCat(sent, " in ", rate));
    return loaded;
  }
  load_s = seconds;
  spdlog::info("rank {}: {} MB of weights loaded in {}, {}{}", assignment_.world_rank(),
               device_.weight_bytes() >> 20, rate,
               *from < 0 ? absl::StrCat("read from ", options_.model)
                         : absl::StrCat("sent by rank ", weights.from()),
               sent);
  return loaded;
}

void Session::examine(EpochRank& epoch, const std::vector<std::string>& addresses) {
  HostFacts host;
  auto examination = epoch.examine(addresses, [&](int done, int of) {
    host.look();
    v1::WorkerMessage message;
    message.mutable_examination_progress()->set_done(done);
    message.mutable_examination_progress()->set_total(of);
    client_.write(std::move(message));
  });
  if (!examination.ok()) return fail(std::string(examination.status().message()));
  examination->facts.merge(host.facts());
  v1::WorkerMessage message;
  message.mutable_ready()->set_epoch(epoch.epoch());
  *message.mutable_ready()->mutable_examination() = to_proto(*examination);
  client_.write(std::move(message));
}

void Session::on_plan(const v1::Plan& message) {
  const std::shared_ptr<EpochRank> epoch = current();
  if (!epoch || epoch->epoch() != message.epoch() || !epoch->met() || over(message.epoch())) return;
  const auto plan = parallel::decode_plan(message.plan());
  if (!plan.ok()) return fail(absl::StrCat("a plan does not parse: ", plan.status().message()));
  const auto limit = std::chrono::duration_cast<Clock::duration>(
      std::chrono::duration<double>(std::clamp(message.deadline_s(), 0.1, 86400.0)));
  if (timeline_ != nullptr) timeline_->clear();  // with one, no two steps are under way
  attempt("in a step", [&] {
    const absl::Status begun = steps_.begin(epoch->rank(), *plan, limit);
    if (!begun.ok()) fail(absl::StrCat("an impossible plan: ", begun.message()));
  });
}

// Until there is a message to handle, or nothing to do but to wait for one.
void Session::run_steps() {
  if (steps_.empty()) return;
  const std::shared_ptr<EpochRank> epoch = current();
  attempt("in a step", [&] { steps_.run(epoch->rank()); });
}

void Session::answer(parallel::StepResult result) {
  result.resident_bytes = resident_bytes();
  v1::WorkerMessage message;
  message.mutable_answer()->set_epoch(result.epoch);
  message.mutable_answer()->set_result(parallel::encode(result));
  if (timeline_ != nullptr) {
    const auto intervals = timeline_->intervals();
    message.mutable_answer()->set_intervals(intervals.data(), intervals.size_bytes());
    if (timeline_->dropped() > 0) {
      spdlog::warn(
          "rank {}: the trace of step {} lacks its last {} intervals: smaller --chunk-tokens make "
          "shorter steps",
          assignment_.world_rank(), result.step, timeline_->dropped());
    }
  }
  client_.write(std::move(message));
}

// The epoch is lost, the worker is not: it says so and waits for the next.
void Session::fail(const std::string& what) {
  const int64_t epoch = assignment_.epoch();
  const bool known = over(epoch);  // the front end ended it: it need not be told
  if (const auto running = current()) running->abort(what);
  drop_epoch();
  if (const std::string fault = device_.fault(); !fault.empty()) {
    // Another process may do better, and the front end replaces this one when its stream breaks.
    spdlog::critical("rank {}: {} is lost to this process: {} ({})", assignment_.world_rank(),
                     device_.name(), fault, what);
    spdlog::shutdown();
    _exit(kBrokenDeviceExit);
  }
  if (known) return;
  spdlog::error("rank {}: epoch {} failed here: {}", assignment_.world_rank(), epoch, what);
  v1::WorkerMessage message;
  message.mutable_failure()->set_epoch(epoch);
  message.mutable_failure()->set_what(what);
  client_.write(std::move(message));
}

// The reader may be aborting it: the end of an epoch, and what it costs, belongs to this thread.
void Session::drop_epoch() {
  std::shared_ptr<EpochRank> epoch;
  {
    std::unique_lock lock(mutex_);
    epoch = std::exchange(epoch_, nullptr);
    aborted_.wait(lock, [this] { return aborting_ == 0; });
  }
  steps_.clear();
}

std::shared_ptr<EpochRank> Session::current() {
  const std::lock_guard lock(mutex_);
  return epoch_;
}

bool Session::over(int64_t epoch) {
  const std::lock_guard lock(mutex_);
  return epoch <= over_;
}

// A launcher tells a whole group to end at once: its SIGTERM comes to ranks whose front end still
// drains. They go on until that tells them to end, or for `drain_s`. Without it, and with SIGINT, a
// worker leaves as if its host had gone: the control stream breaks.
volatile std::sig_atomic_t told_to_end = 0;    // signal handlers have nothing but globals
volatile std::sig_atomic_t drain_seconds = 0;  // written before they are installed

void end_on_signals(double drain_s) {
  drain_seconds = static_cast<int>(std::min(std::ceil(drain_s), 1e9));
  const auto at_once = [](int) { _exit(0); };
  std::signal(SIGINT, at_once);
  std::signal(SIGALRM, at_once);
  std::signal(SIGTERM, [](int) {
    if (drain_seconds == 0) _exit(0);
    if (told_to_end == 0) alarm(static_cast<unsigned>(drain_seconds));
    told_to_end = 1;
  });
}

absl::StatusOr<std::unique_ptr<Device>> device_of(const WorkerOptions& options) {
  if (!options.cuda) return make_cpu_device(options.threads, options.isa, options.transports);
  if (options.gpu >= 0) return make_cuda_device(options.gpu);
  const int32_t gpus = cuda_device_count();
  if (gpus > 1 && options.wanted_rank < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("this host has ", gpus, " GPUs: --gpu N or --rank R says which one to take"));
  }
  // The ranks of a host take its GPUs in turn.
  const int32_t turn = options.local_rank >= 0 ? options.local_rank : options.wanted_rank;
  return make_cuda_device(gpus > 0 ? std::max(turn, 0) % gpus : 0);
}

}  // namespace

int run_worker(const WorkerOptions& options) {
  prctl(PR_SET_NAME, "annulus-worker");  // a local one was started as /proc/self/exe
  end_on_signals(absl::ToDoubleSeconds(options.drain_timeout));
  explain_bus_errors(options.model);
  Kept kept;
  if (!options.model.empty()) {
    auto checkpoint = parallel::Checkpoint::open(options.model, options.overrides);
    if (!checkpoint.ok()) {
      const absl::string_view why = checkpoint.status().message();
      spdlog::error("{}", one_line({why.data(), why.size()}));
      return 2;
    }
    kept.checkpoint = *std::move(checkpoint);
  }
  auto device = device_of(options);
  if (!device.ok()) {
    const absl::string_view why = device.status().message();
    spdlog::error("{}", one_line({why.data(), why.size()}));
    return 2;
  }
  absl::Time last_contact = absl::Now();
  absl::Duration retry = kFirstRetry;
  for (bool tried = false; told_to_end == 0; tried = true) {
    const absl::Duration left = options.orphan_timeout - (absl::Now() - last_contact);
    if (tried && left <= absl::ZeroDuration()) {
      spdlog::error("no front end at {} for {}: ending", options.connect,
                    absl::FormatDuration(options.orphan_timeout));
      return 1;
    }
    auto client = ControlClient::connect(options.connect, options.max_message_bytes,
                                         tried ? std::min(left, kLongestRetry) : kLongestRetry);
    if (client.ok()) {
      const absl::Time attached = absl::Now();
      Session session(options, kept, **device, **client);
      const SessionEnd end = session.run();
      if (end == SessionEnd::kShutdown) return 0;
      if (end == SessionEnd::kRefused) return 2;
      if (told_to_end != 0) return 0;
      // A server that accepts and hangs up at once is no contact.
      const bool stayed = absl::Now() - attached > kLongestRetry;
      if (stayed) retry = kFirstRetry;
      if (stayed || session.heard()) last_contact = absl::Now();
      if (end == SessionEnd::kDisconnected && (stayed || session.heard())) {
        spdlog::warn("the front end at {} is gone: weights stay, attaching again", options.connect);
      } else if (end == SessionEnd::kDisconnected) {
        spdlog::warn(
            "{} hangs up without a word: is it a front end's control address (not the "
            "public one)?",
            options.connect);
      }
    }
    absl::SleepFor(std::min(retry, std::max(left, absl::ZeroDuration())));
    retry = std::min(retry * 2, kLongestRetry);
  }
  return 0;
}

}  // namespace annulus::server
