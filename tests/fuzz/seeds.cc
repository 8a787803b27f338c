// SPDX-License-Identifier: Apache-2.0
// fuzz_seeds FOLDER: writes the hand-made part of the corpus, FOLDER/<target>/seed-*: small real
// files, chats, plan logs and requests from which the fuzzers start.
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "annulus/v1/inference.pb.h"
#include "annulus/v1/worker.pb.h"
#include "parallel/sharding.h"
#include "server/rpc/profile.h"
#include "tests/parallel/sharding/plans.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/tiny_model.h"

namespace annulus::fuzz {
namespace {

namespace fs = std::filesystem;
using testing::TinyModel;

class Seeds {
 public:
  Seeds(fs::path root, std::string target) : folder_(std::move(root) / std::move(target)) {
    fs::create_directories(folder_);
  }
  void add(std::string_view bytes) {
    std::ofstream out(folder_ / absl::StrCat("seed-", count_++), std::ios::binary);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  void add(std::span<const std::byte> bytes) {
    add(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  }

 private:
  fs::path folder_;
  int count_ = 0;
};

TinyModel smallest() {
  TinyModel model;
  model.layers = 1;
  model.dim = 32;
  model.heads = 2;
  model.kv_heads = 1;
  model.ffn = 32;
  model.vocab = 36;
  model.matrices = model.embedding = kernels::WeightFormat::kQ4_1;
  return model;
}

void write_gguf_seeds(Seeds seeds) {
  TinyModel model = smallest();
  seeds.add(testing::tiny_gguf(model));
  model.vocab = 260;  // with control tokens and a chat template
  model.rope_scaling = {parallel::RopeScaling::Kind::kLlama3, 8, 1, 4, 512};
  seeds.add(testing::tiny_gguf(model));
  model = smallest();
  model.kv_heads = 2;
  model.tied = false;
  model.rope_scaling = {parallel::RopeScaling::Kind::kLinear, 2, 1, 4, 0};
  seeds.add(testing::tiny_gguf(model));
  testing::GgufWriter all;  // every kind of value that the writer has, and odd tensors
  all.integer("general.alignment", 64);
  all.number("number", 1.5f);
  all.boolean("flag", true);
  all.string("text", "words");
  all.strings("texts", std::vector<std::string>{"a", "", "bc"});
  all.integers("integers", std::vector<int32_t>{1, -2, 3});
  all.tensor("one", 0, {2, 3}, std::vector<std::byte>(24));
  all.tensor("q8", 8, {1, 32}, std::vector<std::byte>(34));
  seeds.add(all.finish());
}

void write_safetensors_seeds(Seeds seeds) {
  seeds.add(testing::safetensors_bytes({}));
  const std::vector<testing::NamedTensor> tensors = {
      {"a.weight", "F32", {2, 3}, std::vector<std::byte>(24)},
      {"b", "BF16", {4}, std::vector<std::byte>(8)},
      {"empty", "F16", {0, 5}, {}},
      {"scalar", "I64", {}, std::vector<std::byte>(8)}};
  seeds.add(testing::safetensors_bytes(tensors));
}

void write_folder_seeds(Seeds seeds) {
  TinyModel model = smallest();
  seeds.add(testing::tiny_config_json(model));
  model.rope_scaling = {parallel::RopeScaling::Kind::kLlama3, 8, 1, 4, 512};
  seeds.add(testing::tiny_config_json(model));
  model.rope_scaling = {parallel::RopeScaling::Kind::kLinear, 2, 1, 4, 0};
  seeds.add(testing::tiny_config_json(model));
  seeds.add(
      R"({"metadata":{"total_size":8},"weight_map":{"a":"model-1.safetensors","b":"m2.safetensors"}})");
}

void write_tokenizer_seeds(Seeds seeds) {
  const auto json = [](const char* pre, const char* more) {
    return absl::StrCat(
        R"({"added_tokens":[{"id":8,"content":"<|im_start|>","special":true},{"id":9,"content":"<|im_end|>","special":true},{"id":10,"content":"<tool>"}],"normalizer":null,"pre_tokenizer":)",
        pre,
        R"(,"model":{"type":"BPE","vocab":{"a":0,"b":1,"c":2,"\u0120":3,"ab":4,"abc":5,"1":6,"\u00e9":7},"merges":["a b",["ab","c"]])",
        more, "}");
  };
  seeds.add(json(R"({"type":"ByteLevel","add_prefix_space":false})", R"(,"ignore_merges":true})"));
  seeds.add(json(
      R"({"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},{"type":"Split","pattern":{"Regex":"(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|\\s+(?!\\S)|\\s+"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})",
      R"(,"unk_token":"a"},"post_processor":{"type":"Sequence","processors":[{"type":"ByteLevel"},{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<|im_start|>","type_id":0}},{"Sequence":{"id":"A"}}]}]})"));
  seeds.add(json(
      R"({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"String":". "},"behavior":"MergedWithPrevious","invert":true},{"type":"Split","pattern":{"Regex":"b"},"behavior":"Removed"},{"type":"Split","pattern":{"Regex":"c"},"behavior":"Contiguous"},{"type":"ByteLevel","add_prefix_space":false}]})",
      "}"));
}

void write_chat_seeds(Seeds seeds) {
  const std::string loop =
      "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
      "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ "
      "'<|im_start|>assistant\\n' }}{% endif %}";
  const std::string chat("\0user\0Hi <|im_end|>\0assistant\0\xc3\xa9\0user\0again", 41);
  seeds.add(loop + chat);
  seeds.add(
      absl::StrCat("{{ bos_token }}{% for message in messages %}{% if loop.first and "
                   "messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe "
                   "kind<|im_end|>\\n' }}{% endif %}",
                   loop.substr(29), chat));
  const std::string llama3 =
      "{%- if not date_string is defined %}{%- set date_string = \"26 Jul 2024\" %}{%- endif %}{#- "
      "note #}{{- \"<|start_header_id|>system<|end_header_id|>\\n\\n\" }}{{- \"Cutting Knowledge "
      "Date: December 2023\\n\" }}{{- \"Today Date: \" + date_string + \"\\n\\n\" }}{{- "
      "\"<|eot_id|>\" }}{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] "
      "+ '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}{%- endfor %}{%- if "
      "add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- "
      "endif %}\n";
  seeds.add(llama3 + chat);
  seeds.add(absl::StrCat("{{ '<|begin_of_text|>' }}", llama3.substr(llama3.find("{%- for")), chat));
}

std::string framed(std::string_view message) {
  std::string out;
  out.push_back(static_cast<char>(message.size() & 0xff));
  out.push_back(static_cast<char>(message.size() >> 8));
  return out.append(message);
}

// What a scheduler may send: admissions, chunks, decode by reference, forks and cuts.
void write_plan_seeds(Seeds seeds) {
  using namespace parallel;           // NOLINT
  using namespace parallel::testing;  // NOLINT
  for (int32_t cp = 1; cp <= 4; ++cp) {
    std::string log(1, static_cast<char>(cp - 1));
    ShardState state = state_of(cp);
    const auto add = [&](std::vector<Op> ops, std::vector<Item> items) {
      StepPlan plan = plan_of(state, std::move(ops), std::move(items));
      plan.epoch = 1;
      if (plan.items.size() > 1) {
        plan.groups = {{Variant::kPassQ, {0}}, {Variant::kGatherQ, {1}}};
      }
      log += framed(encode(plan));
      state = advance(std::move(state), plan);
    };
    Item first = item_of(1, 0, 13);
    first.wanted = {{5, false, 3, 2}, {12, true, -1, 0, true}};
    Op sampled = admit(1, cp - 1);
    sampled.sampling = {0.7f, 5, 0.9f, 0.1f, 42};
    add({sampled}, {first});
    Item next;
    next.slot = 1;
    next.placement = Placement::kDecode;
    next.spans = {{13, 1, 1}};
    next.sampled = {99, 0};
    next.wanted = {{13, true, -1, 0}};
    add({admit(2)}, {item_of(2, 0, 3), next});
    add({op_of(Op::Kind::kFork, 3, 9, 1), op_of(Op::Kind::kTruncate, 2, 1), rebase(1, 0)},
        {item_of(3, 9, 4), item_of(2, 1, 2, Placement::kDecode)});
    add({op_of(Op::Kind::kRelease, 1)}, {});
    seeds.add(log);
  }
}

void write_request_seeds(Seeds seeds) {
  v1::GenerateRequest request;
  request.set_text("Hello \xc3\xa9");
  request.set_max_tokens(16);
  seeds.add(request.SerializeAsString());
  request.set_packed_tokens(std::string("\1\0\0\0\2\1\0\0", 8));
  request.set_session("s");
  request.set_append(true);
  v1::Sampling* sampling = request.mutable_sampling();
  sampling->set_temperature(0.7f);
  sampling->set_top_k(40);
  sampling->set_top_p(0.9f);
  sampling->set_min_p(0.1f);
  sampling->set_seed(7);
  request.add_stop("\n\n");
  request.add_stop_token_ids(5);
  request.set_top_logprobs(4);
  request.add_prompt_logprob_positions(1);
  request.add_prompt_logprob_positions(-1);
  request.add_forced_tokens(3);
  request.set_request_id("r");
  request.set_attention(v1::ATTENTION_PASS_Q);
  request.set_chunk_tokens(64);
  seeds.add(request.SerializeAsString());
  request.mutable_tokens()->add_ids(287);
  request.mutable_tokens()->add_ids(288);
  request.set_all_prompt_logprobs(true);
  seeds.add(request.SerializeAsString());
  v1::GenerateRequest chat;
  for (const char* role : {"system", "user", "assistant", "user"}) {
    v1::Message* message = chat.mutable_chat()->add_messages();
    message->set_role(role);
    message->set_content("<|im_end|> text");
  }
  seeds.add(chat.SerializeAsString());
  v1::DetokenizeRequest ids;
  for (const uint32_t id : {72u, 195u, 169u, 258u}) ids.add_ids(id);
  seeds.add(ids.SerializeAsString());
}

void write_worker_seeds(Seeds seeds) {
  std::string log;
  const auto event = [&](int what, int worker, const std::string& bytes = "") {
    log += framed(absl::StrCat(std::string(1, static_cast<char>(what * 4 + worker)), bytes));
  };
  const auto say = [&](int worker, const v1::WorkerMessage& message) {
    event(4, worker, message.SerializeAsString());
  };
  for (int worker = 0; worker < 2; ++worker) {
    event(0, worker);
    v1::WorkerMessage message;
    v1::Register* hello = message.mutable_register_();
    hello->set_build("b");
    hello->set_secret("s");
    hello->set_model_fingerprint(7);
    hello->set_wanted_rank(worker == 0 ? 0 : -1);
    hello->set_host("h");
    hello->set_pid(10 + worker);
    hello->set_threads(1);
    say(worker, message);
  }
  for (int worker = 0; worker < 2; ++worker) {
    v1::WorkerMessage progress, address;
    progress.mutable_load_progress()->set_done_bytes(1);
    say(worker, progress);
    address.mutable_data_address()->set_epoch(1);
    address.mutable_data_address()->set_address("a");
    say(worker, address);
  }
  for (int worker = 0; worker < 2; ++worker) {
    v1::WorkerMessage message;
    v1::Ready* ready = message.mutable_ready();
    ready->set_epoch(1);
    ready->set_kv_capacity_rows(128);
    for (const auto& [field, value] : server::profile_values({}))
      (*ready->mutable_profile()->mutable_values())[field] = value;
    say(worker, message);
  }
  event(3, 0);
  for (int worker = 0; worker < 2; ++worker) {
    v1::WorkerMessage message;
    parallel::StepResult result;
    result.epoch = 1;
    result.world_rank = worker;
    message.mutable_answer()->set_epoch(1);
    message.mutable_answer()->set_result(parallel::encode(result));
    say(worker, message);
  }
  seeds.add(log);
  event(3, 0);
  v1::WorkerMessage beat, failure;
  beat.mutable_heartbeat()->set_step(1);
  failure.mutable_failure()->set_epoch(1);
  failure.mutable_failure()->set_what("it broke");
  say(0, beat);
  say(1, failure);
  event(2 + 8 * 7, 0);
  event(1, 0);
  event(0, 2);
  say(2, beat);
  seeds.add(log);
}

}  // namespace
}  // namespace annulus::fuzz

int main(int argc, char** argv) {
  using namespace annulus::fuzz;  // NOLINT
  if (argc != 2) return 2;
  const fs::path root = argv[1];
  write_gguf_seeds({root, "gguf"});
  write_safetensors_seeds({root, "safetensors"});
  write_folder_seeds({root, "folder_json"});
  write_tokenizer_seeds({root, "tokenizer_json"});
  write_chat_seeds({root, "chat_template"});
  write_plan_seeds({root, "step_plan"});
  write_request_seeds({root, "request"});
  write_worker_seeds({root, "worker_message"});
}
