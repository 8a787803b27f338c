// SPDX-License-Identifier: Apache-2.0
#include "kernels/weight.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/dtype.h"
#include "kernels/core/memory.h"
#include "kernels/cpu/packed.h"
#include "kernels/cpu/queue.h"

namespace annulus::kernels {
namespace {

template <class T>
T read(const std::byte* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

uint32_t u8(const std::byte* p) {
  return std::to_integer<uint32_t>(*p);
}

float half_at(const std::byte* p) {
  return half_to_float(read<uint16_t>(p));
}

uint32_t nibble(const std::byte* q, int64_t i) {
  return i < 16 ? u8(q + i) & 15u : u8(q + i - 16) >> 4;
}

// Weight i of a Q6_K super-block: ql[128], qh[64], int8 scales[16], half d. Each half of 128
// weights is 4 groups of 32: low 4 bits from ql (groups 0, 1 low nibbles, 2, 3 high), 2 more bits
// from qh.
float q6_k(const std::byte* block, int64_t i) {
  int64_t half = i / 128, group = i / 32 % 4, l = i % 32;
  uint32_t low = u8(block + half * 64 + group % 2 * 32 + l) >> (group / 2 * 4) & 15u;
  uint32_t high = u8(block + 128 + half * 32 + l) >> (2 * group) & 3u;
  float scale = read<int8_t>(block + 192 + half * 8 + group * 2 + l / 16);
  return half_at(block + 208) * scale * static_cast<float>(static_cast<int>(low | high << 4) - 32);
}

// Weights [first, first + count) of one block.
void dequantise_block(WeightFormat format, const std::byte* block, int64_t first, int64_t count,
                      float* out) {
  switch (format) {
    case WeightFormat::kQ8_0: {
      float d = half_at(block);
      for (int64_t i = 0; i < count; ++i)
        out[i] = d * static_cast<float>(read<int8_t>(block + 2 + first + i));
      return;
    }
    case WeightFormat::kQ4_0: {
      float d = half_at(block);
      for (int64_t i = 0; i < count; ++i)
        out[i] = d * static_cast<float>(static_cast<int>(nibble(block + 2, first + i)) - 8);
      return;
    }
    case WeightFormat::kQ4_1: {
      float d = half_at(block), m = half_at(block + 2);
      for (int64_t i = 0; i < count; ++i)
        out[i] = d * static_cast<float>(nibble(block + 4, first + i)) + m;
      return;
    }
    case WeightFormat::kQ6_K:
      for (int64_t i = 0; i < count; ++i) out[i] = q6_k(block, first + i);
      return;
    case WeightFormat::kF32:
    case WeightFormat::kF16:
    case WeightFormat::kBF16:
    case WeightFormat::kF8E4M3: break;
  }
  ANNULUS_CHECK(false, "not a block format: ", static_cast<int>(format));
}

bool keeps_blocks(WeightFormat format) {
  return format == WeightFormat::kQ8_0 || format == WeightFormat::kQ4_0 ||
         format == WeightFormat::kQ4_1;
}

WeightFormat held_format(std::span<const WeightSource> sources, Precision precision) {
  if (precision == Precision::kF32) return WeightFormat::kF32;
  WeightFormat first = sources.front().format;
  bool blocks = keeps_blocks(first) && sources.front().cols % kBlockK == 0;
  for (const WeightSource& s : sources)
    blocks = blocks && s.format == first && s.first_col % kBlockK == 0;
  return blocks ? first : WeightFormat::kBF16;
}

// One file block of output o (0..31) into its place of the panel's block.
void put_block(WeightFormat format, const std::byte* from, int64_t o, std::byte* to) {
  std::memcpy(to + 2 * o, from, 2);
  from += 2;
  to += kScaleBytes;
  if (format == WeightFormat::kQ8_0) {
    for (int64_t k = 0; k < kBlockK; ++k) to[k / 2 * 64 + o * 2 + k % 2] = from[k];
    return;
  }
  if (format == WeightFormat::kQ4_1) {
    std::memcpy(to + 2 * o, from, 2);
    from += 2;
    to += kScaleBytes;
  }
  for (int64_t g = 0; g < 4; ++g) {
    uint32_t dword = 0;
    for (int64_t i = 0; i < 8; ++i)
      dword |= nibble(from, 8 * g + i) << (4 * (i / 2) + 16 * (i % 2));
    std::memcpy(to + (g * 32 + o) * 4, &dword, 4);
  }
}

// Row `row` of stacked sources.
struct StackedRow {
  const WeightSource* source;
  int64_t row;
};
StackedRow stacked_row(std::span<const WeightSource> sources, int64_t row) {
  for (const WeightSource& s : sources) {
    if (row < s.rows) return {&s, row};
    row -= s.rows;
  }
  return {nullptr, 0};
}

void put_block_row(WeightFormat format, const StackedRow& from, int64_t o, std::byte* panel) {
  const WeightSource& s = *from.source;
  const WeightBlock block = block_of(format);
  const std::byte* row =
      s.data + from.row * s.row_stride_bytes + s.first_col / block.weights * block.bytes;
  for (int64_t b = 0; b < s.cols / kBlockK; ++b)
    put_block(format, row + b * block.bytes, o, panel + panel_bytes(format, b * kBlockK));
}

// Columns [first, first + count) of a panel's 32 rows, [32][kPiece], between its columns.
constexpr int64_t kPiece = 256;
void put_columns(WeightFormat format, const float* rows, int64_t first, int64_t count,
                 std::byte* panel) {
  if (format == WeightFormat::kF32) {
    auto* to = reinterpret_cast<float*>(panel) + first * 32;
    for (int64_t k = 0; k < count; ++k)
      for (int64_t o = 0; o < 32; ++o) to[k * 32 + o] = rows[o * kPiece + k];
    return;
  }
  auto* to = reinterpret_cast<bf16*>(panel) + first * 32;
  for (int64_t k = 0; k < count; ++k)
    for (int64_t o = 0; o < 32; ++o) to[k / 2 * 64 + o * 2 + k % 2] = to_bf16(rows[o * kPiece + k]);
}

void pack_panel(WeightFormat format, std::span<const WeightSource> sources, int64_t first_row,
                std::byte* panel) {
  const int64_t cols = sources.front().cols;
  std::memset(panel, 0, static_cast<size_t>(panel_bytes(format, cols)));
  StackedRow rows[PackedMatrix::kPanel];
  for (int64_t o = 0; o < PackedMatrix::kPanel; ++o) {
    rows[o] = stacked_row(sources, first_row + o);
    if (keeps_blocks(format) && rows[o].source != nullptr) put_block_row(format, rows[o], o, panel);
  }
  if (keeps_blocks(format)) return;
  float values[PackedMatrix::kPanel * kPiece] = {};
  for (int64_t first = 0; first < cols; first += kPiece) {
    const int64_t count = std::min(kPiece, cols - first);
    for (int64_t o = 0; o < PackedMatrix::kPanel; ++o)
      if (rows[o].source != nullptr)
        dequantise_row(rows[o].source->slice_cols(first, count), rows[o].row, values + o * kPiece);
    put_columns(format, values, first, count, panel);
  }
}

}  // namespace

void dequantise_row(const WeightSource& source, int64_t r, float* out) {
  ANNULUS_CHECK(r >= 0 && r < source.rows, r, " of ", source.rows);
  WeightBlock block = block_of(source.format);
  const std::byte* row = source.data + r * source.row_stride_bytes;
  if (block.weights == 1) {
    row += source.first_col * block.bytes;
    if (source.format == WeightFormat::kF32) {
      std::memcpy(out, row, static_cast<size_t>(source.cols) * sizeof(float));
    } else if (source.format == WeightFormat::kF16) {
      for (int64_t i = 0; i < source.cols; ++i) out[i] = half_at(row + 2 * i);
    } else if (source.format == WeightFormat::kF8E4M3) {
      const float scale =
          source.row_scales == nullptr
              ? 1
              : read<float>(source.row_scales + r * static_cast<int64_t>(sizeof(float)));
      for (int64_t i = 0; i < source.cols; ++i)
        out[i] = scale * f8_e4m3_to_float(read<uint8_t>(row + i));
    } else {
      for (int64_t i = 0; i < source.cols; ++i) out[i] = to_float(read<bf16>(row + 2 * i));
    }
    return;
  }
  int64_t end = source.first_col + source.cols;
  for (int64_t col = source.first_col; col < end;) {
    int64_t in_block = col % block.weights;
    int64_t count = std::min(block.weights - in_block, end - col);
    dequantise_block(source.format, row + col / block.weights * block.bytes, in_block, count, out);
    out += count;
    col += count;
  }
}

WeightFormat format_on_gpu(std::span<const WeightSource> sources, Precision precision) {
  if (precision == Precision::kF32) return WeightFormat::kF32;
  int64_t n = 0;
  for (const WeightSource& source : sources) {
    if (source.format != WeightFormat::kF8E4M3 || source.input_bound != sources[0].input_bound)
      return WeightFormat::kBF16;
    n += source.rows;
  }
  constexpr int64_t kUnit = 16;
  return n % kUnit == 0 && sources[0].cols % kUnit == 0 ? WeightFormat::kF8E4M3
                                                        : WeightFormat::kBF16;
}

PackedMatrix PackedMatrix::room(std::span<const WeightSource> sources, Precision precision) {
  ANNULUS_CHECK(!sources.empty());
  PackedMatrix packed;
  packed.format_ = held_format(sources, precision);
  packed.k_ = sources.front().cols;
  for (const WeightSource& s : sources) {
    ANNULUS_CHECK(s.cols == packed.k_, s.cols, " and ", packed.k_);
    packed.n_ += s.rows;
  }
  packed.bytes_ = bytes_of(sources, precision);
  packed.data_.reset(allocate_aligned(packed.bytes_ + kReadPastEnd).release());
  std::memset(packed.data_.get() + packed.bytes_, 0, static_cast<size_t>(kReadPastEnd));
  return packed;
}

int64_t bytes_on_gpu(std::span<const WeightSource> sources, Precision precision) {
  const WeightFormat format = format_on_gpu(sources, precision);
  int64_t n = 0;
  for (const WeightSource& source : sources) n += source.rows;
  const int64_t scale = format == WeightFormat::kF8E4M3 ? 4 : 0;  // of a row
  return n * (sources[0].cols * block_of(format).bytes + scale);
}

PackedMatrix PackedMatrix::pack(std::span<const WeightSource> sources, Precision precision,
                                CpuQueue* queue) {
  PackedMatrix packed = room(sources, precision);
  const int64_t stride = panel_bytes(packed.format_, packed.k_);
  const int64_t panels = (packed.n_ + kPanel - 1) / kPanel;
  const auto put = [&](int64_t panel) {
    pack_panel(packed.format_, sources, panel * kPanel, packed.data_.get() + panel * stride);
  };
  if (queue != nullptr) {
    queue->parallel_for(panels, [&](int64_t panel, int) { put(panel); });
  } else {
    for (int64_t panel = 0; panel < panels; ++panel) put(panel);
  }
  return packed;
}

int64_t PackedMatrix::bytes_of(std::span<const WeightSource> sources, Precision precision) {
  int64_t n = 0;
  for (const WeightSource& s : sources) n += s.rows;
  return (n + kPanel - 1) / kPanel *
         panel_bytes(held_format(sources, precision), sources.front().cols);
}

void PackedMatrix::Free::operator()(std::byte* p) const {
  AlignedFree{}(p);
}

}  // namespace annulus::kernels
