// SPDX-License-Identifier: Apache-2.0
// The front end's half of the control protocol (proto/annulus/v1/worker.proto) as a state machine:
// who is attached, which rank each one is, how far the epoch has come, which steps are in flight.
// No clock, no locks, no I/O: times and messages come in, effects go out through take(). Used by
// ControlService, which carries the messages.
//   waiting -> (all ranks attached) opening -> (all addresses) loading -> (all ready) running
// With the addresses every rank says whether it holds its weights; the addresses of all go out with
// the rank's part in reading and sending them (weight_routes.h). Any phase ends in waiting when a
// worker is lost (stream broken, silent for 3 s, no news from any rank for 60 s while weights are
// loaded, an answer that does not fit), fails, or no rank moves for the deadline of a step. The
// next epoch begins as soon as all ranks are attached again, after a back-off where epochs keep
// ending before they have done anything. Time in which the front end itself did not run (stopped, a
// suspended machine) counts for nobody. A worker that asks for a rank with a holder waits until the
// holder is lost, and is refused when the holder is heard again.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "annulus/v1/worker.pb.h"
#include "server/clock_offset.h"
#include "server/examination.h"
#include "server/rank_link.h"
#include "server/rpc/answer_check.h"
#include "server/trace_file.h"
#include "server/weight_routes.h"

namespace annulus::server {

struct EpochPlan {  // what every epoch of this front end is
  parallel::Topology topology;
  std::string build;
  std::string secret;
  uint64_t model_fingerprint = 0;
  parallel::PolicyInput policy;  // its profile is measured
  std::string precision;
  int64_t context = 0;
  int32_t vocab = 0;
  int64_t kv_capacity_rows = 0;
  int32_t page_tokens = 64;
  int64_t workspace_limit_bytes = int64_t{256} << 20;
  int32_t chunk_tokens = 0;  // of a prompt in one step; 0: as many as are quick enough
  bool profile = false;      // ranks report times by phase
  bool trace = false;        // ranks tell what they did when, and their clocks are compared
  bool graphs = true, tune_gemm = false;  // RankOptions
  bool cudnn_attention = false;           // of GPUs, which then need cuDNN
  bool examine = false;  // no model, no steps: ranks measure and report, and that is the epoch
  WeightPolicy weights = WeightPolicy::kAuto;
  std::string outline;  // of the model, for workers without its file; empty: there are none
};

// What the ranks of an epoch that examines them have reported, by world rank.
struct Examined {
  std::vector<RankInfo> ranks;
  std::vector<RankExamination> examinations;
};

class EpochCoordinator {
 public:
  using Time = std::chrono::steady_clock::time_point;
  using WorkerId = int64_t;  // one per stream

  struct Outgoing {
    WorkerId to;
    v1::FrontMessage message;
  };
  struct Effects {
    std::vector<Outgoing> messages;
    std::vector<WorkerId> close;  // end these streams, once their messages are written
    // For the engine. EpochLost comes again, for the epoch that is over, when it changes who is
    // waited for.
    std::vector<LinkEvent> events;
    std::vector<int64_t> stuck_pids;  // lost while their streams still stood: stopped or hung
    std::optional<Examined> examined;
    std::vector<TracedStep> traced;
  };
  struct Status {
    int64_t epoch = 0;
    bool running = false;
    std::string waiting_for;    // "ranks 1, 3 to attach"
    int64_t ranks_ready = 0;    // those that are not waited for
    int64_t failed_starts = 0;  // epochs in a row that ended before they ran
    std::string last_end;       // why the last epoch ended
    double examined = 0;        // share of the examination that the last rank has done
  };

  explicit EpochCoordinator(EpochPlan plan);

  void start(Time now);  // from now on epochs may begin
  void attached(WorkerId worker, Time now);
  void received(WorkerId worker, const v1::WorkerMessage& message, Time now);
  void closed(WorkerId worker, Time now);
  void tick(Time now);  // every 50 ms or so; a gap of over 500 ms is a pause of this process
  // Sends nothing if the plan's epoch is over.
  void send_plan(const parallel::StepPlan& plan, const parallel::ShardState& before,
                 double expected_us, Time now);
  void shutdown();  // tells every worker to end

  Effects take();
  Status status() const;

  // Ranks may go on for 10 times what was predicted for the step, and 10 s, without any progress.
  static double deadline_s(double expected_us) { return 10 * expected_us * 1e-6 + 10; }

 private:
  enum class Phase { kWaiting, kOpening, kLoading, kRunning };
  struct Worker {
    std::optional<v1::Register> claim;  // waits for a rank since:
    Time claimed;
    bool registered = false;
    int32_t rank = -1;  // world rank
    RankInfo info;
    Time heard;         // last message of any kind
    Time moved;         // last message that brought the epoch's start nearer
    bool done = false;  // with the present phase
    std::string address;
    WeightFacts weights;
    parallel::MachineProfile profile;
    int64_t kv_capacity_rows = 0;
    RankExamination examination;
    double examined = 0;  // share
    v1::Heartbeat heartbeat;
    ClockOffset clock;
    std::optional<Time> probed;  // when the reading was asked for that has not come yet
  };
  struct Flight {
    int64_t step = 0;
    double deadline_s = 0;
    Time since;  // when it became the oldest, or a rank last moved
    std::vector<bool> answered;
    std::vector<std::vector<ExpectedAnswer>> expected;  // by rank
    TracedStep traced{};
  };
  struct PendingFailure {
    std::string why;
    Time until;  // a broken stream that shows up before then is the better explanation
  };

  void on_register(WorkerId id, Worker& worker, const v1::Register& message, Time now);
  void seat(WorkerId id, Time now);
  void seat_claims(Time now);
  void on_address(Worker& worker, const v1::DataAddress& message, Time now);
  void send_peers(Time now);
  void log_weights(const std::vector<RankInfo>& ranks) const;
  void on_ready(WorkerId id, Worker& worker, const v1::Ready& message, Time now);
  void on_examined(WorkerId id, Worker& worker, const v1::Examination& message, Time now);
  void begin_running(Time now);
  void on_heartbeat(Worker& worker, const v1::Heartbeat& message, Time now);
  void on_answer(WorkerId id, Worker& worker, const v1::StepAnswer& message, Time now);
  void probe(WorkerId id, Worker& worker, Time raw);
  void on_clock(WorkerId id, Worker& worker, const v1::ClockReading& message, Time raw);
  void refuse(WorkerId id, const std::string& why, Time now);
  void begin_if_complete(Time now);
  void announce_waiting();
  bool all_done() const;
  void next_phase(Phase phase, Time now);
  void lose(WorkerId id, const std::string& why, bool stuck, Time now);
  void remove(WorkerId id, const std::string& why, bool stuck, Time now);
  void end_epoch(const std::string& why, Time now);
  void broadcast(const v1::FrontMessage& message);
  std::string describe(const Worker& worker) const;
  std::string late_ranks(const Flight& flight) const;

  // Time without this process's pauses; everything below is in it.
  Time awake(Time now);

  EpochPlan plan_;
  Time seen_{};
  Time::duration asleep_{};
  std::map<WorkerId, Worker> workers_;
  std::vector<WorkerId> by_rank_;  // 0: nobody
  bool started_ = false, ending_ = false;
  Phase phase_ = Phase::kWaiting;
  int64_t epoch_ = 0;
  Time epoch_began_{}, next_epoch_{};
  bool stepped_ = false;    // the epoch has finished a step
  int32_t young_ends_ = 0;  // epochs in a row that ended soon after they began, without a step
  int64_t failed_starts_ = 0;
  std::string last_end_, announced_;
  std::optional<PendingFailure> failure_;
  std::deque<Flight> flights_;  // by step
  Effects effects_;
};

}  // namespace annulus::server
