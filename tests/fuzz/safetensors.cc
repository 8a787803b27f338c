// SPDX-License-Identifier: Apache-2.0
// A safetensors file: its header and the views of its tensors.
#include "parallel/model/safetensors.h"

#include "tests/fuzz/target.h"

ANNULUS_FUZZ_TARGET(safetensors) {
  const auto parsed = parallel::parse_safetensors(bytes_of(data, size), "fuzz.safetensors");
  if (!parsed.ok()) return check_error(parsed.status());
  static volatile uint64_t sink;
  for (const auto& [name, tensor] : *parsed)
    for (const std::byte b : tensor.data) sink = sink + static_cast<uint64_t>(b);
}
