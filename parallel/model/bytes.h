// SPDX-License-Identifier: Apache-2.0
// Little-endian bytes for plans, results, shard states and outlines of models: a writer that
// appends, and a reader that no input can crash. Every count is checked against the bytes left
// before anything is allocated, so that memory stays within a small multiple of the input. The
// reader's first error sticks: later reads give zeros and empty counts, and the caller asks once,
// at the end. Errors name the field. Not for files (they have readers of their own). No threads, no
// ownership of the bytes read.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kernels/core/check.h"

namespace annulus::parallel {

static_assert(std::endian::native == std::endian::little);

template <class T>
concept Scalar = std::is_arithmetic_v<T> || std::is_enum_v<T>;

class ByteWriter {
 public:
  template <Scalar T>
  void put(T value) {
    out_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void put_count(size_t n) {
    ANNULUS_CHECK(n <= std::numeric_limits<uint32_t>::max(), "count ", n);
    put(static_cast<uint32_t>(n));
  }
  void put_array(const std::vector<int32_t>& values) {
    put_count(values.size());
    out_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(int32_t));
  }
  std::string take() { return std::move(out_); }

 private:
  std::string out_;
};

class ByteReader {
 public:
  // `what` begins every error: "step plan: ...".
  ByteReader(std::string_view bytes, std::string_view what) : left_(bytes), what_(what) {}

  template <Scalar T>
  T get(std::string_view field) {
    T value{};
    if (left_.size() < sizeof value) {
      fail(field, "ends early");
    } else {
      std::memcpy(&value, left_.data(), sizeof value);
      left_.remove_prefix(sizeof value);
    }
    return value;
  }

  bool get_flag(std::string_view field) {
    const auto value = get<uint8_t>(field);
    if (value > 1) fail(field, "is neither 0 nor 1");
    return value == 1;
  }

  template <class Enum>
  Enum get_enum(std::string_view field, Enum last) {
    const auto value = get<std::underlying_type_t<Enum>>(field);
    if (value > static_cast<std::underlying_type_t<Enum>>(last)) {
      fail(field, "has an unknown value");
      return Enum{};
    }
    return static_cast<Enum>(value);
  }

  // A count of elements that take at least element_bytes each; 0 after an error.
  size_t get_count(std::string_view field, size_t element_bytes) {
    const size_t n = get<uint32_t>(field);
    if (n > left_.size() / element_bytes) {
      fail(field, "counts more than the bytes left hold");
      return 0;
    }
    return n;
  }

  std::vector<int32_t> get_array(std::string_view field) {
    std::vector<int32_t> values(get_count(field, sizeof(int32_t)));
    const size_t bytes = values.size() * sizeof(int32_t);
    if (bytes > 0) std::memcpy(values.data(), left_.data(), bytes);
    left_.remove_prefix(bytes);
    return values;
  }

  void fail(std::string_view field, std::string_view why) {
    if (status_.ok()) {
      status_ = absl::InvalidArgumentError(kernels::concat(what_, ": ", field, " ", why));
      left_ = {};
    }
  }

  bool ok() const { return status_.ok(); }

  // The first error, or that bytes were left over.
  absl::Status finish() {
    if (!left_.empty()) fail("end", kernels::concat("is followed by ", left_.size(), " bytes"));
    return status_;
  }

 private:
  std::string_view left_, what_;
  absl::Status status_;
};

}  // namespace annulus::parallel
