// SPDX-License-Identifier: Apache-2.0
// Damaged files never crash: cut off anywhere, or with bytes changed at random, they give an error
// or a parse whose views all lie inside the file. The parsers read from memory that ends at an
// inaccessible page, so that one byte too far is a crash here and not luck.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <random>

#include "kernels/cpu/queue.h"
#include "parallel/model/checkpoint.h"
#include "parallel/model/safetensors.h"
#include "parallel/model/weights.h"
#include "tests/support/tiny_model.h"

namespace annulus::parallel {
namespace {

using Bytes = std::vector<std::byte>;

class Guarded {
 public:
  explicit Guarded(std::span<const std::byte> bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t room = (bytes.size() + page - 1) / page * page;
    mapped_ = room + page;
    base_ = static_cast<std::byte*>(
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    EXPECT_EQ(mprotect(base_ + room, page, PROT_NONE), 0);
    view_ = {base_ + room - bytes.size(), bytes.size()};
    if (!bytes.empty()) std::memcpy(base_ + room - bytes.size(), bytes.data(), bytes.size());
  }
  ~Guarded() { munmap(base_, mapped_); }
  Guarded(const Guarded&) = delete;
  std::span<const std::byte> view() const { return view_; }

 private:
  std::byte* base_ = nullptr;
  size_t mapped_ = 0;
  std::span<const std::byte> view_;
};

testing::TinyModel smallest() {
  testing::TinyModel model;
  model.layers = 1;
  model.dim = 32;
  model.heads = 2;
  model.kv_heads = 1;
  model.ffn = 32;
  model.vocab = 40;
  model.matrices = kernels::WeightFormat::kQ4_1;
  return model;
}

Bytes smallest_safetensors() {
  testing::TinyModel model = smallest();
  model.matrices = kernels::WeightFormat::kBF16;
  const std::string folder = testing::scratch_directory();
  testing::write_folder(model, folder);
  const auto file = MappedFile::open(folder + "/model.safetensors");
  return Bytes(file->bytes().begin(), file->bytes().end());
}

uint64_t sum(std::span<const std::byte> bytes) {
  uint64_t total = 0;
  for (const std::byte b : bytes) total += static_cast<uint64_t>(b);
  return total;
}

// Reads everything that a parse offers; what it touches outside the file crashes.
uint64_t use(const GgufFile& gguf) {
  uint64_t total = 0;
  for (const GgufTensor& tensor : gguf.tensors()) total += sum(tensor.data) + tensor.name.size();
  for (const auto& [key, value] : gguf.metadata()) {
    total += sum(value.payload);
    total += gguf.integer(key).ok() + gguf.number(key).ok() + gguf.boolean(key).ok();
    total += gguf.string(key).value_or("").size();
    if (const auto texts = gguf.strings(key); texts.ok())
      for (const std::string_view text : *texts) total += text.size();
    total += gguf.integers(key).ok() + gguf.numbers(key).ok();
  }
  total += config_from_gguf(gguf).ok();
  return total;
}

// 200 places to cut a file of this size, dense at the front where the structure is.
std::vector<size_t> cuts(size_t size) {
  std::vector<size_t> at;
  for (size_t i = 0; i < 40; ++i) at.push_back(i);
  for (size_t i = 0; i < 160; ++i) at.push_back(40 + (size - 40) * i * i / (160 * 160));
  at.back() = size - 1;
  return at;
}

TEST(Hostile, TruncatedGguf) {
  const Bytes file = testing::tiny_gguf(smallest());
  for (const size_t size : cuts(file.size())) {
    const Guarded cut(std::span<const std::byte>(file).first(size));
    EXPECT_FALSE(GgufFile::parse(cut.view(), "m").ok()) << size;
  }
  const Guarded whole(file);
  EXPECT_TRUE(GgufFile::parse(whole.view(), "m").ok());
}

TEST(Hostile, TruncatedSafetensors) {
  const Bytes file = smallest_safetensors();
  for (const size_t size : cuts(file.size())) {
    const Guarded cut(std::span<const std::byte>(file).first(size));
    EXPECT_FALSE(parse_safetensors(cut.view(), "m").ok()) << size;
  }
  const Guarded whole(file);
  EXPECT_TRUE(parse_safetensors(whole.view(), "m").ok());
}

// One to four bytes changed: most among the structure (the first `structure` bytes), some anywhere.
Bytes flipped(Bytes file, size_t structure, std::mt19937_64& random) {
  const size_t range = random() % 4 == 0 ? file.size() : structure;
  for (uint64_t count = 1 + random() % 4; count > 0; --count)
    file[random() % range] = static_cast<std::byte>(random());
  return file;
}

TEST(Hostile, GgufWithChangedBytes) {
  const Bytes file = testing::tiny_gguf(smallest());
  const auto original = GgufFile::parse(file, "m");
  ASSERT_TRUE(original.ok()) << original.status();
  const auto structure = static_cast<size_t>(original->tensors()[0].data.data() - file.data());
  std::mt19937_64 random(1);
  int accepted = 0;
  uint64_t used = 0;
  for (int i = 0; i < 2000; ++i) {
    const Bytes changed = flipped(file, structure, random);
    const Guarded guarded(changed);
    const auto parsed = GgufFile::parse(guarded.view(), "m");
    if (!parsed.ok()) {
      EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << parsed.status();
      continue;
    }
    ++accepted;
    used += use(*parsed);
    // Only contents changed: the directory is that of the original.
    if (std::equal(file.begin(), file.begin() + static_cast<int64_t>(structure), changed.begin())) {
      EXPECT_EQ(parsed->metadata().size(), original->metadata().size());
      ASSERT_EQ(parsed->tensors().size(), original->tensors().size());
      for (size_t t = 0; t < parsed->tensors().size(); ++t) {
        EXPECT_EQ(parsed->tensors()[t].name, original->tensors()[t].name);
        EXPECT_EQ(parsed->tensors()[t].shape, original->tensors()[t].shape);
      }
    }
  }
  EXPECT_GT(used, 0u);
  EXPECT_GT(accepted, 200);  // both sides of the line are exercised
  EXPECT_LT(accepted, 1800);
}

TEST(Hostile, SafetensorsWithChangedBytes) {
  const Bytes file = smallest_safetensors();
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
  std::mt19937_64 random(2);
  int accepted = 0;
  uint64_t used = 0;
  for (int i = 0; i < 2000; ++i) {
    const Guarded guarded(flipped(file, 8 + static_cast<size_t>(header_bytes), random));
    const auto parsed = parse_safetensors(guarded.view(), "m");
    if (!parsed.ok()) continue;
    ++accepted;
    for (const auto& [name, tensor] : *parsed) used += sum(tensor.data) + name.size();
  }
  EXPECT_GT(used, 0u);
  EXPECT_GT(accepted, 200);
  EXPECT_LT(accepted, 1800);
}

// The whole way in: what opens can also be loaded.
TEST(Hostile, DamagedModelsOpenOrNot) {
  const std::string folder = testing::scratch_directory();
  const Bytes gguf = testing::tiny_gguf(smallest());
  testing::TinyModel bf16 = smallest();
  bf16.matrices = kernels::WeightFormat::kBF16;
  testing::write_folder(bf16, folder);
  const std::string config = testing::tiny_config_json(bf16);
  std::mt19937_64 random(3);
  int opened = 0;
  const auto attempt = [&](const std::string& path) {
    const auto checkpoint = Checkpoint::open(path);
    if (!checkpoint.ok()) return;
    ++opened;
    kernels::CpuQueue queue(1);
    EXPECT_TRUE(load_weights(queue, *checkpoint, 0, 1, kernels::Precision::kDefault).ok());
  };
  for (int i = 0; i < 400; ++i) {
    testing::write_file(folder + "/m.gguf", flipped(gguf, 2500, random));
    attempt(folder + "/m.gguf");
    const auto* text = reinterpret_cast<const std::byte*>(config.data());
    testing::write_file(folder + "/config.json",
                        flipped(Bytes(text, text + config.size()), config.size(), random));
    attempt(folder);
  }
  EXPECT_GT(opened, 20);
}

}  // namespace
}  // namespace annulus::parallel
