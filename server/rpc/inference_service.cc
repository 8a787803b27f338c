// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/inference_service.h"

#include <utility>

#include "server/rpc/generate_reactor.h"
#include "server/rpc/status_map.h"
#include "server/rpc/wire.h"

namespace annulus::server {

namespace {

// handler: StatusOr<Response>(const Request&).
template <class Request, class Handler>
grpc::Status answer(const grpc::ByteBuffer& in, grpc::ByteBuffer* out, const Handler& handler) {
  const auto request = parse<Request>(in);
  if (!request.ok()) return to_grpc(request.status());
  const auto response = handler(*request);
  if (!response.ok()) return to_grpc(response.status());
  *out = serialise(*response);
  return grpc::Status::OK;
}

// For handlers that take no time.
template <class Request, class Handler>
grpc::ServerUnaryReactor* answer_here(grpc::CallbackServerContext* context,
                                      const grpc::ByteBuffer* in, grpc::ByteBuffer* out,
                                      const Handler& handler) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(answer<Request>(*in, out, handler));
  return reactor;
}

// For the others.
template <class Request, class Handler>
grpc::ServerUnaryReactor* answer_in_pool(TaskPool& pool, grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* in, grpc::ByteBuffer* out,
                                         Handler handler) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const bool taken = pool.post([reactor, in, out, handler = std::move(handler)] {
    reactor->Finish(answer<Request>(*in, out, handler));
  });
  if (!taken) {
    reactor->Finish(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                                 "too many requests wait to be tokenised: try again later"));
  }
  return reactor;
}

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::Generate(Context* context,
                                                                       const Bytes* request) {
  return GenerateReactor::start(core_, context->deadline(), request);
}

grpc::ServerUnaryReactor* InferenceService::RewindSession(Context* context, const Bytes* in,
                                                          Bytes* out) {
  using Response = absl::StatusOr<v1::RewindSessionResponse>;
  return answer_here<v1::RewindSessionRequest>(
      context, in, out, [this](const v1::RewindSessionRequest& request) -> Response {
        if (request.session().empty()) {
          return absl::InvalidArgumentError("session is empty: name the session to rewind");
        }
        if (request.length() < 0) {
          return absl::InvalidArgumentError("length is negative: 0 closes the session");
        }
        const absl::Status status =
            core_.engine.rewind_session(request.session(), request.length());
        if (!status.ok()) return status;
        return v1::RewindSessionResponse();
      });
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(Context* context, const Bytes* in,
                                                     Bytes* out) {
  return answer_in_pool<v1::TokenizeRequest>(
      core_.pool, context, in, out, [this](const v1::TokenizeRequest& request) {
        return tokenize(request, core_.tokenizer.get(), core_.facts.served_context);
      });
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(Context* context, const Bytes* in,
                                                       Bytes* out) {
  return answer_in_pool<v1::DetokenizeRequest>(core_.pool, context, in, out,
                                               [this](const v1::DetokenizeRequest& request) {
                                                 return detokenize(request, core_.tokenizer.get());
                                               });
}

grpc::ServerUnaryReactor* InferenceService::GetModel(Context* context, const Bytes* in,
                                                     Bytes* out) {
  return answer_here<v1::GetModelRequest>(
      context, in, out, [this](const v1::GetModelRequest&) -> absl::StatusOr<v1::GetModelResponse> {
        return to_proto(core_.config, core_.facts, core_.tokenizer.get());
      });
}

grpc::ServerUnaryReactor* InferenceService::GetCluster(Context* context, const Bytes* in,
                                                       Bytes* out) {
  return answer_here<v1::GetClusterRequest>(
      context, in, out,
      [this](const v1::GetClusterRequest&) -> absl::StatusOr<v1::GetClusterResponse> {
        return to_proto(core_.engine.status());
      });
}

}  // namespace annulus::server
