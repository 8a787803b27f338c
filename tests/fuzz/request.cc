// SPDX-License-Identifier: Apache-2.0
// What the public port decodes: the bytes as each request message, converted as the service does it
// and checked as the engine does it. What passes both is within every range that a plan allows.
#include <cmath>

#include "server/request_check.h"
#include "server/rpc/convert.h"
#include "server/tokenizer/load.h"
#include "tests/fuzz/target.h"
#include "tests/support/tiny_model.h"

namespace annulus::fuzz {
namespace {

constexpr int32_t kVocab = 288;
constexpr int64_t kContext = 1024;

const server::Tokenizer* tokenizer() {
  static const auto* const loaded = [] {
    const auto bytes = testing::tiny_gguf({});
    const auto gguf = parallel::GgufFile::parse(bytes, "tiny");
    return server::tokenizer_from_gguf(*gguf)->release();
  }();
  return loaded;
}

void check_generate(const std::string& bytes) {
  v1::GenerateRequest proto;
  if (!proto.ParseFromString(bytes)) return;
  for (const server::Tokenizer* text :
       {tokenizer(), static_cast<const server::Tokenizer*>(nullptr)}) {
    const auto request = server::to_request(proto, text, kVocab, kContext);
    if (!request.ok()) {
      check_error(request.status());
      continue;
    }
    for (const bool debug : {false, true}) {
      const absl::Status status = server::check_request(*request, kVocab, debug);
      if (!status.ok()) {
        check_error(status);
        continue;
      }
      for (const int32_t id : request->prompt) ANNULUS_CHECK(id >= 0 && id < kVocab, id);
      const parallel::SamplingParams& s = request->sampling;
      ANNULUS_CHECK(std::isfinite(s.temperature) && s.temperature >= 0 && s.top_k >= 0);
      ANNULUS_CHECK(s.top_p > 0 && s.top_p <= 1 && s.min_p >= 0 && s.min_p < 1);
      ANNULUS_CHECK(request->max_tokens >= 0 && (request->append || !request->prompt.empty()));
    }
  }
}

}  // namespace
}  // namespace annulus::fuzz

ANNULUS_FUZZ_TARGET(request) {
  const std::string bytes(text_of(data, size));
  check_generate(bytes);
  v1::TokenizeRequest tokenize_request;
  if (tokenize_request.ParseFromString(bytes)) {
    const auto response = server::tokenize(tokenize_request, tokenizer(), kContext);
    if (!response.ok()) check_error(response.status());
  }
  v1::DetokenizeRequest detokenize_request;
  if (detokenize_request.ParseFromString(bytes)) {
    const auto response = server::detokenize(detokenize_request, tokenizer());
    if (!response.ok()) check_error(response.status());
  }
}
