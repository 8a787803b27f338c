// SPDX-License-Identifier: Apache-2.0
// Every committed input of every fuzz target, once more in this build: findings stay mended. Also
// each input cut short and with a few bytes changed, so that the targets work without libFuzzer.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <random>

#include "tests/fuzz/target.h"

namespace annulus::fuzz {

void chat_template(const uint8_t* data, size_t size);
void folder_json(const uint8_t* data, size_t size);
void gguf(const uint8_t* data, size_t size);
void request(const uint8_t* data, size_t size);
void safetensors(const uint8_t* data, size_t size);
void step_plan(const uint8_t* data, size_t size);
void tokenizer_json(const uint8_t* data, size_t size);
void worker_message(const uint8_t* data, size_t size);

namespace {

namespace fs = std::filesystem;

struct Target {
  const char* name;
  void (*run)(const uint8_t* data, size_t size);
};
constexpr Target kTargets[] = {
    {"chat_template", chat_template},
    {"folder_json", folder_json},
    {"gguf", gguf},
    {"request", request},
    {"safetensors", safetensors},
    {"step_plan", step_plan},
    {"tokenizer_json", tokenizer_json},
    {"worker_message", worker_message},
};

void PrintTo(const Target& target, std::ostream* out) {
  *out << target.name;
}

class Replay : public ::testing::TestWithParam<Target> {};

TEST_P(Replay, CommittedCorpus) {
  std::mt19937 random(1);
  int inputs = 0;
  for (const auto& entry : fs::directory_iterator(fs::path(ANNULUS_CORPUS) / GetParam().name)) {
    SCOPED_TRACE(entry.path());
    std::ifstream in(entry.path(), std::ios::binary);
    const std::vector<uint8_t> bytes{std::istreambuf_iterator<char>(in), {}};
    GetParam().run(bytes.data(), bytes.size());
    ++inputs;
    for (int round = 0; round < 20 && !bytes.empty(); ++round) {
      std::vector<uint8_t> changed = bytes;
      if (round % 2 == 0) changed.resize(random() % changed.size());
      for (size_t n = random() % 4; n > 0 && !changed.empty(); --n)
        changed[random() % changed.size()] = static_cast<uint8_t>(random());
      GetParam().run(changed.data(), changed.size());
    }
  }
  EXPECT_GT(inputs, 1);
}

INSTANTIATE_TEST_SUITE_P(Targets, Replay, ::testing::ValuesIn(kTargets),
                         [](const auto& param) { return std::string(param.param.name); });

}  // namespace
}  // namespace annulus::fuzz
