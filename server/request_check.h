// SPDX-License-Identifier: Apache-2.0
// Whether a request means something, whatever the engine is doing: ranges of sampling parameters,
// token ids within the vocabulary, sizes of lists. Pure; any thread. Error: InvalidArgument in one
// line that names the field, what was found and what is allowed.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "server/request.h"

namespace annulus::server {

inline constexpr int64_t kMaxStopStrings = 64;
inline constexpr int64_t kMaxStopStringBytes = 1024;
inline constexpr int64_t kMaxStopIds = 1024;
inline constexpr int64_t kMaxSessionNameBytes = 256;

// debug: variant and chunk_tokens may be set.
absl::Status check_request(const GenerateRequest& request, int32_t vocab, bool debug);

}  // namespace annulus::server
