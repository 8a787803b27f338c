// SPDX-License-Identifier: Apache-2.0
// annulus.v1.Inference on gRPC's callback API. Every method is raw (see wire.h); parsing,
// tokenising and detokenising run on the core's task pool. Generate is a GenerateReactor. Sees
// grpc: included by public_server.cc only.
#pragma once

#include "annulus/v1/inference.grpc.pb.h"
#include "server/rpc/service_core.h"

namespace annulus::server {

using RawInference = v1::Inference::WithRawCallbackMethod_Generate<
    v1::Inference::WithRawCallbackMethod_RewindSession<
        v1::Inference::WithRawCallbackMethod_Tokenize<
            v1::Inference::WithRawCallbackMethod_Detokenize<
                v1::Inference::WithRawCallbackMethod_GetModel<
                    v1::Inference::WithRawCallbackMethod_GetCluster<v1::Inference::Service>>>>>>;

class InferenceService final : public RawInference {
 public:
  explicit InferenceService(ServiceCore& core) : core_(core) {}

 private:
  using Context = grpc::CallbackServerContext;
  using Bytes = grpc::ByteBuffer;

  grpc::ServerWriteReactor<Bytes>* Generate(Context* context, const Bytes* request) override;
  grpc::ServerUnaryReactor* RewindSession(Context*, const Bytes*, Bytes*) override;
  grpc::ServerUnaryReactor* Tokenize(Context*, const Bytes*, Bytes*) override;
  grpc::ServerUnaryReactor* Detokenize(Context*, const Bytes*, Bytes*) override;
  grpc::ServerUnaryReactor* GetModel(Context*, const Bytes*, Bytes*) override;
  grpc::ServerUnaryReactor* GetCluster(Context*, const Bytes*, Bytes*) override;

  ServiceCore& core_;
};

}  // namespace annulus::server
