// SPDX-License-Identifier: Apache-2.0
#include "kernels/core/check.h"
#include "server/tokenizer/byte_alphabet.h"
#include "server/tokenizer/load.h"

namespace annulus::server {

absl::StatusOr<std::unique_ptr<const Tokenizer>> byte_tokenizer(int32_t vocab) {
  constexpr int32_t kBytes = 256;
  if (vocab <= kBytes)
    return absl::InvalidArgumentError(
        kernels::concat("a vocabulary of ", vocab, " has no room for ", kBytes,
                        " bytes and an end: give the shape at least vocab=", kBytes + 1));
  TokenizerData data;
  data.source = "the generated model's tokenizer";
  data.splits = {{kGpt2Pattern}};
  for (int32_t id = 0; id < vocab; ++id) {
    data.tokens.push_back(id < kBytes ? spelling_of_bytes(std::string(1, static_cast<char>(id)))
                                      : kernels::concat("<", id, ">"));
    data.kinds.push_back(TokenKind::kNormal);
  }
  data.kinds.back() = TokenKind::kControl;
  data.eos_ids = {vocab - 1};
  return Tokenizer::create(data);
}

}  // namespace annulus::server
