// SPDX-License-Identifier: Apache-2.0
// A GGUF file's twin with every quantised matrix dequantised to bf16, so that one model can be
// measured in both widths. Metadata and float tensors are copied as they are.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace annulus::bench {

// NotFound or InvalidArgument for `from`; Unavailable where `to` cannot be written.
absl::Status write_bf16_copy(const std::string& from, const std::string& to);

}  // namespace annulus::bench
