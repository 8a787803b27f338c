// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/client.h"

#include <grpcpp/create_channel.h>

#include <chrono>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "annulus/v1/inference.grpc.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "server/rpc/status_map.h"

namespace annulus::server {

namespace {

constexpr std::chrono::seconds kQuick{10};  // for calls that compute nothing

// gRPC's own words where a connection breaks under a call.
bool channel_lost(const std::string& message) {
  return message.starts_with("Socket closed") || message.starts_with("Connection reset") ||
         message.starts_with("recvmsg");
}

}  // namespace

struct InferenceClient::Impl {
  std::string address;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Inference::Stub> stub;
  std::mutex mutex;
  grpc::ClientContext* running = nullptr;

  absl::Status explain(const grpc::Status& status) const {
    absl::Status out = from_grpc(status);
    const auto hint = [&](const char* what) {
      return absl::StrCat(what, address,
                          ": start one with `annulus serve`, or name another with --server "
                          "HOST:PORT");
    };
    if (absl::IsUnknown(out))  // no channel could be made of it
      return absl::InvalidArgumentError(
          absl::StrCat("--server \"", address, "\" is not HOST:PORT"));
    if (absl::IsUnimplemented(out))
      return absl::UnimplementedError(hint("no public annulus server answers at "));
    if (absl::IsDeadlineExceeded(out))
      return absl::DeadlineExceededError(hint("nothing came in time from "));
    // A server's own UNAVAILABLE comes over a connection that stands.
    if (!absl::IsUnavailable(out) || channel->GetState(false) == GRPC_CHANNEL_READY) return out;
    return absl::UnavailableError(hint("no server answers at "));
  }

  template <class Request, class Response, class Method>
  absl::StatusOr<Response> call(Method method, const Request& request) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kQuick);
    Response response;
    const grpc::Status status = ((*stub).*method)(&context, request, &response);
    if (!status.ok()) return explain(status);
    return response;
  }
};

InferenceClient::InferenceClient(const std::string& address) : impl_(std::make_unique<Impl>()) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  impl_->address = address;
  impl_->channel =
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  impl_->stub = v1::Inference::NewStub(impl_->channel);
}

InferenceClient::~InferenceClient() = default;

absl::Status InferenceClient::generate(
    const v1::GenerateRequest& request,
    const std::function<void(const v1::GenerateResponse&)>& on_event) {
  grpc::ClientContext context;
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->running = &context;
  }
  const auto reader = impl_->stub->Generate(&context, request);
  v1::GenerateResponse response;
  bool answered = false;
  while (reader->Read(&response)) {
    answered = true;
    on_event(response);
  }
  const grpc::Status status = reader->Finish();
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->running = nullptr;
  }
  if (answered && status.error_code() == grpc::StatusCode::UNAVAILABLE &&
      channel_lost(status.error_message())) {
    return absl::UnavailableError(absl::StrCat("the connection to ", impl_->address,
                                               " broke while it answered: is the server gone?"));
  }
  if (answered) return from_grpc(status);  // the server was there
  return impl_->explain(status);
}

void InferenceClient::cancel() {
  const std::lock_guard lock(impl_->mutex);
  if (impl_->running != nullptr) impl_->running->TryCancel();
}

absl::StatusOr<v1::GetModelResponse> InferenceClient::model() {
  grpc::Status (v1::Inference::Stub::*method)(grpc::ClientContext*, const v1::GetModelRequest&,
                                              v1::GetModelResponse*) =
      &v1::Inference::Stub::GetModel;
  return impl_->call<v1::GetModelRequest, v1::GetModelResponse>(method, {});
}

absl::StatusOr<v1::GetClusterResponse> InferenceClient::cluster() {
  grpc::Status (v1::Inference::Stub::*method)(grpc::ClientContext*, const v1::GetClusterRequest&,
                                              v1::GetClusterResponse*) =
      &v1::Inference::Stub::GetCluster;
  return impl_->call<v1::GetClusterRequest, v1::GetClusterResponse>(method, {});
}

absl::Status InferenceClient::rewind(const std::string& session, int64_t length) {
  v1::RewindSessionRequest request;
  request.set_session(session);
  request.set_length(length);
  grpc::Status (v1::Inference::Stub::*method)(grpc::ClientContext*, const v1::RewindSessionRequest&,
                                              v1::RewindSessionResponse*) =
      &v1::Inference::Stub::RewindSession;
  return impl_->call<v1::RewindSessionRequest, v1::RewindSessionResponse>(method, request).status();
}

absl::StatusOr<bool> InferenceClient::serving() {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kQuick);
  grpc::health::v1::HealthCheckResponse response;
  const grpc::Status status =
      grpc::health::v1::Health::NewStub(impl_->channel)->Check(&context, {}, &response);
  if (!status.ok()) return impl_->explain(status);
  return response.status() == grpc::health::v1::HealthCheckResponse::SERVING;
}

}  // namespace annulus::server
