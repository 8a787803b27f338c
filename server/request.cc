// SPDX-License-Identifier: Apache-2.0
#include "server/request.h"

namespace annulus::server {

const char* name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kCancelled: return "cancelled";
  }
  return "unknown";
}

}  // namespace annulus::server
