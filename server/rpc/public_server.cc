// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/public_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>

#include <chrono>
#include <utility>

#include "server/rpc/health_service.h"
#include "server/rpc/inference_service.h"
#include "server/rpc/listen.h"

namespace annulus::server {

namespace {

constexpr size_t kMaxTasks = 1024;
// What messages on their way in may hold together, where four of the largest need no more.
constexpr int64_t kLeastBuffers = int64_t{256} << 20;

}  // namespace

struct PublicServer::Impl {
  Impl(Engine& engine, std::shared_ptr<const Tokenizer> tokenizer,
       const parallel::LlamaConfig& config, const ModelFacts& facts,
       const PublicServerOptions& options)
      : core{.engine = engine,
             .tokenizer = std::move(tokenizer),
             .config = config,
             .facts = facts,
             .outbox = options.outbox,
             .pool = TaskPool(options.tokenizer_threads, kMaxTasks)},
        inference(core),
        health([&engine, hung_s = options.hung_s] { return engine.stalled_s() < hung_s; }) {}

  ServiceCore core;
  InferenceService inference;
  HealthService health;
  Listening listening;
};

PublicServer::PublicServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

PublicServer::~PublicServer() {
  shutdown(absl::ZeroDuration());
}

absl::StatusOr<std::unique_ptr<PublicServer>> PublicServer::start(
    Engine& engine, std::shared_ptr<const Tokenizer> tokenizer, const parallel::LlamaConfig& config,
    const ModelFacts& facts, const PublicServerOptions& options) {
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  auto impl = std::make_unique<Impl>(engine, std::move(tokenizer), config, facts, options);
  // However many clients send at once, the front end stays: its end would be everybody's.
  const int64_t buffer_bytes = std::max(kLeastBuffers, 4 * options.max_message_bytes);
  auto listening = listen(options.host, options.port, options.max_message_bytes, buffer_bytes,
                          {&impl->inference, &impl->health});
  if (!listening.ok()) return listening.status();
  impl->listening = *std::move(listening);
  return std::unique_ptr<PublicServer>(new PublicServer(std::move(impl)));
}

int PublicServer::port() const {
  return impl_->listening.port;
}

void PublicServer::set_serving(bool serving) {
  impl_->health.set_serving(serving && !impl_->core.draining);
}

std::array<int64_t, RequestCounts::kCodes> PublicServer::requests() const {
  return impl_->core.requests.read();
}

void PublicServer::drain() {
  impl_->core.draining = true;
  impl_->health.set_serving(false);
}

void PublicServer::shutdown(absl::Duration grace) {
  if (impl_->listening.server == nullptr) return;
  drain();
  impl_->health.shutdown();
  impl_->listening.server->Shutdown(std::chrono::system_clock::now() +
                                    absl::ToChronoMilliseconds(grace));
  impl_->listening.server->Wait();
  impl_->listening.server.reset();
}

}  // namespace annulus::server
