// SPDX-License-Identifier: Apache-2.0
// Messages of raw methods. The public service takes bytes instead of parsed messages, because gRPC
// answers UNIMPLEMENTED to a message that does not parse: a string that is not UTF-8 has to end as
// INVALID_ARGUMENT. Only for files that see grpc.
#pragma once

#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/support/byte_buffer.h>

#include "absl/status/statusor.h"

namespace annulus::server {

template <class Message>
absl::StatusOr<Message> parse(grpc::ByteBuffer bytes) {
  Message message;
  if (!grpc::SerializationTraits<Message>::Deserialize(&bytes, &message).ok()) {
    return absl::InvalidArgumentError(
        "the request does not parse: it is malformed, or one of its strings is not UTF-8");
  }
  return message;
}

template <class Message>
grpc::ByteBuffer serialise(const Message& message) {
  grpc::ByteBuffer bytes;
  bool own = false;
  grpc::SerializationTraits<Message>::Serialize(message, &bytes, &own);
  return bytes;
}

}  // namespace annulus::server
