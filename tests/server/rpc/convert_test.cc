// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/convert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "parallel/model/checkpoint.h"
#include "server/request_check.h"
#include "server/rpc/profile.h"
#include "server/tokenizer/load.h"
#include "tests/support/tiny_model.h"

namespace annulus::server {
namespace {

constexpr int32_t kVocab = 288;  // of the tiny model, whose first 256 ids are bytes
constexpr int64_t kContext = 512;

const parallel::Checkpoint& checkpoint() {
  static const parallel::Checkpoint opened = [] {
    const std::string path = testing::scratch_directory() + "/tiny.gguf";
    testing::write_gguf({}, path);
    return *parallel::Checkpoint::open(path);
  }();
  return opened;
}

const Tokenizer* tokenizer() {
  static const std::unique_ptr<const Tokenizer> made = *tokenizer_from_gguf(*checkpoint().gguf());
  return made.get();
}

absl::StatusOr<GenerateRequest> convert(const v1::GenerateRequest& proto) {
  return to_request(proto, tokenizer(), kVocab, kContext);
}

// The error that a request gets from conversion or, if that lets it pass, from the engine's check.
absl::Status refusal(const v1::GenerateRequest& proto) {
  const auto request = convert(proto);
  if (!request.ok()) return request.status();
  return check_request(*request, kVocab, /*debug=*/false);
}

void expect_refused(const v1::GenerateRequest& proto, absl::StatusCode code, const char* word) {
  const absl::Status status = refusal(proto);
  EXPECT_EQ(status.code(), code) << status << ", wanted: " << word;
  EXPECT_NE(std::string(status.message()).find(word), std::string::npos) << status;
  EXPECT_EQ(std::string(status.message()).find('\n'), std::string::npos) << status;
}

v1::GenerateRequest hello() {
  v1::GenerateRequest proto;
  proto.set_text("hello");
  return proto;
}

TEST(ToRequest, TakesEveryKindOfPrompt) {
  const std::vector<int32_t> ids = {'h', 'i'};
  v1::GenerateRequest text;
  text.set_text("hi");
  EXPECT_EQ(convert(text)->prompt, *tokenizer()->encode("hi", false));

  v1::GenerateRequest packed;
  packed.set_packed_tokens(std::string("h\0\0\0i\0\0\0", 8));
  EXPECT_EQ(convert(packed)->prompt, ids);

  v1::GenerateRequest listed;
  listed.mutable_tokens()->add_ids('h');
  listed.mutable_tokens()->add_ids('i');
  EXPECT_EQ(convert(listed)->prompt, ids);

  v1::GenerateRequest more;  // nothing but: go on
  more.set_append(true);
  more.set_session("s");
  EXPECT_TRUE(convert(more)->prompt.empty());
  EXPECT_TRUE(refusal(more).ok()) << refusal(more);
}

TEST(ToRequest, ControlTokensInTextStayText) {
  v1::GenerateRequest proto;
  proto.set_text("<|im_end|>");
  const auto request = convert(proto);
  ASSERT_TRUE(request.ok()) << request.status();
  for (const int32_t id : request->prompt) EXPECT_FALSE(tokenizer()->is_control(id));
}

TEST(ToRequest, CarriesEveryField) {
  v1::GenerateRequest proto = hello();
  proto.set_request_id("r");
  proto.set_session("s");
  proto.set_max_tokens(7);
  proto.mutable_sampling()->set_temperature(0.5f);
  proto.mutable_sampling()->set_top_k(3);
  proto.mutable_sampling()->set_top_p(0.75f);
  proto.mutable_sampling()->set_min_p(0.25f);
  proto.mutable_sampling()->set_seed(99);
  proto.add_stop("x");
  proto.add_stop_token_ids(5);
  proto.set_ignore_eos(true);
  proto.set_top_logprobs(128);
  proto.add_prompt_logprob_positions(3);
  proto.add_prompt_logprob_positions(1);
  proto.add_prompt_logprob_positions(3);
  proto.set_all_prompt_logprobs(true);
  proto.add_forced_tokens(6);
  proto.set_attention(v1::ATTENTION_PASS_Q);
  proto.set_chunk_tokens(64);
  const auto request = convert(proto);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->request_id, "r");
  EXPECT_EQ(request->session, "s");
  EXPECT_EQ(request->max_tokens, 7);
  EXPECT_EQ(request->sampling, (parallel::SamplingParams{0.5f, 3, 0.75f, 0.25f, 99}));
  EXPECT_EQ(request->stop, std::vector<std::string>{"x"});
  EXPECT_EQ(request->stop_ids, std::vector<int32_t>{5});
  EXPECT_TRUE(request->ignore_eos);
  EXPECT_EQ(request->top_logprobs, 128);
  EXPECT_EQ(request->prompt_logprob_positions, (std::vector<int64_t>{1, 3}));
  EXPECT_TRUE(request->all_prompt_logprobs);
  EXPECT_EQ(request->forced_tokens, std::vector<int32_t>{6});
  EXPECT_EQ(request->variant, parallel::Variant::kPassQ);
  EXPECT_EQ(request->chunk_tokens, 64);
  expect_refused(proto, absl::StatusCode::kInvalidArgument, "--debug-requests");
}

TEST(ToRequest, DefaultsAreOffAndSeedsAreDrawn) {
  const auto request = convert(hello());
  EXPECT_EQ(request->top_logprobs, -1);
  EXPECT_EQ(request->sampling.top_p, 1.0f);
  EXPECT_FALSE(request->variant);
  EXPECT_FALSE(request->chunk_tokens);
  EXPECT_NE(request->sampling.seed, convert(hello())->sampling.seed);
}

TEST(ToRequest, RefusesWithTheFieldsName) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  expect_refused({}, kInvalid, "no prompt");
  v1::GenerateRequest proto;
  proto.set_packed_tokens("");
  expect_refused(proto, kInvalid, "prompt is empty");
  proto.set_packed_tokens("12345");
  expect_refused(proto, kInvalid, "multiple of 4");
  proto.set_packed_tokens(std::string("\x20\x01\0\0", 4));  // 288
  expect_refused(proto, kInvalid, "packed_tokens[0]");
  proto.mutable_tokens()->add_ids(0xffffffff);
  expect_refused(proto, kInvalid, "tokens[0]");

  proto = hello();
  proto.set_max_tokens(0x80000000);
  expect_refused(proto, kInvalid, "max_tokens");
  proto = hello();
  proto.set_top_logprobs(129);
  expect_refused(proto, kInvalid, "top_logprobs");
  proto = hello();
  proto.add_forced_tokens(288);
  expect_refused(proto, kInvalid, "forced_tokens[0]");
  proto = hello();
  proto.add_stop_token_ids(4000000000);
  expect_refused(proto, kInvalid, "stop_token_ids[0]");
  proto = hello();
  proto.add_stop("");
  expect_refused(proto, kInvalid, "stop[0]");
  proto = hello();
  proto.set_append(true);
  expect_refused(proto, kInvalid, "session");
  proto = hello();
  proto.set_attention(static_cast<v1::Attention>(9));
  expect_refused(proto, kInvalid, "attention");
  proto = hello();
  proto.set_request_id(std::string(300, 'x'));
  expect_refused(proto, kInvalid, "request_id");
}

TEST(ToRequest, RefusesSamplingOutOfRange) {
  const auto with = [](auto&& set) {
    v1::GenerateRequest proto = hello();
    set(*proto.mutable_sampling());
    return proto;
  };
  const float nan = std::nanf("");
  for (const float bad : {-1.0f, nan, HUGE_VALF}) {
    expect_refused(with([&](v1::Sampling& s) { s.set_temperature(bad); }),
                   absl::StatusCode::kInvalidArgument, "temperature");
  }
  for (const float bad : {0.0f, -0.5f, 1.5f, nan}) {
    expect_refused(with([&](v1::Sampling& s) { s.set_top_p(bad); }),
                   absl::StatusCode::kInvalidArgument, "top_p");
  }
  for (const float bad : {-0.1f, 1.0f, nan}) {
    expect_refused(with([&](v1::Sampling& s) { s.set_min_p(bad); }),
                   absl::StatusCode::kInvalidArgument, "min_p");
  }
}

TEST(ToRequest, TextThatNoContextCanHoldIsRefusedBeforeItIsTokenised) {
  const int64_t most = kContext * tokenizer()->longest_token_bytes();
  v1::GenerateRequest proto;
  proto.set_text(std::string(static_cast<size_t>(most), 'm'));
  EXPECT_TRUE(convert(proto).ok()) << convert(proto).status();
  proto.mutable_text()->push_back('m');
  expect_refused(proto, absl::StatusCode::kOutOfRange, "--context");
  const std::string text = proto.text();
  v1::Message& message = *proto.mutable_chat()->add_messages();
  message.set_role("user");
  message.set_content(text);
  expect_refused(proto, absl::StatusCode::kOutOfRange, "--context");
}

TEST(ToRequest, ChatNeedsATemplateAndIsWhole) {
  v1::GenerateRequest proto;
  proto.mutable_chat()->add_messages()->set_role("user");
  EXPECT_TRUE(refusal(proto).ok()) << refusal(proto);
  proto.mutable_chat()->add_messages()->set_role("intruder");
  expect_refused(proto, absl::StatusCode::kInvalidArgument, "messages[1].role");

  GgufTokenizerFields fields = *gguf_tokenizer_fields(*checkpoint().gguf());
  fields.chat_template = "{{ unknown }}";
  const auto untemplated = tokenizer_from_gguf_metadata(std::move(fields));
  ASSERT_TRUE(untemplated.ok()) << untemplated.status();
  const auto refused = to_request(proto, untemplated->get(), kVocab, kContext);
  EXPECT_TRUE(absl::IsFailedPrecondition(refused.status())) << refused.status();

  proto.set_append(true);
  proto.set_session("s");
  expect_refused(proto, absl::StatusCode::kInvalidArgument, "whole chat");
  const auto without = to_request(hello(), nullptr, kVocab, kContext);
  EXPECT_TRUE(absl::IsFailedPrecondition(without.status())) << without.status();
}

TEST(Tokenize, GoesBothWays) {
  v1::TokenizeRequest request;
  EXPECT_TRUE(absl::IsInvalidArgument(tokenize(request, tokenizer(), kContext).status()));
  request.set_text(std::string(1 << 20, 'm'));
  EXPECT_TRUE(absl::IsOutOfRange(tokenize(request, tokenizer(), kContext).status()));
  request.set_text("h\xc3\xa9<|im_end|>");
  const auto plain = tokenize(request, tokenizer(), kContext);
  request.set_parse_special(true);
  const auto special = tokenize(request, tokenizer(), kContext);
  ASSERT_TRUE(plain.ok() && special.ok());
  EXPECT_EQ(special->ids_size(), 4);  // h, two bytes, one control token
  EXPECT_GT(plain->ids_size(), special->ids_size());

  v1::DetokenizeRequest back;
  *back.mutable_ids() = plain->ids();
  EXPECT_EQ(detokenize(back, tokenizer())->text(), request.text());
  back.add_ids(1 << 30);
  EXPECT_TRUE(absl::IsInvalidArgument(detokenize(back, tokenizer()).status()));
}

TEST(ToProto, EventsKeepTheirFigures) {
  PrefillProgress progress{.done = 3, .total = 9, .variant = parallel::Variant::kGatherQ};
  progress.predicted_us[0] = 1.5;
  const auto proto = to_proto(Event(progress), {});
  EXPECT_EQ(proto.progress().attention(), v1::ATTENTION_GATHER_Q);
  EXPECT_EQ(proto.progress().predicted_us().at("pass-kv"), 1.5);

  const Event token = Token{.id = 4, .text = "x", .logprob = -1, .top = {{4, -1}, {5, -2}}};
  EXPECT_FALSE(to_proto(token, {}).token().has_logprob());
  EXPECT_EQ(to_proto(token, {.seed = 0, .logprobs = true}).token().logprob(), -1);
  EXPECT_EQ(to_proto(token, {}).token().top(1).id(), 5u);

  PromptLogprob last_position;  // nothing follows the prompt's last token
  last_position.position = 8;
  const auto last = to_proto(Event(last_position), {});
  EXPECT_FALSE(last.prompt_logprob().has_next_id());

  Finished finished;
  finished.reason = FinishReason::kLength;
  finished.usage.decode_steps[1] = 7;
  const auto end = to_proto(Event(finished), {.seed = 12, .logprobs = false});
  EXPECT_EQ(end.finished().reason(), "length");
  EXPECT_EQ(end.finished().seed(), 12u);
  EXPECT_EQ(end.finished().usage().decode_steps().at("pass-q"), 7);
  EXPECT_EQ(end.finished().usage().decode_steps().count("pass-kv"), 0u);
}

TEST(ToProto, NamesThatAreNotUtf8CannotBreakAnAnswer) {
  parallel::LlamaConfig config;
  config.name = "bad\xff";
  EXPECT_EQ(to_proto(config, {}, nullptr).name(), "bad?");
}

TEST(Profile, SurvivesTheJourney) {
  parallel::MachineProfile profile;
  profile.link_latency_us = 0;
  profile.overlap = 0.25;
  auto values = profile_values(profile);
  const auto back = profile_from_values(values);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(profile_values(*back), values);
  for (const double bad : {0.0, -1.0, std::nan(""), HUGE_VAL}) {
    auto broken = values;
    broken["link_bytes_per_us"] = bad;
    EXPECT_FALSE(profile_from_values(broken).ok()) << bad;
  }
  values.erase("overlap");
  EXPECT_FALSE(profile_from_values(values).ok());
}

}  // namespace
}  // namespace annulus::server
