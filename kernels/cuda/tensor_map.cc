// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/tensor_map.h"

#include <cuda_runtime.h>

#include <limits>

#include "kernels/core/check.h"
#include "kernels/cuda/launch.h"

namespace annulus::kernels {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's, asked for by name: linking to it would tie the program to machines with a driver.
Encode find_encode() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                              cudaEnableDefault, &result),
             "the driver's tensor maps");
  if (result != cudaDriverEntryPointSuccess || found == nullptr) {
    throw DeviceError("the driver has no cuTensorMapEncodeTiled: attention needs one for CUDA 12");
  }
  return reinterpret_cast<Encode>(found);
}

}  // namespace

void make_tensor_map(CUtensorMap& map, const KvRows& kv, const KvFormat& format, int32_t box_rows) {
  static const Encode encode = find_encode();
  // Pages are anywhere in a cache whose size nobody says here.
  const int64_t rows = kv.pages == nullptr ? kv.count : std::numeric_limits<int32_t>::max();
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(format.row_elements()),
                              static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(format.row_bytes())};  // of rows, in bytes
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(box_rows)}, steps[] = {1, 1};
  const CUresult refused =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<std::byte*>(kv.base), sizes,
             strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (refused != CUDA_SUCCESS) {
    throw DeviceError(concat("the driver refuses a tensor map of ", rows, " rows of ",
                             format.row_bytes(), " bytes at ", kv.base, ": error ", refused));
  }
}

}  // namespace annulus::kernels
