// SPDX-License-Identifier: Apache-2.0
#include "tests/kernels/cuda/hopper_kernel.h"

#include <chrono>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/cuda/tensor_map.h"

namespace annulus::kernels {
namespace {

constexpr int kD = 128, kKeys = 128, kSlabBytes = 128 * kKeys;

struct Memory {
  char q[64 * kD * 2], k[kKeys * kD * 2], v[kKeys * kD * 2];
  uint64_t full;
};

__global__ void __launch_bounds__(128)
    multiply_twice(const CUtensorMap* maps, const bf16* q, int first_row, float* scores,
                   float* output, Fault wanted) {
#ifdef __CUDACC__
  constexpr Fault fault = Fault::kNone;  // a real GPU may hang
  static_cast<void>(wanted);
#else
  const Fault fault = wanted;
#endif
  auto& memory = *reinterpret_cast<Memory*>(device::launch_memory());
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  if (thread == 0) {
    device::mbarrier_init(&memory.full, 1);
    if (fault != Fault::kNoBarrierFence) device::fence_proxy_async();
  }
  __syncthreads();
  if (thread == 0) {
    uint32_t bytes = 2 * kKeys * kD * 2;
    if (fault == Fault::kMoreBytes) bytes += 16;
    if (fault == Fault::kFewerBytes) bytes -= 16;
    device::mbarrier_arrive_expect_tx(&memory.full, bytes);
    if (fault == Fault::kTwoArrivals) device::mbarrier_arrive(&memory.full);
    for (int matrix = 0; matrix < 2; ++matrix) {
      if (fault != Fault::kNoMapFence) device::fence_tensor_map(maps + matrix);
      for (int slab = 0; slab < kD / 64; ++slab) {
        device::tma_load((matrix == 0 ? memory.k : memory.v) + slab * kSlabBytes, maps + matrix,
                         64 * slab, first_row, &memory.full);
      }
    }
  }
  if (fault == Fault::kFenceBeforeWrite) device::fence_proxy_async();
  for (int i = thread; i < 64 * kD / 8; i += 128) {
    const int r = i / (kD / 8), c = i % (kD / 8);
    const auto at = static_cast<uint32_t>(c / 8 * 64 * 128 + r * 128 + c % 8 * 16);
    device::copy_async(memory.q + (fault == Fault::kNoSwizzle ? at : device::swizzled_128(at)),
                       q + r * kD + 8 * c, true);
  }
  device::commit_copies();
  device::wait_copies<0>();
  if (fault != Fault::kNoProxyFence && fault != Fault::kFenceBeforeWrite) {
    device::fence_proxy_async();
  }
  if (fault != Fault::kLonelyBarrier || warp > 0) device::named_barrier_sync(1, 128);
  if (fault != Fault::kNoMbarrierWait) device::mbarrier_wait(&memory.full, 0);
  if (fault == Fault::kNextPhase) device::mbarrier_wait(&memory.full, 1);

  const uint64_t a = device::matrix_descriptor(device::shared_address(memory.q), 16, 1024);
  const uint64_t b = device::matrix_descriptor(device::shared_address(memory.k), 16,
                                               fault == Fault::kOtherStride ? 2048 : 1024);
  float s[kKeys / 2], o[kD / 2] = {};
  if (fault == Fault::kHalfWarpgroup && warp > 1) return;
  if (fault != Fault::kNoWgmmaFence) device::wgmma_fence();
#pragma unroll
  for (uint32_t k = 0; k < kD / 16; ++k) {
    device::wgmma_keys(s, device::advanced(a, k / 4 * 64 * 128 + k % 4 * 32),
                       device::advanced(b, k / 4 * kSlabBytes + k % 4 * 32), k > 0);
  }
  if (fault != Fault::kNoCommit) device::wgmma_commit();
  if (fault != Fault::kNoWait) device::wgmma_wait<0>();
  if (fault == Fault::kNoCommit) s[0] += 1;
#pragma unroll
  for (int i = 0; i < kKeys / 2; ++i) {
    const int row = 16 * warp + device::product_row(lane, i % 4);
    const int column = i / 4 * 8 + device::product_column(lane, i % 4);
    scores[row * kKeys + column] = s[i];
  }
  if (fault == Fault::kNoWait) device::wgmma_wait<0>();

  uint32_t p[kKeys / 16][4];
#pragma unroll
  for (int n = 0; n < kKeys / 8; ++n) {
    p[n / 2][n % 2 * 2] = device::packed(s[4 * n], s[4 * n + 1]);
    p[n / 2][n % 2 * 2 + 1] = device::packed(s[4 * n + 2], s[4 * n + 3]);
  }
  const uint64_t values = device::matrix_descriptor(
      device::shared_address(memory.v), fault == Fault::kOtherLeading ? 1024 : kSlabBytes, 1024);
  device::wgmma_fence();
#pragma unroll
  for (uint32_t k = 0; k < kKeys / 16; ++k) {
    device::wgmma_values(o, p[k], device::advanced(values, k * 2048));
  }
  device::wgmma_commit();
  if (fault == Fault::kEarlyWrite) p[7][0] = 0x7f807f80;
  if (fault == Fault::kAccumulatorWrite) o[0] = 0;
  device::wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < kD / 2; ++i) {
    const int row = 16 * warp + device::product_row(lane, i % 4);
    const int column = i / 4 * 8 + device::product_column(lane, i % 4);
    output[row * kD + column] = o[i];
  }
  // Nobody leaves before TMA has written.
  if (fault == Fault::kNoMbarrierWait) device::mbarrier_wait(&memory.full, 0);
}

}  // namespace

TwoProducts two_products(CudaQueue& queue, const std::vector<bf16>& q, const std::vector<bf16>& k,
                         const std::vector<bf16>& v, int32_t first_row, Fault fault) {
  const CudaQueue::Mark mark(queue);
  const auto queries = queue.upload(std::span<const bf16>(q));
  // A cache whose rows are those of k, or of v: one KV head of half the width, K and V in one.
  const KvFormat format = {DType::kBF16, 1, kD / 2, 64};
  std::vector<CUtensorMap> maps;
  for (const std::vector<bf16>* matrix : {&k, &v}) {
    KvRows rows;
    rows.base = reinterpret_cast<const std::byte*>(queue.upload(std::span(*matrix)).data());
    rows.count = static_cast<int32_t>(matrix->size() / kD);
    make_tensor_map(maps.emplace_back(), rows, format, kKeys);
  }
  TwoProducts out = {std::vector<float>(64 * kKeys), std::vector<float>(64 * kD)};
  auto* const scores = queue.scratch<float>(64 * kKeys);
  auto* const output = queue.scratch<float>(64 * kD);
  allow_memory(multiply_twice, sizeof(Memory));
  launch_with_memory(queue, {1}, {128}, sizeof(Memory), multiply_twice,
                     queue.upload(std::span<const CUtensorMap>(maps)).data(), queries.data(),
                     first_row, scores, output, fault);
  queue.download(std::span(out.scores), scores);
  queue.download(std::span(out.output), output);
  queue.finish(std::chrono::steady_clock::now() + std::chrono::seconds(60));
  return out;
}

}  // namespace annulus::kernels
