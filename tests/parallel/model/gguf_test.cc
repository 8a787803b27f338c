// SPDX-License-Identifier: Apache-2.0
#include "parallel/model/gguf.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "tests/support/gguf_writer.h"

namespace annulus::parallel {
namespace {

using testing::GgufWriter;
using Bytes = std::vector<std::byte>;

template <class T>
void put(Bytes& file, size_t at, T value) {
  ASSERT_LE(at + sizeof(T), file.size());
  std::memcpy(file.data() + at, &value, sizeof(T));
}

// Where a directory entry (or a key) continues after its name.
size_t after_name(const Bytes& file, const std::string& name) {
  const auto* begin = reinterpret_cast<const std::byte*>(name.data());
  const auto it = std::search(file.begin(), file.end(), begin, begin + name.size());
  EXPECT_NE(it, file.end()) << name;
  return static_cast<size_t>(it - file.begin()) + name.size();
}

std::string error_of(const Bytes& file) {
  return std::string(GgufFile::parse(file, "m.gguf").status().message());
}

Bytes sample() {
  GgufWriter out;
  out.integer("an.integer", 7);
  out.number("a.number", 0.5f);
  out.boolean("a.boolean", true);
  out.string("a.string", "text");
  out.strings("some.strings", std::vector<std::string>{"a", "", "ccc"});
  out.integers("some.integers", std::vector<int32_t>{-1, 0, 5});
  out.tensor("first", 0, {2, 8}, Bytes(64));
  out.tensor("second", 8, {3, 32}, Bytes(3 * 34, std::byte{9}));
  return out.finish();
}

TEST(Gguf, ReadsEveryKindOfValue) {
  const Bytes file = sample();
  const auto gguf = GgufFile::parse(file, "m.gguf");
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  EXPECT_EQ(gguf->version(), 3u);
  EXPECT_EQ(gguf->metadata().size(), 6u);
  EXPECT_EQ(*gguf->integer("an.integer"), 7);
  EXPECT_EQ(*gguf->number("an.integer"), 7.0);
  EXPECT_EQ(*gguf->number("a.number"), 0.5);
  EXPECT_TRUE(*gguf->boolean("a.boolean"));
  EXPECT_EQ(*gguf->string("a.string"), "text");
  EXPECT_EQ(*gguf->strings("some.strings"), (std::vector<std::string_view>{"a", "", "ccc"}));
  EXPECT_EQ(*gguf->integers("some.integers"), (std::vector<int64_t>{-1, 0, 5}));
  EXPECT_EQ(*gguf->numbers("some.integers"), (std::vector<double>{-1, 0, 5}));
}

TEST(Gguf, ReadsTheTensorDirectory) {
  const Bytes file = sample();
  const auto gguf = GgufFile::parse(file, "m.gguf");
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  ASSERT_EQ(gguf->tensors().size(), 2u);
  const GgufTensor* second = gguf->find_tensor("second");
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(second->shape, (std::vector<int64_t>{3, 32}));
  EXPECT_EQ(gguf_type_name(second->type), "Q8_0");
  ASSERT_EQ(second->data.size(), 3u * 34u);
  EXPECT_EQ(second->data.front(), std::byte{9});
  EXPECT_EQ(gguf->find_tensor("third"), nullptr);
}

TEST(Gguf, LookupErrorsNameFileAndKey) {
  const Bytes file = sample();
  const auto gguf = GgufFile::parse(file, "m.gguf");
  ASSERT_TRUE(gguf.ok());
  EXPECT_EQ(gguf->integer("no.such").status(),
            absl::NotFoundError("m.gguf: metadata key 'no.such' is missing"));
  EXPECT_EQ(gguf->integer("a.string").status().message(),
            "m.gguf: metadata key 'a.string' is not an integer of 63 bits");
  EXPECT_EQ(gguf->string("some.strings").status().message(),
            "m.gguf: metadata key 'some.strings' is not a single value");
  EXPECT_FALSE(gguf->integer("a.number").ok());
  EXPECT_FALSE(gguf->boolean("an.integer").ok());
  EXPECT_FALSE(gguf->number("a.boolean").ok());
  EXPECT_FALSE(gguf->strings("some.integers").ok());
  EXPECT_FALSE(gguf->strings("a.string").ok());
  EXPECT_FALSE(gguf->integers("some.strings").ok());
  EXPECT_FALSE(gguf->numbers("some.strings").ok());
}

TEST(Gguf, AcceptsVersion2AndRefusesOthers) {
  Bytes file = sample();
  put(file, 4, uint32_t{2});
  EXPECT_TRUE(GgufFile::parse(file, "m.gguf").ok());
  put(file, 4, uint32_t{1});
  EXPECT_NE(error_of(file).find("GGUF version 1 is not supported"), std::string::npos);
  put(file, 4, uint32_t{3} << 24);
  EXPECT_NE(error_of(file).find("big-endian"), std::string::npos);
  put(file, 0, uint32_t{0x04034b50});
  EXPECT_NE(error_of(file).find("not a GGUF file"), std::string::npos);
  EXPECT_NE(error_of({}).find("not a GGUF file"), std::string::npos);
}

TEST(Gguf, RefusesAbsurdCountsWithoutAllocating) {
  for (const uint64_t count : {uint64_t{1} << 20, uint64_t{1} << 40, ~uint64_t{0}}) {
    Bytes file = sample();
    put(file, 8, count);
    EXPECT_NE(error_of(file).find("tensors, more than fit"), std::string::npos);
    file = sample();
    put(file, 16, count);
    EXPECT_NE(error_of(file).find("metadata entries, more than fit"), std::string::npos);
    for (const char* key : {"some.strings", "some.integers"}) {
      file = sample();
      put(file, after_name(file, key) + 8, count);
      EXPECT_NE(error_of(file).find(key), std::string::npos) << error_of(file);
    }
  }
}

TEST(Gguf, RefusesImpossibleTensors) {
  Bytes file = sample();
  const size_t first = after_name(file, "first"), second = after_name(file, "second");
  const auto expect = [&](size_t at, auto value, const char* problem) {
    Bytes broken = sample();
    put(broken, at, value);
    const std::string error = error_of(broken);
    EXPECT_NE(error.find(problem), std::string::npos) << error;
  };
  expect(first, uint32_t{0}, "tensor 'first' does not have 1 to 4 dimensions");
  expect(first, uint32_t{9}, "tensor 'first' does not have 1 to 4 dimensions");
  expect(first + 4, uint64_t{0}, "tensor 'first' has an impossible shape");
  expect(first + 4, ~uint64_t{0}, "tensor 'first' has an impossible shape");
  expect(first + 4, uint64_t{1} << 49, "tensor 'first' has an impossible shape");
  expect(second + 4, uint64_t{33}, "tensor 'second' has rows that are not whole blocks");
  expect(second + 20, uint32_t{4}, "tensor 'second' has a type that is unknown here");
  expect(first + 12, uint64_t{3}, "tensors 'first' and 'second' overlap");
  expect(second + 24, uint64_t{0}, "overlap");
  expect(second + 24, uint64_t{72}, "tensor 'second' is not aligned to 32 bytes");
  expect(second + 24, uint64_t{96}, "tensor 'second' (102 bytes at 96) reaches past the end");
  expect(second + 24, ~uint64_t{31}, "reaches past the end");
}

TEST(Gguf, RefusesDuplicates) {
  GgufWriter keys;
  keys.integer("twice", 1);
  keys.integer("twice", 2);
  EXPECT_NE(error_of(keys.finish()).find("metadata key 'twice' occurs twice"), std::string::npos);
  GgufWriter tensors;
  tensors.tensor("twice", 0, {8}, Bytes(32));
  tensors.tensor("twice", 0, {8}, Bytes(32));
  EXPECT_NE(error_of(tensors.finish()).find("tensor 'twice' occurs twice"), std::string::npos);
}

TEST(Gguf, HonoursAlignment) {
  for (const uint32_t alignment : {8u, 64u}) {
    GgufWriter out;
    out.integer("general.alignment", alignment);
    out.tensor("a tensor", 0, {8}, Bytes(32, std::byte{5}));
    Bytes file = out.finish();  // data at the next multiple of 32
    const size_t directory_end = after_name(file, "a tensor") + 4 + 8 + 4 + 8;
    const size_t begin = (directory_end + alignment - 1) / alignment * alignment;
    file.resize(begin);
    file.resize(begin + 32, std::byte{6});
    const auto gguf = GgufFile::parse(file, "m.gguf");
    ASSERT_TRUE(gguf.ok()) << gguf.status();
    EXPECT_EQ(gguf->tensors()[0].data.data(), file.data() + begin);
  }
  for (const uint32_t alignment : {0u, 4u, 24u, 1u << 31}) {
    GgufWriter out;
    out.integer("general.alignment", alignment);
    EXPECT_NE(error_of(out.finish()).find("general.alignment"), std::string::npos);
  }
}

TEST(Gguf, RefusesDeepNestingAndBadValues) {
  GgufWriter out;
  out.string("k", std::string(200, '\0'));
  Bytes file = out.finish();
  const size_t type = after_name(file, "k");
  Bytes nested = file;
  put(nested, type, uint32_t{9});
  for (size_t depth = 0; depth < 10; ++depth) {  // an array of one array of one array ...
    put(nested, type + 4 + depth * 12, uint32_t{9});
    put(nested, type + 8 + depth * 12, uint64_t{1});
  }
  EXPECT_NE(error_of(nested).find("nests arrays too deeply"), std::string::npos);
  Bytes unknown = file;
  put(unknown, type, uint32_t{13});
  EXPECT_NE(error_of(unknown).find("has an unknown type"), std::string::npos);
  Bytes boolean = file;
  put(boolean, type, uint32_t{7});
  put(boolean, type + 4, uint8_t{2});
  EXPECT_NE(error_of(boolean).find("boolean that is not 0 or 1"), std::string::npos);
}

TEST(Gguf, ErrorsEscapeAndShortenNames) {
  EXPECT_EQ(quote_name("a\nb"), "'a\\nb'");
  EXPECT_EQ(quote_name(std::string(500, 'x')).size(), 80u + 5u);
}

}  // namespace
}  // namespace annulus::parallel
