// SPDX-License-Identifier: Apache-2.0
#include "parallel/model/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>

#include "tests/support/tiny_model.h"

namespace annulus::parallel {
namespace {

using Bytes = std::vector<std::byte>;

// A file with this header and so many bytes of data.
Bytes file_with(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  Bytes file(sizeof(length) + header.size() + data_bytes);
  std::memcpy(file.data(), &length, sizeof(length));
  std::memcpy(file.data() + sizeof(length), header.data(), header.size());
  return file;
}

std::string error_of(const std::string& header, size_t data_bytes = 16) {
  return std::string(
      parse_safetensors(file_with(header, data_bytes), "m.safetensors").status().message());
}

TEST(Safetensors, ReadsTensors) {
  const Bytes file = file_with(
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1,2],"data_offsets":[8,16]},)"
      R"("b":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]},)"
      R"("s":{"dtype":"I64","shape":[],"data_offsets":[16,24]}} )",
      24);
  const auto tensors = parse_safetensors(file, "m.safetensors");
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 3u);
  EXPECT_EQ(tensors->at("a").shape, (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(tensors->at("a").data.data(), file.data() + file.size() - 16);
  EXPECT_EQ(tensors->at("b").dtype, "BF16");
  EXPECT_EQ(tensors->at("s").data.size(), 8u);
}

TEST(Safetensors, RefusesDamage) {
  const auto expect = [](const std::string& entry, const char* problem) {
    const std::string error = error_of("{\"t\":" + entry + "}");
    EXPECT_NE(error.find(problem), std::string::npos) << error;
    EXPECT_EQ(error.find("m.safetensors: "), 0u) << error;
  };
  const std::string f32 = R"({"dtype":"F32",)";
  expect(f32 + R"("shape":[4]})", "is not described by");
  expect("7", "is not described by");
  expect(R"({"dtype":7,"shape":[4],"data_offsets":[0,16]})", "no readable dtype");
  expect(R"({"dtype":"F31","shape":[4],"data_offsets":[0,16]})", "a dtype that is unknown");
  expect(f32 + R"("shape":4,"data_offsets":[0,16]})", "no readable shape");
  expect(f32 + R"("shape":[-4],"data_offsets":[0,16]})", "no readable shape");
  expect(f32 + R"("shape":[4.0],"data_offsets":[0,16]})", "no readable shape");
  expect(f32 + R"("shape":[4294967296,4294967296],"data_offsets":[0,0]})", "impossible shape");
  expect(f32 + R"("shape":[4],"data_offsets":[0]})", "no readable data_offsets");
  expect(f32 + R"("shape":[4],"data_offsets":[-1,15]})", "no readable data_offsets");
  expect(f32 + R"("shape":[5],"data_offsets":[0,20]})", "past the end of the file");
  expect(f32 + R"("shape":[4],"data_offsets":[16,0]})", "past the end of the file");
  expect(f32 + R"("shape":[3],"data_offsets":[0,16]})", "does not match its bytes");
  expect(f32 + R"("shape":[4],"data_offsets":[0,16],"dtype":"F32"})", "holds 'dtype' twice");
}

TEST(Safetensors, RefusesBadHeaders) {
  const std::string t = R"("t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  const std::string u = R"("u":{"dtype":"F32","shape":[2],"data_offsets":[4,12]})";
  EXPECT_NE(error_of("{" + t + "," + t + "}").find("holds 't' twice"), std::string::npos);
  EXPECT_NE(error_of("{" + t + "," + u + "}").find("tensors 't' and 'u' overlap"),
            std::string::npos);
  EXPECT_NE(error_of("{" + t).find("not a JSON object"), std::string::npos);
  EXPECT_NE(error_of("[]").find("not a JSON object"), std::string::npos);
  const std::string deep = std::string(100000, '[');
  EXPECT_NE(error_of("{\"t\":" + deep).find("nested too deeply"), std::string::npos);
  for (const uint64_t length : {uint64_t{1} << 20, uint64_t{1} << 40, ~uint64_t{0}}) {
    Bytes file = file_with("{}", 0);
    std::memcpy(file.data(), &length, sizeof(length));
    EXPECT_FALSE(parse_safetensors(file, "m.safetensors").ok());
  }
  EXPECT_FALSE(parse_safetensors(Bytes(7), "m.safetensors").ok());
}

TEST(Safetensors, IndexMapsTensorsToPlainFileNames) {
  const auto index = parse_safetensors_index(
      R"({"metadata":{"total_size":1},"weight_map":{"a":"x.safetensors","b":"y.safetensors"}})",
      "index.json");
  ASSERT_TRUE(index.ok()) << index.status();
  EXPECT_EQ(index->at("b"), "y.safetensors");
  for (const char* name : {"../x", "/etc/passwd", "a/b", "", ".", "..", "x\\u0000y"}) {
    const auto bad = parse_safetensors_index(std::string(R"({"weight_map":{"a":")") + name + "\"}}",
                                             "index.json");
    EXPECT_FALSE(bad.ok()) << name;
  }
  EXPECT_FALSE(parse_safetensors_index(R"({"weight_map":{}})", "index.json").ok());
  EXPECT_FALSE(parse_safetensors_index(R"({"weight_map":{"a":1}})", "index.json").ok());
  EXPECT_FALSE(parse_safetensors_index("", "index.json").ok());
}

TEST(Safetensors, FolderErrorsSayWhatIsMissing) {
  const std::string folder = testing::scratch_directory();
  EXPECT_NE(open_safetensors_folder(folder).status().message().find("holds neither"),
            absl::string_view::npos);
  testing::write_file(folder + "/model.safetensors.index.json",
                      std::string_view(R"({"weight_map":{"a":"one.safetensors"}})"));
  const absl::Status missing = open_safetensors_folder(folder).status();
  EXPECT_TRUE(absl::IsNotFound(missing)) << missing;
  EXPECT_NE(missing.message().find("download is incomplete"), absl::string_view::npos);
  testing::write_file(folder + "/one.safetensors", testing::safetensors_bytes({}));
  EXPECT_NE(open_safetensors_folder(folder).status().message().find("tensor 'a' is missing"),
            absl::string_view::npos);
}

}  // namespace
}  // namespace annulus::parallel
