// SPDX-License-Identifier: Apache-2.0
#include "server/request_check.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>

namespace annulus::server {
namespace {

GenerateRequest good() {
  GenerateRequest request;
  request.prompt = {1, 2, 3};
  request.max_tokens = 4;
  return request;
}

TEST(RequestCheck, AcceptsOrdinaryRequests) {
  EXPECT_TRUE(check_request(good(), 10, false).ok());
  GenerateRequest request = good();
  request.sampling = {.temperature = 0.7f, .top_k = 40, .top_p = 0.9f, .min_p = 0.05f, .seed = 1};
  request.top_logprobs = parallel::kMaxTop;
  request.stop = {"x"};
  request.stop_ids = {9};
  request.forced_tokens = {0, 9};
  EXPECT_TRUE(check_request(request, 10, false).ok());
}

TEST(RequestCheck, RefusalsNameTheField) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  struct Case {
    const char* says;
    std::function<void(GenerateRequest&)> break_it;
  };
  const std::vector<Case> cases = {
      {"temperature", [&](auto& r) { r.sampling.temperature = nan; }},
      {"temperature", [&](auto& r) { r.sampling.temperature = infinity; }},
      {"temperature", [&](auto& r) { r.sampling.temperature = -0.1f; }},
      {"top_k", [&](auto& r) { r.sampling.top_k = -1; }},
      {"top_p", [&](auto& r) { r.sampling.top_p = nan; }},
      {"top_p", [&](auto& r) { r.sampling.top_p = 0; }},
      {"top_p", [&](auto& r) { r.sampling.top_p = 1.1f; }},
      {"min_p", [&](auto& r) { r.sampling.min_p = nan; }},
      {"min_p", [&](auto& r) { r.sampling.min_p = 1; }},
      {"max_tokens", [&](auto& r) { r.max_tokens = -1; }},
      {"top_logprobs", [&](auto& r) { r.top_logprobs = parallel::kMaxTop + 1; }},
      {"top_logprobs", [&](auto& r) { r.top_logprobs = -2; }},
      {"prompt[1] is 10", [&](auto& r) { r.prompt[1] = 10; }},
      {"prompt[2] is -1", [&](auto& r) { r.prompt[2] = -1; }},
      {"prompt is empty", [&](auto& r) { r.prompt.clear(); }},
      {"stop_token_ids[0]", [&](auto& r) { r.stop_ids = {10}; }},
      {"forced_tokens[1]",
       [&](auto& r) {
         r.forced_tokens = {1, 99};
       }},
      {"forced_tokens has 5",
       [&](auto& r) {
         r.forced_tokens = {1, 1, 1, 1, 1};
       }},
      {"stop[0]", [&](auto& r) { r.stop = {""}; }},
      {"stop has", [&](auto& r) { r.stop.assign(65, "x"); }},
      {"append", [&](auto& r) { r.append = true; }},
      {"session", [&](auto& r) { r.session.assign(257, 'x'); }},
      {"--debug-requests", [&](auto& r) { r.variant = parallel::Variant::kPassQ; }},
      {"--debug-requests", [&](auto& r) { r.chunk_tokens = 7; }},
  };
  for (const Case& c : cases) {
    GenerateRequest request = good();
    c.break_it(request);
    const absl::Status status = check_request(request, 10, false);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.says;
    EXPECT_NE(status.message().find(c.says), std::string::npos) << status;
  }
  GenerateRequest request = good();
  request.chunk_tokens = 0;
  EXPECT_FALSE(check_request(request, 10, true).ok());
  request.chunk_tokens = 1;
  EXPECT_TRUE(check_request(request, 10, true).ok());
}

}  // namespace
}  // namespace annulus::server
