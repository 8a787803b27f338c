// SPDX-License-Identifier: Apache-2.0
// cuDNN's C backend API as a table of functions that is filled at run time
// (kernels/core/shared_library.h): descriptors get attributes, are finalised and refer to each
// other. The declarations repeat what cudnn_graph.h of cuDNN 9 fixes; a test compares them with the
// real header where there is one. Results are cudnnStatus_t, 0 is success.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"

namespace annulus::kernels {

using CudnnHandle = struct CudnnContext*;
using CudnnDescriptor = void*;  // cudnnBackendDescriptor_t

// cudnnBackendDescriptorType_t
inline constexpr int kCudnnPointwise = 0, kCudnnEngineConfig = 3, kCudnnHeuristics = 4,
                     kCudnnPlan = 5, kCudnnPointwiseOp = 13, kCudnnGraph = 15,
                     kCudnnVariantPack = 16, kCudnnTensor = 17, kCudnnMatmul = 18,
                     kCudnnMatmulOp = 19, kCudnnReduction = 21, kCudnnReductionOp = 22,
                     kCudnnDevice = 38;
// cudnnBackendAttributeType_t: what the elements of an attribute are
inline constexpr int kCudnnOfHandle = 0, kCudnnOfDataType = 1, kCudnnOfBool = 2, kCudnnOfInt64 = 3,
                     kCudnnOfPointer = 6, kCudnnOfHeuristicMode = 8, kCudnnOfPointwiseMode = 14,
                     kCudnnOfDescriptor = 15, kCudnnOfReduction = 18, kCudnnOfChar = 24;
// cudnnBackendAttributeName_t
inline constexpr int kCudnnPointwiseMode = 0, kCudnnPointwiseType = 1, kCudnnPointwiseAxis = 9;
inline constexpr int kCudnnHeuristicsMode = 200, kCudnnHeuristicsGraph = 201,
                     kCudnnHeuristicsResults = 202, kCudnnHeuristicsDevice = 204;
inline constexpr int kCudnnPlanHandle = 400, kCudnnPlanConfig = 401, kCudnnPlanWorkspace = 402,
                     kCudnnPlanDevice = 407;
inline constexpr int kCudnnOpPointwise = 750, kCudnnOpPointwiseX = 751, kCudnnOpPointwiseB = 752,
                     kCudnnOpPointwiseY = 753, kCudnnOpPointwiseT = 758;
inline constexpr int kCudnnGraphHandle = 800, kCudnnGraphOps = 801;
inline constexpr int kCudnnTensorAlignment = 900, kCudnnTensorType = 901, kCudnnTensorDims = 902,
                     kCudnnTensorStrides = 903, kCudnnTensorId = 906, kCudnnTensorVirtual = 907,
                     kCudnnTensorByValue = 908;
inline constexpr int kCudnnPackIds = 1000, kCudnnPackPointers = 1001, kCudnnPackWorkspace = 1003;
inline constexpr int kCudnnMatmulType = 1500, kCudnnOpMatmulA = 1520, kCudnnOpMatmulB = 1521,
                     kCudnnOpMatmulC = 1522, kCudnnOpMatmul = 1523;
inline constexpr int kCudnnReductionOperator = 1600, kCudnnReductionType = 1601,
                     kCudnnOpReductionX = 1610, kCudnnOpReductionY = 1611, kCudnnOpReduction = 1612;
inline constexpr int kCudnnDeviceJson = 2702;
// cudnnDataType_t
inline constexpr int kCudnnF32 = 0, kCudnnI32 = 4, kCudnnBF16 = 9, kCudnnBool = 11;
// cudnnPointwiseMode_t, cudnnReduceTensorOp_t, cudnnBackendHeurMode_t
inline constexpr int kCudnnAdd = 0, kCudnnMul = 1, kCudnnDiv = 6, kCudnnSub = 9, kCudnnExp = 13,
                     kCudnnLog = 15, kCudnnNotLess = 303, kCudnnIndex = 501, kCudnnSelect = 601;
inline constexpr int kCudnnSum = 0, kCudnnMost = 3;
inline constexpr int kCudnnModeA = 3;

inline constexpr int kCudnnDriverFailed = 5001;  // cudnnStatus_t

struct CudnnApi {
  size_t (*version)();  // 91900: 9.19.0
  void (*last_error)(char* message, size_t bytes);
  int (*create)(CudnnHandle* handle);
  int (*destroy)(CudnnHandle handle);
  int (*set_stream)(CudnnHandle handle, cudaStream_t stream);
  int (*descriptor_create)(int type, CudnnDescriptor* descriptor);
  int (*descriptor_destroy)(CudnnDescriptor descriptor);
  int (*finalize)(CudnnDescriptor descriptor);
  int (*set)(CudnnDescriptor descriptor, int name, int type, int64_t count, const void* values);
  int (*get)(CudnnDescriptor descriptor, int name, int type, int64_t room, int64_t* count,
             void* values);
  int (*execute)(CudnnHandle handle, CudnnDescriptor plan, CudnnDescriptor pack);
};

// The library of this machine: ANNULUS_CUDNN (a path), then libcudnn.so.9 as the linker finds it,
// then where NVIDIA's packages put it. FailedPrecondition says what to install.
absl::StatusOr<const CudnnApi*> load_cudnn();

}  // namespace annulus::kernels
