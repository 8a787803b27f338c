// SPDX-License-Identifier: Apache-2.0
// A GGUF file: directory and metadata, config, tokenizer, then the whole way to packed weights.
#include "parallel/model/gguf.h"

#include "kernels/cpu/queue.h"
#include "parallel/model/checkpoint.h"
#include "parallel/model/weights.h"
#include "server/tokenizer/load.h"
#include "tests/fuzz/target.h"

namespace annulus::fuzz {
namespace {

// Reads all that a file offers: a view that leaves the file is a report of the sanitizer.
uint64_t read_everything(const parallel::GgufFile& gguf) {
  uint64_t sum = 0;
  for (const parallel::GgufTensor& tensor : gguf.tensors())
    for (const std::byte b : tensor.data) sum += static_cast<uint64_t>(b);
  for (const auto& [key, value] : gguf.metadata()) {
    for (const std::byte b : value.payload) sum += static_cast<uint64_t>(b);
    sum += gguf.integer(key).ok() + gguf.number(key).ok() + gguf.boolean(key).ok();
    sum += gguf.string(key).value_or("").size() + gguf.integers(key).ok() + gguf.numbers(key).ok();
    if (const auto texts = gguf.strings(key); texts.ok())
      for (const std::string_view text : *texts) sum += text.size();
  }
  return sum;
}

}  // namespace
}  // namespace annulus::fuzz

ANNULUS_FUZZ_TARGET(gguf) {
  const auto parsed = parallel::GgufFile::parse(bytes_of(data, size), "fuzz.gguf");
  if (!parsed.ok()) return check_error(parsed.status());
  static volatile uint64_t sink = 0;
  sink = sink + read_everything(*parsed);
  if (const auto tokenizer = server::tokenizer_from_gguf(*parsed); !tokenizer.ok())
    check_error(tokenizer.status());
  const auto config = parallel::config_from_gguf(*parsed);
  if (!config.ok()) return check_error(config.status());

  const MemoryFile file(data, size);
  const auto checkpoint = parallel::Checkpoint::open(file.path());
  if (!checkpoint.ok()) return check_error(checkpoint.status());
  kernels::CpuQueue queue(1);
  for (const int tp : parallel::valid_tp(*config)) {
    if (tp > 4) break;
    const auto weights =
        parallel::load_weights(queue, *checkpoint, tp - 1, tp, kernels::Precision::kDefault);
    if (!weights.ok()) check_error(weights.status());
  }
}
