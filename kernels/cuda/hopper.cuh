// SPDX-License-Identifier: Apache-2.0
// What Hopper alone has (PTX ISA: mbarrier, cp.async.bulk.tensor, wgmma, setmaxnreg): one function
// an instruction, as in tensor_core.cuh. Layouts are constexpr functions, proven on the host;
// compiled as C++ the instructions are emulated (tests/kernels/cuda/emulation).
//
// Memory has two proxies: loads, stores and cp.async are of the generic one, TMA and wgmma of the
// async one. What a thread wrote by the generic one is seen by the async one only after its
// fence_proxy_async() and a barrier; the other way round completion is enough.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/device.cuh"

namespace annulus::kernels::device {

inline constexpr int kWarpgroup = 128;

// The 128-byte swizzle of an address: 16-byte piece c of a row of 128 bytes lies where c ^ (row mod
// 8) would, rows counted from a multiple of 1,024 bytes.
constexpr uint32_t swizzled_128(uint32_t at) {
  return at ^ (at >> 3 & 0x70);
}

// A matrix in shared memory as wgmma finds it, swizzled by 128 bytes (PTX ISA, 9.7.15.5.1: matrix
// descriptor and strides; the same as CUTLASS's canonical layouts, mma_traits_sm90_gmma.hpp).
// start: address in shared memory of the first 128-byte rows of 8 in 1,024 bytes, plus an offset
// within the row as it were without the swizzle.
// K-major (a row is 64 k of one m or n): stride is the distance of the next 8 rows, leading is not
// used. MN-major (a row is 64 m or n of one k): stride is the distance of the next 8 k, leading
// that of the next 64 m or n.
constexpr uint64_t matrix_descriptor(uint32_t start, uint32_t leading, uint32_t stride) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  const auto field = [](uint32_t bytes) { return uint64_t{bytes & 0x3ffff} >> 4; };
  return field(start) | field(leading) << 16 | field(stride) << 32 | kSwizzle128;
}
// The same matrix `bytes` further on.
constexpr uint64_t advanced(uint64_t descriptor, uint32_t bytes) {
  return descriptor + (bytes >> 4);
}

// A thread's numbers of a warpgroup's 64 x N product: element i of its N / 2 lies in row 16 warp +
// product_row(lane, i mod 4) and column 8 (i / 4) + product_column(lane, i mod 4)
// (tensor_core.cuh). A in registers is laid out as mma_16x8x16 has it, 16 rows a warp.

#ifdef __CUDACC__

__device__ inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// -- mbarrier: a phase ends when `count` arrivals and all expected bytes are there.
__device__ inline void mbarrier_init(uint64_t* barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count)
               : "memory");
}
__device__ inline void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
__device__ inline void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
// Until the phase of this parity has ended; of a new barrier that "before" the first has parity 1.
__device__ inline void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.b32 %0, 1, 0, "
        "p;}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (done == 0);
}

// -- barriers 1 to 15 of the block: of `threads` threads, whole warps.
__device__ inline void named_barrier_sync(int id, int threads) {
  asm volatile("barrier.cta.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void named_barrier_arrive(int id, int threads) {
  asm volatile("barrier.cta.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// What this thread wrote to shared memory, barriers included, is there for TMA and wgmma, once
// others know by a barrier that it was called.
__device__ inline void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// -- TMA
// Before a thread's first use of a map that the host has copied to global memory.
__device__ inline void fence_tensor_map(const CUtensorMap* map) {
  asm volatile("fence.proxy.tensormap::generic.acquire.sys [%0], 128;" ::"l"(map) : "memory");
}
// The map's box at (column, row), in elements, to shared memory; its bytes arrive at the barrier.
__device__ inline void tma_load(void* shared, const CUtensorMap* map, int32_t column, int32_t row,
                                uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, "
      "{%2, %3}], [%4];" ::"r"(shared_address(shared)),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
}

// -- registers of a thread, called by all of a warpgroup. Taking waits until the block has given as
// many: it has what it was launched with, not all of the SM's.
template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// -- wgmma: all of a warpgroup calls these. From a product's call to the wait for its group the
// registers of D and A belong to it.
// Between other accesses to such registers and a product.
__device__ inline void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most kLater groups, the last ones, are under way.
template <int kLater>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLater) : "memory");
}

#define ANNULUS_8_FLOATS(d, i)                                                                \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define ANNULUS_32_FLOATS(d) \
  ANNULUS_8_FLOATS(d, 0), ANNULUS_8_FLOATS(d, 8), ANNULUS_8_FLOATS(d, 16), ANNULUS_8_FLOATS(d, 24)
#define ANNULUS_64_FLOATS(d)                                                                       \
  ANNULUS_32_FLOATS(d), ANNULUS_8_FLOATS(d, 32), ANNULUS_8_FLOATS(d, 40), ANNULUS_8_FLOATS(d, 48), \
      ANNULUS_8_FLOATS(d, 56)

// d[64, 128] (+)= a[64, 16] b[128, 16]^T, bf16 with fp32 sums, both K-major in shared memory.
__device__ inline void wgmma_keys(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %66, 0; "
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,"
      "%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,"
      "%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,"
      "%40,%41,%42,%43,%44,%45,%46,%47,"
      "%48,%49,%50,%51,%52,%53,%54,%55,"
      "%56,%57,%58,%59,%60,%61,%62,%63}, "
      "%64, %65, p, 1, 1, 0, 0;}"
      : ANNULUS_64_FLOATS(d)
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate))
      : "memory");
}
// d[64, N] += a[64, 16] b[16, N], a from registers, b MN-major in shared memory.
__device__ inline void wgmma_values(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,"
      "%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,"
      "%24,%25,%26,%27,%28,%29,%30,%31}, "
      "{%32,%33,%34,%35}, %36, 1, 1, 1, 1;"
      : ANNULUS_32_FLOATS(d)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)
      : "memory");
}
__device__ inline void wgmma_values(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,"
      "%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,"
      "%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,"
      "%40,%41,%42,%43,%44,%45,%46,%47,"
      "%48,%49,%50,%51,%52,%53,%54,%55,"
      "%56,%57,%58,%59,%60,%61,%62,%63}, "
      "{%64,%65,%66,%67}, %68, 1, 1, 1, 1;"
      : ANNULUS_64_FLOATS(d)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)
      : "memory");
}

#undef ANNULUS_8_FLOATS
#undef ANNULUS_32_FLOATS
#undef ANNULUS_64_FLOATS

#else

using cuda_emulation::fence_proxy_async;
using cuda_emulation::fence_tensor_map;
using cuda_emulation::mbarrier_arrive;
using cuda_emulation::mbarrier_arrive_expect_tx;
using cuda_emulation::mbarrier_init;
using cuda_emulation::mbarrier_wait;
using cuda_emulation::named_barrier_arrive;
using cuda_emulation::named_barrier_sync;
using cuda_emulation::shared_address;
using cuda_emulation::tma_load;
using cuda_emulation::wgmma_commit;
using cuda_emulation::wgmma_fence;
template <int kLater>
inline void wgmma_wait() {
  cuda_emulation::wgmma_wait(kLater);
}
template <int kRegisters>
inline void take_registers() {
  cuda_emulation::set_registers(kRegisters);
}
template <int kRegisters>
inline void give_registers() {
  cuda_emulation::set_registers(kRegisters);
}
inline void wgmma_keys(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
  cuda_emulation::wgmma({d, 128, nullptr, a, b, false, accumulate});
}
template <int kHalf>
void wgmma_values(float (&d)[kHalf], const uint32_t (&a)[4], uint64_t b) {
  cuda_emulation::wgmma({d, 2 * kHalf, a, 0, b, true, true});
}

#endif

}  // namespace annulus::kernels::device
