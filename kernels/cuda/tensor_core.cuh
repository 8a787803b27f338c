// SPDX-License-Identifier: Apache-2.0
// Warp-wide instructions that C++ has no name for (PTX ISA 8.8, sections 9.7.14.5 mma, 9.7.14.5.15
// ldmatrix, 9.7.9.25 cp.async), each called by all lanes of a warp, and where their operands lie.
// Layouts are constexpr functions, so that tests on the host prove them; compiled as C++ for the
// emulated GPU the instructions themselves are emulated (tests/kernels/cuda/emulation).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/cuda/device.cuh"

namespace annulus::kernels::device {

// Tiles of rows in shared memory, for ldmatrix: a row is `chunks` pieces of 16 bytes; piece c of
// row r lies where c ^ (r mod 8) would, so that the same piece of eight rows on end falls into
// eight different sets of four banks. Index in pieces; chunks is a multiple of 8.
constexpr int swizzled(int row, int chunk, int chunks) {
  return row * chunks + (chunk ^ (row & 7));
}

// Where a lane's numbers of a 16 x 8 product lie: rows lane / 4 (elements 0, 1) and that + 8 (2,
// 3), columns 2 * (lane % 4) + {0, 1}.
constexpr int product_row(int lane, int element) {
  return lane / 4 + element / 2 * 8;
}
constexpr int product_column(int lane, int element) {
  return lane % 4 * 2 + element % 2;
}

#ifdef __CUDACC__

// c[16, 8] += a[16, 16] b[16, 8], bf16 with fp32 sums. a: {rows 0-7, k 0-7}, {rows 8-15, k 0-7},
// {rows 0-7, k 8-15}, {rows 8-15, k 8-15}; b: {k 0-7, k 8-15} of b^T; all as load_matrices gives.
__device__ inline void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                   uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices of 8 x 8 16-bit elements: lane 8 i + r names row r of matrix i in shared memory (16
// bytes, aligned); out[i] of lane l is row l / 4, elements 2 (l % 4) and the next, of matrix i.
__device__ inline void load_matrices(uint32_t (&out)[4], const void* row) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(at)
               : "memory");
}
// The same of the transposed matrices: rows 2 (l % 4) and the next, element l / 4.
__device__ inline void load_matrices_transposed(uint32_t (&out)[4], const void* row) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(at)
               : "memory");
}

// 16 bytes from global to shared memory, there after wait_copies and a barrier; zeros where not
// `valid` (nothing is read then). A thread's copies up to commit_copies() are a batch.
__device__ inline void copy_async(void* shared, const void* global, bool valid) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ inline void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until at most kLater batches of this thread, the last ones, are under way.
template <int kLater>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLater) : "memory");
}

// Two floats as bf16, to nearest even, low first.
__device__ inline uint32_t packed(float low, float high) {
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}

// 2^x, to 2 ulp; 0 where that is below the normal numbers.
__device__ inline float exp2_fast(float x) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}

// Memory that the launch sized, shared by the block, 1,024-byte aligned.
__device__ inline char* launch_memory() {
  extern __shared__ __align__(1024) char memory[];
  return memory;
}

#else

using cuda_emulation::commit_copies;
using cuda_emulation::copy_async;
using cuda_emulation::launch_memory;
using cuda_emulation::load_matrices;
using cuda_emulation::load_matrices_transposed;
using cuda_emulation::mma_16x8x16;
template <int kLater>
inline void wait_copies() {
  cuda_emulation::wait_copies(kLater);
}
inline float exp2_fast(float x) {
  return std::exp2(x);
}
inline uint32_t packed(float low, float high) {
  return uint32_t{to_bf16(low).bits} | uint32_t{to_bf16(high).bits} << 16;
}

#endif

}  // namespace annulus::kernels::device
