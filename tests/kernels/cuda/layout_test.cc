// SPDX-License-Identifier: Apache-2.0
// Where tensor cores expect numbers: the functions that kernels address shared memory and registers
// with, on the host.
#include <gtest/gtest.h>

#include <set>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/tensor_core.cuh"

namespace annulus::kernels::device {
namespace {

// ldmatrix reads a piece of 16 bytes of each of eight rows on end in one go, if they lie in
// different quarters of the 32 banks of 4 bytes; a warp's copies write eight pieces of a row.
TEST(CudaLayout, EightRowsTouchEveryBankOnce) {
  for (const int chunks : {8, 16}) {
    for (int row = 0; row < 64; row += 8) {
      for (int chunk = 0; chunk < chunks; ++chunk) {
        std::set<int> down, across;
        for (int i = 0; i < 8; ++i) {
          down.insert(swizzled(row + i, chunk, chunks) % 8);
          across.insert(swizzled(row, chunk / 8 * 8 + i, chunks) % 8);
        }
        EXPECT_EQ(down.size(), 8u);
        EXPECT_EQ(across.size(), 8u);
      }
    }
  }
}

TEST(CudaLayout, EveryPieceHasItsPlace) {
  for (const int chunks : {8, 16}) {
    std::set<int> places;
    for (int row = 0; row < 64; ++row) {
      for (int chunk = 0; chunk < chunks; ++chunk) places.insert(swizzled(row, chunk, chunks));
    }
    EXPECT_EQ(places.size(), static_cast<size_t>(64 * chunks));
    EXPECT_EQ(*places.begin(), 0);
    EXPECT_EQ(*places.rbegin(), 64 * chunks - 1);
  }
}

// Every number of a product is in one lane; the lanes that differ in their two lowest bits share
// rows, which sums over rows rely on.
TEST(CudaLayout, AProductIsWhole) {
  std::set<std::pair<int, int>> cells;
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int element = 0; element < 4; ++element) {
      cells.emplace(product_row(lane, element), product_column(lane, element));
      EXPECT_EQ(product_row(lane, element), product_row(lane ^ 3, element));
      EXPECT_EQ(product_row(lane, element / 2 * 2), product_row(lane, element));
    }
  }
  EXPECT_EQ(cells.size(), size_t{16 * 8});
  EXPECT_EQ(cells.rbegin()->first, 15);
}

// As TMA and wgmma have it: eight rows of 128 bytes, every piece in its row, its own inverse, and
// the same piece of all eight in different sets of four banks.
TEST(CudaLayout, TheSwizzleOf128BytesMovesPiecesWithinTheirRow) {
  for (uint32_t piece = 0; piece < 8; ++piece) {
    std::set<uint32_t> banks;
    for (uint32_t row = 0; row < 64; ++row) {
      const uint32_t at = 128 * row + 16 * piece, to = swizzled_128(at + 6);
      EXPECT_EQ(to / 128, row);
      EXPECT_EQ(to % 16, 6u);
      EXPECT_EQ(to / 16 % 8, piece ^ row % 8);
      EXPECT_EQ(swizzled_128(to), at + 6);
      if (row < 8) banks.insert(to / 16 % 8);
    }
    EXPECT_EQ(banks.size(), 8u);
  }
}

// Bits 0-13 start, 16-29 leading and 32-45 stride, in units of 16 bytes, 62-63 the swizzle.
TEST(CudaLayout, ADescriptorHoldsItsFields) {
  constexpr uint64_t kMatrix = matrix_descriptor(0x2c400, 16384, 1024);
  EXPECT_EQ(kMatrix & 0x3fff, uint64_t{0x2c40});
  EXPECT_EQ(kMatrix >> 16 & 0x3fff, uint64_t{1024});
  EXPECT_EQ(kMatrix >> 32 & 0x3fff, uint64_t{64});
  EXPECT_EQ(kMatrix >> 62, uint64_t{1});
  EXPECT_EQ(kMatrix & 0x3fffc000c000c000, uint64_t{0});
  EXPECT_EQ(advanced(kMatrix, 96), matrix_descriptor(0x2c400 + 96, 16384, 1024));
}

}  // namespace
}  // namespace annulus::kernels::device
