// SPDX-License-Identifier: Apache-2.0
#include "server/thread_ranks.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/core/check.h"
#include "parallel/comm_threads.h"
#include "parallel/model/weights.h"

namespace annulus::server {

using parallel::LlamaWeights;
using parallel::MachineProfile;
using parallel::StepPlan;
using parallel::StepResult;
using parallel::ThreadWorld;
using Clock = std::chrono::steady_clock;

namespace {

struct Parcel {
  std::string plan;
  double expected_us = 0;
};

// Plans on their way to one rank.
class Mailbox {
 public:
  void push(Parcel parcel) {
    const std::lock_guard lock(mutex_);
    parcels_.push_back(std::move(parcel));
    arrived_.notify_one();
  }
  void close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    arrived_.notify_one();
  }
  std::optional<Parcel> pop() {
    std::unique_lock lock(mutex_);
    arrived_.wait(lock, [&] { return closed_ || !parcels_.empty(); });
    if (closed_) return std::nullopt;
    Parcel parcel = std::move(parcels_.front());
    parcels_.pop_front();
    return parcel;
  }
  int32_t waiting() {
    const std::lock_guard lock(mutex_);
    return static_cast<int32_t>(parcels_.size());
  }

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<Parcel> parcels_;
  bool closed_ = false;
};

}  // namespace

struct ThreadRanks::Impl {
  // What lives and dies with an epoch.
  struct Epoch {
    Epoch(parallel::Topology topology, int64_t number)
        : id(number), world(topology, number), boxes(static_cast<size_t>(topology.world())) {}
    const int64_t id;
    ThreadWorld world;
    std::vector<Mailbox> boxes;
    std::vector<std::thread> threads;
    std::mutex mutex;  // guards what follows
    EpochReady ready;
    int32_t created = 0;
    bool lost = false;
  };

  void run_rank(Epoch& epoch, int32_t world_rank);
  void end(Epoch& epoch, const std::string& why);
  void begin();
  void stop();

  std::shared_ptr<const parallel::Checkpoint> checkpoint;
  ThreadRanksOptions options;
  std::vector<std::shared_ptr<const LlamaWeights<kernels::CpuQueue>>> weights;  // by tp_rank
  std::function<void(LinkEvent)> sink;
  std::mutex mutex;  // guards epoch
  std::unique_ptr<Epoch> epoch;
  int64_t epochs = 0;
};

absl::StatusOr<std::unique_ptr<ThreadRanks>> ThreadRanks::create(
    std::shared_ptr<const parallel::Checkpoint> checkpoint, const ThreadRanksOptions& options) {
  auto impl = std::make_unique<Impl>();
  for (int32_t tp_rank = 0; tp_rank < options.topology.tp; ++tp_rank) {
    kernels::CpuQueue queue(1);
    absl::StatusOr<LlamaWeights<kernels::CpuQueue>> loaded = parallel::load_weights(
        queue, *checkpoint, tp_rank, options.topology.tp, options.rank.precision);
    if (!loaded.ok()) return loaded.status();
    impl->weights.push_back(
        std::make_shared<const LlamaWeights<kernels::CpuQueue>>(std::move(*loaded)));
  }
  impl->checkpoint = std::move(checkpoint);
  impl->options = options;
  return std::unique_ptr<ThreadRanks>(new ThreadRanks(std::move(impl)));
}

ThreadRanks::ThreadRanks(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

ThreadRanks::~ThreadRanks() {
  impl_->stop();
}

void ThreadRanks::start(std::function<void(LinkEvent)> sink) {
  impl_->sink = std::move(sink);
  impl_->begin();
}

void ThreadRanks::restart() {
  impl_->stop();
  impl_->begin();
}

void ThreadRanks::lose(const std::string& why) {
  const std::lock_guard lock(impl_->mutex);
  if (impl_->epoch) impl_->end(*impl_->epoch, why);
}

void ThreadRanks::send(const StepPlan& plan, const parallel::ShardState& before,
                       double expected_us) {
  const std::lock_guard lock(impl_->mutex);
  if (!impl_->epoch || impl_->epoch->id != plan.epoch) return;
  for (int32_t r = 0; r < impl_->options.topology.world(); ++r) {
    const int32_t cp_rank = impl_->options.topology.cp_rank(r);
    impl_->epoch->boxes[static_cast<size_t>(r)].push(
        {parallel::encode(parallel::plan_for_rank(before, plan, cp_rank)), expected_us});
  }
}

void ThreadRanks::Impl::begin() {
  const std::lock_guard lock(mutex);
  epoch = std::make_unique<Epoch>(options.topology, ++epochs);
  for (int32_t r = 0; r < options.topology.world(); ++r) {
    epoch->threads.emplace_back([this, r, e = epoch.get()] { run_rank(*e, r); });
  }
}

void ThreadRanks::Impl::stop() {
  std::unique_ptr<Epoch> old;
  {
    const std::lock_guard lock(mutex);
    old = std::move(epoch);
  }
  if (!old) return;
  end(*old, "the ranks are stopped");
  for (std::thread& thread : old->threads) thread.join();
}

void ThreadRanks::Impl::end(Epoch& e, const std::string& why) {
  {
    const std::lock_guard lock(e.mutex);
    if (std::exchange(e.lost, true)) return;
  }
  e.world.abort(why);
  for (Mailbox& box : e.boxes) box.close();
  sink(EpochLost{e.id, why});
}

void ThreadRanks::Impl::run_rank(Epoch& e, int32_t world_rank) {
  const parallel::Topology topology = options.topology;
  try {
    const auto tp_rank = static_cast<size_t>(topology.tp_rank(world_rank));
    auto rank = parallel::Rank::create(
        checkpoint->config(), weights[tp_rank],
        std::make_unique<kernels::CpuQueue>(options.rank.threads, options.rank.isa),
        e.world.groups(world_rank), topology, world_rank, e.id, options.rank);
    if (!rank.ok()) {
      return end(e,
                 kernels::concat("rank ", world_rank, ": ", std::string(rank.status().message())));
    }
    const MachineProfile profile = options.profile ? *options.profile : (*rank)->measure();
    {
      const std::lock_guard lock(e.mutex);
      EpochReady& ready = e.ready;
      const int64_t capacity = (*rank)->kv_capacity_rows();
      ready.kv_capacity_rows =
          e.created == 0 ? capacity : std::min(ready.kv_capacity_rows, capacity);
      RankInfo info;
      info.world_rank = world_rank;
      info.host = "this process";
      info.cpu_isa = kernels::name(options.rank.isa);
      info.threads = options.rank.threads;
      info.weight_bytes = weights[tp_rank]->bytes;
      ready.ranks.resize(static_cast<size_t>(topology.world()));
      ready.ranks[static_cast<size_t>(world_rank)] = std::move(info);
      if (++e.created == topology.world() && !e.lost) {
        ready.epoch = e.id;
        ready.topology = topology;
        ready.policy.shape =
            parallel::attention_shape(checkpoint->config(), topology, options.rank.precision);
        ready.policy.cp = topology.cp;
        ready.policy.profile = profile;
        ready.learn = !options.profile;
        ready.policy.workspace_limit_bytes = options.rank.workspace_limit_bytes;
        sink(ready);
      }
    }
    Mailbox& box = e.boxes[static_cast<size_t>(world_rank)];
    Clock::time_point ended = Clock::now();
    while (std::optional<Parcel> parcel = box.pop()) {
      const Clock::time_point begun = Clock::now();
      const absl::StatusOr<StepPlan> plan = parallel::decode_plan(parcel->plan);
      ANNULUS_CHECK(plan.ok(), std::string(plan.status().message()));
      const auto patience =
          std::chrono::microseconds(static_cast<int64_t>(10 * parcel->expected_us) + 10'000'000);
      absl::StatusOr<StepResult> applied = (*rank)->apply(*plan, begun + patience);
      ANNULUS_CHECK(applied.ok(), std::string(applied.status().message()));
      StepResult& result = *applied;
      result.idle_us =
          std::chrono::duration<float, std::micro>(begun - std::exchange(ended, Clock::now()))
              .count();
      result.plans_waiting = box.waiting();
      absl::StatusOr<StepResult> answer = parallel::decode_result(parallel::encode(result));
      ANNULUS_CHECK(answer.ok(), std::string(answer.status().message()));
      sink(RankAnswer{std::move(*answer)});
    }
  } catch (const kernels::DeviceError& error) {
    end(e, kernels::concat("rank ", world_rank, ": ", error.what()));
  }
}

}  // namespace annulus::server
