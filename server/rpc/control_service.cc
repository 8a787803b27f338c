// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/control_service.h"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "annulus/v1/worker.grpc.pb.h"
#include "server/rpc/listen.h"
#include "server/rpc/status_map.h"
#include "server/rpc/wire.h"

namespace annulus::server {

namespace {

using Clock = std::chrono::steady_clock;
using WorkerId = EpochCoordinator::WorkerId;
constexpr std::chrono::milliseconds kTick{50};
constexpr std::chrono::seconds kGoodbye{2};  // for workers to end their streams

}  // namespace

struct ControlService::Impl {
  class Stream;
  // Raw (wire.h): what does not parse ends with INVALID_ARGUMENT, and is told from a stream's end.
  class Service final : public v1::Control::WithRawCallbackMethod_Attach<v1::Control::Service> {
   public:
    explicit Service(Impl& impl) : impl_(impl) {}
    grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Attach(
        grpc::CallbackServerContext*) override;

   private:
    Impl& impl_;
  };

  explicit Impl(ControlOptions o)
      : options(std::move(o)), service(*this), coordinator(options.epoch) {}

  void tick_loop();
  // Carries out what the coordinator wants; the mutex is held.
  void apply();

  ControlOptions options;
  Service service;
  std::mutex mutex;
  std::condition_variable wake;
  EpochCoordinator coordinator;
  std::function<void(LinkEvent)> sink;
  std::map<WorkerId, std::shared_ptr<Stream>> streams;
  WorkerId last_id = 0;
  std::vector<int64_t> stuck_pids;
  bool stopping = false;
  std::thread ticker;
  Listening listening;
};

// One worker's stream. Its own mutex is taken inside the service's, never the other way round. Owns
// itself until gRPC is done with it.
class ControlService::Impl::Stream final
    : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  Stream(Impl& impl, WorkerId id) : impl_(impl), id_(id) {}

  void begin(std::shared_ptr<Stream> self) {
    self_ = std::move(self);
    StartRead(&in_);
  }

  void send(v1::FrontMessage message) {
    {
      const std::lock_guard lock(mutex_);
      if (closing_) return;
      outbox_.push_back(std::move(message));
      if (std::exchange(writing_, true)) return;
    }
    write_next();
  }

  // After what waits has been written.
  void close() {
    {
      const std::lock_guard lock(mutex_);
      if (std::exchange(closing_, true)) return;
      if (std::exchange(writing_, true)) return;
    }
    write_next();
  }

  void OnReadDone(bool ok) override {
    absl::StatusOr<v1::WorkerMessage> message = v1::WorkerMessage();
    if (ok) message = parse<v1::WorkerMessage>(std::exchange(in_, {}));
    if (!message.ok()) {
      const std::lock_guard lock(mutex_);
      final_ = to_grpc(message.status());
      ok = false;
    }
    {
      const std::lock_guard lock(impl_.mutex);
      if (ok) {
        impl_.coordinator.received(id_, *message, Clock::now());
      } else {
        impl_.coordinator.closed(id_, Clock::now());
      }
      impl_.apply();
    }
    if (ok) {
      StartRead(&in_);
    } else {
      drop();
    }
  }

  void OnWriteDone(bool ok) override {
    if (ok) {
      write_next();
    } else {
      {
        const std::lock_guard lock(mutex_);
        outbox_.clear();
        closing_ = true;
      }
      write_next();
    }
  }

  void OnCancel() override { drop(); }

  void OnDone() override {
    const std::shared_ptr<Stream> self = std::move(self_);
    const std::lock_guard lock(impl_.mutex);
    impl_.streams.erase(id_);
    impl_.wake.notify_all();
  }

 private:
  void drop() {
    {
      const std::lock_guard lock(mutex_);
      outbox_.clear();
    }
    close();
  }

  void write_next() {  // writing_ is ours
    bool finish = false;
    {
      const std::lock_guard lock(mutex_);
      if (outbox_.empty()) {
        finish = closing_;
        if (!finish) {
          writing_ = false;
          return;
        }
      } else {
        out_ = serialise(outbox_.front());
        outbox_.pop_front();
      }
    }
    if (finish) return Finish(final_);  // writing_ stays: nothing follows
    StartWrite(&out_);
  }

  Impl& impl_;
  const WorkerId id_;
  std::shared_ptr<Stream> self_;
  grpc::ByteBuffer in_, out_;
  std::mutex mutex_;
  grpc::Status final_;                   // set before closing_
  std::deque<v1::FrontMessage> outbox_;  // two plans at most, and a few words
  bool writing_ = false, closing_ = false;
};

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ControlService::Impl::Service::Attach(
    grpc::CallbackServerContext*) {
  const std::lock_guard lock(impl_.mutex);
  const WorkerId id = ++impl_.last_id;
  auto stream = std::make_shared<Stream>(impl_, id);
  impl_.streams[id] = stream;
  impl_.coordinator.attached(id, Clock::now());
  stream->begin(stream);
  return stream.get();
}

void ControlService::Impl::apply() {
  EpochCoordinator::Effects effects = coordinator.take();
  for (EpochCoordinator::Outgoing& outgoing : effects.messages) {
    const auto it = streams.find(outgoing.to);
    if (it != streams.end()) it->second->send(std::move(outgoing.message));
  }
  for (const WorkerId id : effects.close) {
    const auto it = streams.find(id);
    if (it != streams.end()) it->second->close();
  }
  if (sink) {
    for (LinkEvent& event : effects.events) sink(std::move(event));
  }
  if (effects.examined && options.on_examined) options.on_examined(*std::move(effects.examined));
  if (options.on_traced) {
    for (TracedStep& step : effects.traced) options.on_traced(std::move(step));
  }
  stuck_pids.insert(stuck_pids.end(), effects.stuck_pids.begin(), effects.stuck_pids.end());
}

void ControlService::Impl::tick_loop() {
  std::unique_lock lock(mutex);
  while (!stopping) {
    wake.wait_for(lock, kTick, [this] { return stopping; });
    coordinator.tick(Clock::now());
    apply();
    const std::vector<int64_t> stuck = std::exchange(stuck_pids, {});
    if (stuck.empty() || !options.on_stuck) continue;
    lock.unlock();
    for (const int64_t pid : stuck) options.on_stuck(pid);
    lock.lock();
  }
}

ControlService::ControlService(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

absl::StatusOr<std::unique_ptr<ControlService>> ControlService::create(ControlOptions options) {
  auto impl = std::make_unique<Impl>(std::move(options));
  // No bound on buffers: what it would end are the ranks' streams, and the epoch with them.
  auto listening = listen(impl->options.host, impl->options.port, impl->options.max_message_bytes,
                          /*buffer_bytes=*/0, {&impl->service});
  if (!listening.ok()) return listening.status();
  impl->listening = *std::move(listening);
  impl->ticker = std::thread([raw = impl.get()] { raw->tick_loop(); });
  return std::unique_ptr<ControlService>(new ControlService(std::move(impl)));
}

ControlService::~ControlService() {
  {
    std::unique_lock lock(impl_->mutex);
    impl_->sink = nullptr;
    impl_->coordinator.shutdown();
    impl_->apply();
    // Workers that got the message end their streams themselves.
    impl_->wake.wait_for(lock, kGoodbye, [this] { return impl_->streams.empty(); });
    impl_->stopping = true;
  }
  impl_->wake.notify_all();
  impl_->ticker.join();
  impl_->listening.server->Shutdown(std::chrono::system_clock::now());
  impl_->listening.server->Wait();
}

void ControlService::start(std::function<void(LinkEvent)> sink) {
  const std::lock_guard lock(impl_->mutex);
  impl_->sink = std::move(sink);
  impl_->coordinator.start(Clock::now());
  impl_->apply();
}

void ControlService::send(const parallel::StepPlan& plan, const parallel::ShardState& before,
                          double expected_us) {
  const std::lock_guard lock(impl_->mutex);
  impl_->coordinator.send_plan(plan, before, expected_us, Clock::now());
  impl_->apply();
}

int ControlService::port() const {
  return impl_->listening.port;
}

EpochCoordinator::Status ControlService::status() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->coordinator.status();
}

}  // namespace annulus::server
