// SPDX-License-Identifier: Apache-2.0
// How much of a file is resident while a rank loads it.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "kernels/cpu/queue.h"
#include "kernels/cuda/matrix.h"
#include "parallel/model/weights.h"
#include "tests/support/tiny_model.h"

namespace annulus::parallel {
namespace {

using nlohmann::json;

// A folder of BF16 zeros, of which the disk holds none: the file is one hole behind its header.
std::string folder_of_zeros(const annulus::testing::TinyModel& model) {
  const std::string folder = annulus::testing::scratch_directory();
  annulus::testing::write_file(folder + "/config.json", annulus::testing::tiny_config_json(model));
  json header;
  int64_t at = 0;
  const auto add = [&](const std::string& name, const std::vector<int64_t>& shape) {
    int64_t bytes = 2;
    for (const int64_t size : shape) bytes *= size;
    header[name + ".weight"] = {
        {"dtype", "BF16"}, {"shape", shape}, {"data_offsets", {at, at + bytes}}};
    at += bytes;
  };
  const int64_t dim = model.dim, ffn = model.ffn, q = int64_t{model.heads} * model.head_dim,
                kv = int64_t{model.kv_heads} * model.head_dim;
  add("model.embed_tokens", {model.vocab, dim});
  add("model.norm", {dim});
  for (int32_t i = 0; i < model.layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    add(layer + "input_layernorm", {dim});
    add(layer + "post_attention_layernorm", {dim});
    add(layer + "self_attn.q_proj", {q, dim});
    add(layer + "self_attn.k_proj", {kv, dim});
    add(layer + "self_attn.v_proj", {kv, dim});
    add(layer + "self_attn.o_proj", {dim, q});
    add(layer + "mlp.gate_proj", {ffn, dim});
    add(layer + "mlp.up_proj", {ffn, dim});
    add(layer + "mlp.down_proj", {dim, ffn});
  }
  const std::string text = header.dump(), path = folder + "/model.safetensors";
  const auto size = static_cast<uint64_t>(text.size());
  annulus::testing::write_file(
      path, std::string(reinterpret_cast<const char*>(&size), sizeof size) + text);
  const auto whole = static_cast<off_t>(sizeof size + text.size() + static_cast<uint64_t>(at));
  EXPECT_EQ(truncate(path.c_str(), whole), 0);
  return folder;
}

// Of this process's resident pages those of files, on a file system in memory, too.
int64_t resident_file_bytes() {
  std::ifstream in("/proc/self/status");
  int64_t kib = 0;
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("RssFile:") || line.starts_with("RssShmem:"))
      kib += std::stoll(line.substr(line.find(':') + 1));
  return kib << 10;
}

// One matrix at a time: the largest, and as much again for pages beside it and for what else the
// process maps meanwhile. The whole is eight times that.
template <class Queue>
void expect_bounded(Queue& queue) {
  annulus::testing::TinyModel model;
  model.layers = 8;
  model.dim = 1024;
  model.heads = 16;
  model.kv_heads = 4;
  model.head_dim = 64;
  model.ffn = 4096;
  model.matrices = model.embedding = kernels::WeightFormat::kBF16;
  const Checkpoint checkpoint = Checkpoint::open(folder_of_zeros(model)).value();
  const int64_t largest = int64_t{2} * model.dim * 2 * model.ffn, bound = 2 * largest;
  ASSERT_GT(checkpoint.file_bytes(), 7 * bound);
  const int64_t before = resident_file_bytes();
  int64_t most = 0, matrices = 0;
  const auto weights =
      load_weights(queue, checkpoint, 0, 1, kernels::Precision::kDefault, [&](int64_t, int64_t) {
        ++matrices;
        most = std::max(most, resident_file_bytes() - before);
      });
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_GT(matrices, 4 * model.layers);
  EXPECT_GT(most, largest / 2) << "nothing was seen";
  EXPECT_LT(most, bound);
  EXPECT_LT(resident_file_bytes() - before, bound);
}

TEST(LoadedFile, IsResidentByTheMatrixForAGpu) {
  kernels::CudaQueue queue(0);
  expect_bounded(queue);
}
TEST(LoadedFile, IsResidentByTheMatrixForACpu) {
  kernels::CpuQueue queue(1);
  expect_bounded(queue);
}

}  // namespace
}  // namespace annulus::parallel
