// SPDX-License-Identifier: Apache-2.0
// absl::Status <-> grpc::Status: the codes have the same numbers, messages are one line. Only for
// files that see grpc.
#pragma once

#include <grpcpp/support/status.h>

#include <string>

#include "absl/status/status.h"
#include "server/one_line.h"

namespace annulus::server {

inline grpc::Status to_grpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return {static_cast<grpc::StatusCode>(status.code()),
          one_line({status.message().data(), status.message().size()})};
}

inline absl::Status from_grpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return {static_cast<absl::StatusCode>(status.error_code()), status.error_message()};
}

}  // namespace annulus::server
