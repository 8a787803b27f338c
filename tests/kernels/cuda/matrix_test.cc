// SPDX-License-Identifier: Apache-2.0
// What CudaMatrix::load() brings to a GPU, around the edges of the pieces that it goes by. The
// emulated GPU copies when it is waited for: a piece that is filled again too early is seen.
#include "kernels/cuda/matrix.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "kernels/core/dtype.h"
#include "tests/kernels/cuda/device_array.h"

namespace annulus::kernels {
namespace {

class CudaLoad : public CudaTest {
 protected:
  std::vector<std::byte> contents(const CudaMatrix& matrix) {
    std::vector<std::byte> out(matrix.contents().size());
    queue().download(std::span(out), matrix.contents().data());
    queue().finish(std::chrono::steady_clock::now() + std::chrono::seconds(60));
    return out;
  }
};

// Every row differs from every other, and so do the places within it.
std::vector<bf16> numbered(int64_t rows, int64_t cols) {
  std::vector<bf16> out(static_cast<size_t>(rows * cols));
  for (size_t i = 0; i < out.size(); ++i) {
    const uint64_t mixed = (i + 1) * 0x9e3779b97f4a7c15u;
    out[i] = to_bf16(static_cast<float>(mixed >> 56) - 128);
  }
  return out;
}

TEST_F(CudaLoad, PiecesArriveWhole) {
  constexpr int64_t kCols = 4096, kPiece = CudaMatrix::kPieceBytes / (2 * kCols);
  const std::vector<bf16> all = numbered(4 * kPiece + 1, kCols);
  const auto* const bytes = reinterpret_cast<const std::byte*>(all.data());
  for (const int64_t rows :
       {int64_t{1}, kPiece - 1, kPiece, kPiece + 1, 2 * kPiece, 4 * kPiece + 1}) {
    const WeightSource source = {WeightFormat::kBF16, bytes, rows, kCols, 0, 2 * kCols};
    const CudaMatrix matrix = CudaMatrix::load(queue(), {&source, 1}, Precision::kDefault);
    EXPECT_TRUE(std::ranges::equal(contents(matrix),
                                   std::span(bytes, static_cast<size_t>(rows * 2 * kCols))))
        << rows << " rows";
  }
}

// Sources one below the other, one of them with rows that are larger than a piece's share, and
// converted.
TEST_F(CudaLoad, SourcesAreStackedAndConverted) {
  constexpr int64_t kCols = CudaMatrix::kPieceBytes / 4 + 64;  // f32: a row is more than a piece
  const std::vector<bf16> all = numbered(5, kCols);
  const auto* const bytes = reinterpret_cast<const std::byte*>(all.data());
  const WeightSource whole = {WeightFormat::kBF16, bytes, 5, kCols, 0, 2 * kCols};
  const WeightSource sources[] = {whole.slice_rows(3, 2), whole.slice_rows(0, 3)};
  const CudaMatrix matrix = CudaMatrix::load(queue(), sources, Precision::kF32);
  const std::vector<std::byte> got = contents(matrix);
  std::vector<float> row(static_cast<size_t>(kCols));
  for (int64_t r = 0; r < 5; ++r) {
    dequantise_row(whole, (r + 3) % 5, row.data());
    EXPECT_EQ(std::memcmp(got.data() + r * kCols * 4, row.data(), row.size() * 4), 0) << r;
  }
}

TEST_F(CudaLoad, ScalesStandBehindTheRows) {
  constexpr int64_t kCols = 8192, kRows = CudaMatrix::kPieceBytes / kCols + 16;
  std::vector<std::byte> codes(static_cast<size_t>(kRows * kCols));
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = std::byte(i * 7 % 0x7f);
  std::vector<float> scales(static_cast<size_t>(kRows));
  for (size_t i = 0; i < scales.size(); ++i) scales[i] = 0.5f + static_cast<float>(i);
  WeightSource with = {WeightFormat::kF8E4M3, codes.data(), kRows, kCols, 0, kCols};
  with.row_scales = reinterpret_cast<const std::byte*>(scales.data());
  WeightSource without = with.slice_rows(0, 16);
  without.row_scales = nullptr;
  const WeightSource sources[] = {without, with};
  const CudaMatrix matrix = CudaMatrix::load(queue(), sources, Precision::kDefault);
  ASSERT_EQ(matrix.format(), WeightFormat::kF8E4M3);
  const std::vector<std::byte> got = contents(matrix);
  EXPECT_EQ(std::memcmp(got.data(), codes.data(), 16 * kCols), 0);
  EXPECT_EQ(std::memcmp(got.data() + 16 * kCols, codes.data(), codes.size()), 0);
  const auto* const behind = reinterpret_cast<const float*>(got.data() + 16 * kCols + codes.size());
  EXPECT_EQ(std::vector<float>(behind, behind + 16), std::vector<float>(16, 1.0f));
  EXPECT_EQ(std::vector<float>(behind + 16, behind + 16 + kRows), scales);
}

}  // namespace
}  // namespace annulus::kernels
