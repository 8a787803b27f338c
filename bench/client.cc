// SPDX-License-Identifier: Apache-2.0
#include "bench/client.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"

namespace annulus::bench {
namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

constexpr double kQuick_s = 10;  // for calls that compute nothing

void set_deadline(grpc::ClientContext& context, double seconds) {
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::microseconds(static_cast<int64_t>(seconds * 1e6)));
}

absl::Status to_status(const grpc::Status& status, const char* call) {
  if (status.ok()) return absl::OkStatus();
  return {static_cast<absl::StatusCode>(status.error_code()),
          absl::StrCat(call, ": ", status.error_message())};
}

}  // namespace

Client::Client(const std::string& address) : address_(address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  stub_ = v1::Inference::NewStub(
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
}

absl::Status Client::stream(const v1::GenerateRequest& request,
                            const std::function<bool(v1::GenerateResponse&)>& on_event,
                            double deadline_s) const {
  grpc::ClientContext context;
  if (deadline_s > 0) set_deadline(context, deadline_s);
  const auto reader = stub_->Generate(&context, request);
  bool cancelled = false;
  for (v1::GenerateResponse event; reader->Read(&event);) {
    if (cancelled || on_event(event)) continue;
    cancelled = true;
    context.TryCancel();
  }
  return to_status(reader->Finish(), "Generate");
}

absl::StatusOr<Answer> Client::generate(const v1::GenerateRequest& request, double deadline_s,
                                        const OnProgress& on_progress) const {
  Answer answer;
  const Clock::time_point start = Clock::now();
  const auto on_event = [&](v1::GenerateResponse& event) {
    switch (event.event_case()) {
      case v1::GenerateResponse::kAccepted:
        answer.accepted = std::move(*event.mutable_accepted());
        break;
      case v1::GenerateResponse::kProgress:
        if (on_progress) on_progress(event.progress());
        answer.progress.push_back(std::move(*event.mutable_progress()));
        break;
      case v1::GenerateResponse::kPromptLogprob:
        answer.prompt.push_back(std::move(*event.mutable_prompt_logprob()));
        break;
      case v1::GenerateResponse::kToken:
        answer.token_ms.push_back(ms_since(start));
        answer.ttft_ms = answer.token_ms.front();
        answer.tokens.push_back(std::move(*event.mutable_token()));
        break;
      case v1::GenerateResponse::kFinished:
        answer.finished = std::move(*event.mutable_finished());
        break;
      case v1::GenerateResponse::EVENT_NOT_SET: break;
    }
    return true;
  };
  const absl::Status status = stream(request, on_event, deadline_s);
  answer.total_ms = ms_since(start);
  if (!status.ok()) return status;
  return answer;
}

absl::StatusOr<v1::GetClusterResponse> Client::cluster() const {
  grpc::ClientContext context;
  set_deadline(context, kQuick_s);
  v1::GetClusterResponse response;
  const absl::Status status = to_status(stub_->GetCluster(&context, {}, &response), "GetCluster");
  if (!status.ok()) return status;
  return response;
}

absl::StatusOr<v1::GetModelResponse> Client::model() const {
  grpc::ClientContext context;
  set_deadline(context, kQuick_s);
  v1::GetModelResponse response;
  const absl::Status status = to_status(stub_->GetModel(&context, {}, &response), "GetModel");
  if (!status.ok()) return status;
  return response;
}

absl::StatusOr<Served> Client::reach() const {
  auto cluster = this->cluster();
  if (absl::IsUnavailable(cluster.status()) || absl::IsDeadlineExceeded(cluster.status())) {
    return absl::UnavailableError(
        absl::StrCat("no server answers at ", address_,
                     ": start one with `annulus serve`, or name another with --address HOST:PORT"));
  }
  if (absl::IsUnimplemented(cluster.status())) {
    return absl::FailedPreconditionError(
        absl::StrCat("the server at ", address_, " does not speak annulus.v1.Inference"));
  }
  if (!cluster.ok()) return cluster.status();
  if (!cluster->serving()) {
    return absl::UnavailableError(
        absl::StrCat("the server at ", address_, " does not serve now: ", cluster->why_not()));
  }
  auto model = this->model();
  if (!model.ok()) return model.status();
  return Served{*std::move(model), *std::move(cluster)};
}

absl::Status Client::rewind_session(const std::string& session, int64_t length) const {
  grpc::ClientContext context;
  set_deadline(context, kQuick_s);
  v1::RewindSessionRequest request;
  request.set_session(session);
  request.set_length(length);
  v1::RewindSessionResponse response;
  return to_status(stub_->RewindSession(&context, request, &response), "RewindSession");
}

v1::Attention attention_of(const std::string& name) {
  if (name == "pass-kv") return v1::ATTENTION_PASS_KV;
  if (name == "pass-q") return v1::ATTENTION_PASS_Q;
  return name == "gather-q" ? v1::ATTENTION_GATHER_Q : v1::ATTENTION_AUTO;
}

std::vector<int32_t> synthetic_ids(int64_t count, int32_t vocab) {
  std::vector<int32_t> ids;
  ids.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>(i * 7919 % vocab));
  return ids;
}

std::string pack_tokens(const std::vector<int32_t>& ids) {
  std::string packed;
  packed.reserve(ids.size() * 4);
  for (const int32_t id : ids) {
    for (int shift = 0; shift < 32; shift += 8) {
      packed.push_back(static_cast<char>((static_cast<uint32_t>(id) >> shift) & 255));
    }
  }
  return packed;
}

}  // namespace annulus::bench
