// SPDX-License-Identifier: Apache-2.0
// gRPC and protobuf write of their own to stderr: a port in use, a string that is not UTF-8. What
// matters of it comes back as a status, so it goes to our log at level debug, unless GRPC_VERBOSITY
// is set. Call once, from main().
#pragma once

namespace annulus::server {

void tame_grpc_log();

}  // namespace annulus::server
