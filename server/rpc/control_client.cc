// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/control_client.h"

#include <grpcpp/create_channel.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <limits>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "annulus/v1/worker.grpc.pb.h"

namespace annulus::server {

struct ControlClient::Impl {
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Control::Stub> stub;
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReaderWriter<v1::WorkerMessage, v1::FrontMessage>> stream;

  std::mutex mutex;
  std::condition_variable changed;
  std::deque<v1::WorkerMessage> unsent;  // the first one is being sent
  bool goodbye = false, over = false;    // no more comes; nothing can be sent any more
  std::thread sender;

  void send_loop();
};

void ControlClient::Impl::send_loop() {
  std::unique_lock lock(mutex);
  for (;;) {
    changed.wait(lock, [this] { return over || goodbye || !unsent.empty(); });
    if (over || unsent.empty()) break;
    const v1::WorkerMessage& message = unsent.front();  // others only append
    lock.unlock();
    const bool sent = stream->Write(message);
    lock.lock();
    unsent.pop_front();
    over |= !sent;
    changed.notify_all();
  }
  if (!over) stream->WritesDone();
}

ControlClient::ControlClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {
  impl_->sender = std::thread([this] { impl_->send_loop(); });
}

ControlClient::~ControlClient() {
  cancel();
  impl_->sender.join();
  v1::FrontMessage rest;
  while (impl_->stream->Read(&rest)) {
  }
  impl_->stream->Finish();
}

absl::StatusOr<std::unique_ptr<ControlClient>> ControlClient::connect(const std::string& address,
                                                                      int64_t max_message_bytes,
                                                                      absl::Duration patience) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(
      static_cast<int>(std::min<int64_t>(max_message_bytes, std::numeric_limits<int>::max())));
  // A front end whose host is cut off sends no reset: pings find out. One that pauses for less than
  // the time-out (a debugger, Ctrl-Z) finds its workers as it left them.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 2000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // Channels with equal arguments share connections and their back-off; every attachment is its
  // own.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  auto impl = std::make_unique<Impl>();
  impl->channel = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  if (!impl->channel->WaitForConnected(std::chrono::system_clock::now() +
                                       absl::ToChronoMilliseconds(patience))) {
    return absl::UnavailableError(absl::StrCat("no front end answers at ", address));
  }
  impl->stub = v1::Control::NewStub(impl->channel);
  impl->stream = impl->stub->Attach(&impl->context);
  return std::unique_ptr<ControlClient>(new ControlClient(std::move(impl)));
}

bool ControlClient::read(v1::FrontMessage* message) {
  return impl_->stream->Read(message);
}

bool ControlClient::write(v1::WorkerMessage message) {
  std::unique_lock lock(impl_->mutex);
  const auto closed = [this] { return impl_->over || impl_->goodbye; };
  impl_->changed.wait(lock, [&] { return closed() || impl_->unsent.size() < kMostUnsent; });
  if (closed()) return false;
  impl_->unsent.push_back(std::move(message));
  impl_->changed.notify_all();
  return true;
}

void ControlClient::write_at_once(v1::WorkerMessage message) {
  const std::lock_guard lock(impl_->mutex);
  if (impl_->over || impl_->goodbye) return;
  impl_->unsent.push_back(std::move(message));
  impl_->changed.notify_all();
}

void ControlClient::say_goodbye() {
  const std::lock_guard lock(impl_->mutex);
  impl_->goodbye = true;
  impl_->changed.notify_all();
}

void ControlClient::cancel() {
  impl_->context.TryCancel();
  const std::lock_guard lock(impl_->mutex);
  impl_->over = true;
  impl_->changed.notify_all();
}

}  // namespace annulus::server
