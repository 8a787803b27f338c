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

absl::Status to_status(const grpc::Status& status, const char* call) {
  if (status.ok()) return absl::OkStatus();
  return {static_cast<absl::StatusCode>(status.error_code()),
          absl::StrCat(call, ": ", status.error_message())};
}

}  // namespace

Client::Client(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  stub_ = v1::Inference::NewStub(
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
}

absl::Status Client::stream(const v1::GenerateRequest& request,
                            const std::function<bool(v1::GenerateResponse&)>& on_event,
                            double deadline_s) const {
  grpc::ClientContext context;
  if (deadline_s > 0) {
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::microseconds(static_cast<int64_t>(deadline_s * 1e6)));
  }
  const auto reader = stub_->Generate(&context, request);
  bool cancelled = false;
  for (v1::GenerateResponse event; reader->Read(&event);) {
    if (cancelled || on_event(event)) continue;
    cancelled = true;
    context.TryCancel();
  }
  return to_status(reader->Finish(), "Generate");
}

absl::StatusOr<Answer> Client::generate(const v1::GenerateRequest& request) const {
  Answer answer;
  const Clock::time_point start = Clock::now();
  const absl::Status status = stream(request, [&](v1::GenerateResponse& event) {
    switch (event.event_case()) {
      case v1::GenerateResponse::kAccepted:
        answer.accepted = std::move(*event.mutable_accepted());
        break;
      case v1::GenerateResponse::kProgress:
        answer.progress.push_back(std::move(*event.mutable_progress()));
        break;
      case v1::GenerateResponse::kPromptLogprob:
        answer.prompt.push_back(std::move(*event.mutable_prompt_logprob()));
        break;
      case v1::GenerateResponse::kToken:
        if (answer.tokens.empty()) answer.ttft_ms = ms_since(start);
        answer.tokens.push_back(std::move(*event.mutable_token()));
        break;
      case v1::GenerateResponse::kFinished:
        answer.finished = std::move(*event.mutable_finished());
        break;
      case v1::GenerateResponse::EVENT_NOT_SET: break;
    }
    return true;
  });
  answer.total_ms = ms_since(start);
  if (!status.ok()) return status;
  return answer;
}

absl::StatusOr<v1::GetClusterResponse> Client::cluster() const {
  grpc::ClientContext context;
  v1::GetClusterResponse response;
  const absl::Status status = to_status(stub_->GetCluster(&context, {}, &response), "GetCluster");
  if (!status.ok()) return status;
  return response;
}

absl::StatusOr<v1::GetModelResponse> Client::model() const {
  grpc::ClientContext context;
  v1::GetModelResponse response;
  const absl::Status status = to_status(stub_->GetModel(&context, {}, &response), "GetModel");
  if (!status.ok()) return status;
  return response;
}

absl::Status Client::close_session(const std::string& session) const {
  grpc::ClientContext context;
  v1::RewindSessionRequest request;
  request.set_session(session);
  v1::RewindSessionResponse response;
  return to_status(stub_->RewindSession(&context, request, &response), "RewindSession");
}

v1::Attention attention_of(const std::string& name) {
  if (name == "pass-kv") return v1::ATTENTION_PASS_KV;
  if (name == "pass-q") return v1::ATTENTION_PASS_Q;
  return name == "gather-q" ? v1::ATTENTION_GATHER_Q : v1::ATTENTION_AUTO;
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
