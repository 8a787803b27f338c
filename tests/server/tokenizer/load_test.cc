// SPDX-License-Identifier: Apache-2.0
#include "server/tokenizer/load.h"

#include <gtest/gtest.h>

#include <functional>
#include <random>

#include "tests/server/tokenizer/fixture.h"

namespace annulus::server {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

const std::vector<std::pair<std::string, std::string>> kMerges = {{"a", "b"}, {"ab", "c"}};

void expect_invalid(const absl::Status& status, const std::string& part) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_NE(status.ToString().find(part), std::string::npos) << status << " lacks " << part;
}

TEST(LoadJson, ReadsFolderOrFileAndWhatIsBesideIt) {
  const TempFolder folder;
  json tokenizer = small_json(kMerges);
  const std::string path = folder.write("tokenizer.json", tokenizer.dump());
  folder.write("tokenizer_config.json",
               R"({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": true,
      "chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "y"}]})");
  folder.write("generation_config.json", R"({"eos_token_id": [258, 3], "bos_token_id": 258})");
  for (const std::string& at : {path, folder.path()}) {
    const auto t = tokenizer_from_json(at);
    ASSERT_TRUE(t.ok()) << t.status();
    EXPECT_EQ((*t)->vocab_size(), 260);
    EXPECT_EQ(*(*t)->encode("abc ab", false), (Ids{257, ' ', 256}));
    EXPECT_EQ(*(*t)->encode("<s>", true), (Ids{258}));
    EXPECT_EQ((*t)->bos_id(), 258);
    EXPECT_TRUE((*t)->add_bos());
    EXPECT_EQ((*t)->eos_ids(), (Ids{3, 258, 259}));
    EXPECT_NE((*t)->chat_status().ToString().find("neither ChatML nor Llama 3"), std::string::npos);
  }
}

TEST(LoadJson, HonoursThePreTokenizer) {
  const TempFolder folder;
  const auto ids = [&](const char* pre_tokenizer, const char* text) {
    json tokenizer = small_json({{"1", "2"}, {"a", "1"}, {"-", "-"}});
    tokenizer["pre_tokenizer"] = json::parse(pre_tokenizer);
    const auto t = tokenizer_from_json(folder.write("tokenizer.json", tokenizer.dump()));
    return t.ok() ? *(*t)->encode(text, false) : Ids{};
  };
  const std::string level = R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": )";
  EXPECT_EQ(ids((level + "false}").c_str(), "a12"), (Ids{'a', 256}));
  EXPECT_EQ(ids((level + "true}").c_str(), "a12"), (Ids{'a', 256}));
  EXPECT_EQ(ids((level + "false}").c_str(), "a1"), (Ids{257}));
  EXPECT_EQ(ids((level + "true}").c_str(), "a1"), (Ids{'a', '1'}));
  const auto sequence = [&](const std::string& first) {
    return R"({"type": "Sequence", "pretokenizers": [)" + first + ", " + level + "false}]}";
  };
  EXPECT_EQ(ids(sequence(R"({"type": "Digits", "individual_digits": true})").c_str(), "12"),
            (Ids{'1', '2'}));
  EXPECT_EQ(ids(sequence(R"({"type": "Digits", "individual_digits": false})").c_str(), "a12"),
            (Ids{'a', 256}));
  EXPECT_EQ(ids(sequence(R"({"type": "Split", "pattern": {"String": "-"}, "behavior": "Removed"})")
                    .c_str(),
                "a-1"),
            (Ids{'a', '1'}));
  EXPECT_EQ(
      ids(sequence(R"({"type": "Split", "pattern": {"Regex": "-"}, "behavior": "Contiguous"})")
              .c_str(),
          "--a1"),
      (Ids{258, 257}));
}

TEST(LoadJson, NamesFileAndFieldOfWhatIsWrong) {
  const TempFolder folder;
  const auto broken = [&](const std::function<void(json&)>& damage, const std::string& field) {
    json tokenizer = small_json(kMerges);
    damage(tokenizer);
    const auto t = tokenizer_from_json(folder.write("tokenizer.json", tokenizer.dump()));
    expect_invalid(t.status(), field);
    expect_invalid(t.status(), folder.path() + "/tokenizer.json");
  };
  broken([](json& j) { j = json::array(); }, "not a JSON object");
  broken([](json& j) { j.erase("model"); }, "model: missing");
  broken([](json& j) { j["model"]["type"] = "Unigram"; }, "model.type");
  broken([](json& j) { j["model"]["vocab"] = json::array(); }, "model.vocab");
  broken([](json& j) { j["model"]["vocab"] = json::object(); }, "byte-level");
  broken([](json& j) { j["model"]["vocab"]["!"] = 1u << 31; }, "model.vocab");
  broken([](json& j) { j["model"]["vocab"]["!"] = 18446744073709551615u; }, "model.vocab");
  broken([](json& j) { j["model"]["vocab"]["!"] = -1; }, "model.vocab");
  broken([](json& j) { j["model"]["vocab"]["!"] = 2.5; }, "model.vocab");
  broken([](json& j) { j["model"]["vocab"]["!"] = "0"; }, "model.vocab");
  broken([](json& j) { j["model"]["vocab"]["new"] = 5; }, "another token");
  broken([](json& j) { j["model"].erase("merges"); }, "model.merges");
  broken([](json& j) { j["model"]["merges"][1] = "ab"; }, "model.merges[1]");
  broken([](json& j) { j["model"]["merges"][1] = json::array({"a", 1}); }, "model.merges[1]");
  broken([](json& j) { j["model"]["merges"][1] = "ab nothing"; }, "merges[1]");
  broken([](json& j) { j["model"]["byte_fallback"] = true; }, "model.byte_fallback");
  broken([](json& j) { j["model"]["unk_token"] = "<unk>"; }, "model.unk_token");
  broken([](json& j) { j["normalizer"] = {{"type", "NFC"}}; }, "normalizer");
  broken([](json& j) { j["added_tokens"] = 7; }, "added_tokens");
  broken([](json& j) { j["added_tokens"][0]["content"] = nullptr; }, "added_tokens[0].content");
  broken([](json& j) { j["added_tokens"][1]["id"] = j["added_tokens"][0]["id"]; },
         "added_tokens[1]");
  broken([](json& j) { j["added_tokens"][1]["id"] = 4'000'000'000u; }, "added_tokens[1]");
  broken([](json& j) { j["added_tokens"][1]["content"] = "a"; }, "has two ids");
  broken([](json& j) { j["added_tokens"][1]["lstrip"] = true; }, "added_tokens[1].lstrip");
  broken([](json& j) { j["pre_tokenizer"] = nullptr; }, "pre_tokenizer");
  broken([](json& j) { j["pre_tokenizer"] = {{"type", "Metaspace"}}; }, "Metaspace");
  broken([](json& j) { j["pre_tokenizer"]["add_prefix_space"] = true; }, "add_prefix_space");
  broken(
      [](json& j) {
        j["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", 1}};
      },
      "pre_tokenizer");
  broken(
      [](json& j) {
        j["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {{{"type", "Split"}}}}};
      },
      "pre_tokenizer.pretokenizers[0]");
  broken(
      [](json& j) {
        j["pre_tokenizer"] = {
            {"type", "Sequence"},
            {"pretokenizers",
             {{{"type", "Split"}, {"pattern", {{"Regex", "("}}}, {"behavior", "Isolated"}},
              j["pre_tokenizer"]}}};
      },
      "does not compile");
  broken(
      [](json& j) {
        for (int i = 0; i < 50; ++i)
          j["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {j["pre_tokenizer"]}}};
      },
      "pre_tokenizer");
  broken(
      [](json& j) {
        j["post_processor"] = {{"type", "TemplateProcessing"},
                               {"single", {{{"SpecialToken", {{"id", "<bos>"}}}}}}};
      },
      "post_processor");
}

TEST(LoadJson, NamesFilesBesideIt) {
  const TempFolder folder;
  folder.write("tokenizer.json", small_json(kMerges).dump());
  folder.write("tokenizer_config.json", R"({"eos_token": "<nothing>"})");
  expect_invalid(tokenizer_from_json(folder.path()).status(), "tokenizer_config.json: eos_token");
  folder.write("tokenizer_config.json", "{");
  expect_invalid(tokenizer_from_json(folder.path()).status(), "tokenizer_config.json");
  folder.write("tokenizer_config.json", "{}");
  folder.write("config.json", R"({"eos_token_id": "2"})");
  expect_invalid(tokenizer_from_json(folder.path()).status(), "config.json: eos_token_id");
  folder.write("generation_config.json",
               R"({"eos_token_id": 99999})");  // now config.json is not asked
  expect_invalid(tokenizer_from_json(folder.path()).status(), "EOS id 99999");
  EXPECT_EQ(tokenizer_from_json(folder.path() + "/none").status().code(),
            absl::StatusCode::kNotFound);
}

// Cut and damaged files: any outcome but a crash; what still loads must still encode.
TEST(LoadJson, SurvivesAnyDamage) {
  const TempFolder folder;
  const std::string whole = small_json(kMerges).dump();
  std::mt19937 random(5);
  for (int round = 0; round < 600; ++round) {
    std::string text = whole;
    if (round % 2 == 0) text.resize(random() % whole.size());
    for (size_t n = random() % 4; n > 0 && !text.empty(); --n)
      text[random() % text.size()] = static_cast<char>(random());
    const auto t = tokenizer_from_json(folder.write("tokenizer.json", text));
    if (t.ok()) {
      EXPECT_TRUE((*t)->encode("abc <s>", true).ok());
    } else {
      EXPECT_EQ(t.status().code(), absl::StatusCode::kInvalidArgument) << t.status();
    }
  }
}

GgufTokenizerFields small_fields() {
  const TokenizerData data = small_data(kMerges);
  GgufTokenizerFields fields;
  fields.source = "m.gguf";
  fields.model = "gpt2";
  fields.pre = "gpt-2";
  fields.tokens = data.tokens;
  for (const TokenKind kind : data.kinds)
    fields.token_types.push_back(kind == TokenKind::kControl ? 3 : 1);
  for (const auto& [left, right] : data.merges) fields.merges.push_back(left + " " + right);
  fields.bos_id = data.bos_id;
  fields.eos_id = data.eos_ids[0];
  return fields;
}

TEST(LoadGguf, ReadsTheFields) {
  const auto t = tokenizer_from_gguf_metadata(small_fields());
  ASSERT_TRUE(t.ok()) << t.status();
  EXPECT_EQ(*(*t)->encode("abc<s>", true), (Ids{257, 258}));
  EXPECT_EQ((*t)->eos_ids(), (Ids{259}));
  EXPECT_FALSE((*t)->add_bos());
  GgufTokenizerFields fields = small_fields();
  fields.pre = "llama-bpe";
  fields.eot_id = 3;
  const auto llama = tokenizer_from_gguf_metadata(fields);
  ASSERT_TRUE(llama.ok()) << llama.status();
  EXPECT_TRUE((*llama)->add_bos());  // what llama.cpp does where the key is missing
  EXPECT_EQ((*llama)->eos_ids(), (Ids{3, 259}));
  fields.add_bos = false;
  EXPECT_FALSE((*tokenizer_from_gguf_metadata(fields))->add_bos());
}

TEST(LoadGguf, NamesFileAndFieldOfWhatIsWrong) {
  const auto broken = [](const std::function<void(GgufTokenizerFields&)>& damage,
                         const std::string& field) {
    GgufTokenizerFields fields = small_fields();
    damage(fields);
    const absl::Status status = tokenizer_from_gguf_metadata(std::move(fields)).status();
    expect_invalid(status, field);
    expect_invalid(status, "m.gguf: ");
  };
  broken([](auto& f) { f.model = "llama"; }, "tokenizer.ggml.model");
  broken([](auto& f) { f.pre = "deepseek-llm"; }, "tokenizer.ggml.pre");
  broken([](auto& f) { f.token_types.pop_back(); }, "tokenizer.ggml.token_type");
  broken([](auto& f) { f.token_types[7] = 9; }, "tokenizer.ggml.token_type[7]");
  broken([](auto& f) { f.merges[1] = "abc"; }, "tokenizer.ggml.merges[1]");
  broken([](auto& f) { f.merges[1] = "ab "; }, "tokenizer.ggml.merges[1]");
  broken([](auto& f) { f.merges[1] = "ab \xFF"; }, "merges[1] names \"\\xff\"");
  broken([](auto& f) { f.tokens[8] = f.tokens[9]; }, "has two ids, 8 and 9");
  broken(
      [](auto& f) {
        f.tokens.clear();
        f.token_types.clear();
      },
      "vocabulary is empty");
  broken([](auto& f) { f.bos_id = 260; }, "BOS id 260");
  broken([](auto& f) { f.eos_id = -5; }, "EOS id -5");
}

// What a generated model answers with: any bytes go in and come out.
TEST(ByteTokenizer, RoundTrips) {
  const auto tokenizer = byte_tokenizer(300);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::string text = "Ring 42\n\xc3\xa4";
  const auto ids = (*tokenizer)->encode(text, false);
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(ids->size(), text.size());
  EXPECT_EQ(*(*tokenizer)->decode(*ids, false), text);
  EXPECT_EQ((*tokenizer)->token_bytes(256), "<256>");
  EXPECT_EQ((*tokenizer)->eos_ids(), std::vector<int32_t>{299});
  EXPECT_NE(byte_tokenizer(256).status().message().find("257"), std::string::npos);
}

}  // namespace
}  // namespace annulus::server
