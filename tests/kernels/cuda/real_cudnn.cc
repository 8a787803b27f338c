// SPDX-License-Identifier: Apache-2.0
// The cuDNN of a real GPU; and our declarations against its header, where there is one: they
// compile or they do not.
#include "kernels/cuda/cudnn_api.h"
#include "tests/kernels/cuda/cudnn_of_machine.h"

namespace annulus::kernels {

absl::StatusOr<const CudnnApi*> cudnn_of_machine() {
  return load_cudnn();
}

}  // namespace annulus::kernels

#if __has_include(<cudnn_graph.h>)
#include <cudnn_graph.h>

namespace annulus::kernels {

static_assert(kCudnnPointwise == CUDNN_BACKEND_POINTWISE_DESCRIPTOR &&
              kCudnnEngineConfig == CUDNN_BACKEND_ENGINECFG_DESCRIPTOR &&
              kCudnnHeuristics == CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR &&
              kCudnnPlan == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR &&
              kCudnnPointwiseOp == CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR &&
              kCudnnGraph == CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR &&
              kCudnnVariantPack == CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR &&
              kCudnnTensor == CUDNN_BACKEND_TENSOR_DESCRIPTOR &&
              kCudnnMatmul == CUDNN_BACKEND_MATMUL_DESCRIPTOR &&
              kCudnnMatmulOp == CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR &&
              kCudnnReduction == CUDNN_BACKEND_REDUCTION_DESCRIPTOR &&
              kCudnnReductionOp == CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR &&
              kCudnnDevice == CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
static_assert(kCudnnOfHandle == CUDNN_TYPE_HANDLE && kCudnnOfDataType == CUDNN_TYPE_DATA_TYPE &&
              kCudnnOfBool == CUDNN_TYPE_BOOLEAN && kCudnnOfInt64 == CUDNN_TYPE_INT64 &&
              kCudnnOfPointer == CUDNN_TYPE_VOID_PTR &&
              kCudnnOfHeuristicMode == CUDNN_TYPE_HEUR_MODE &&
              kCudnnOfPointwiseMode == CUDNN_TYPE_POINTWISE_MODE &&
              kCudnnOfDescriptor == CUDNN_TYPE_BACKEND_DESCRIPTOR &&
              kCudnnOfReduction == CUDNN_TYPE_REDUCTION_OPERATOR_TYPE &&
              kCudnnOfChar == CUDNN_TYPE_CHAR);
static_assert(kCudnnPointwiseMode == CUDNN_ATTR_POINTWISE_MODE &&
              kCudnnPointwiseType == CUDNN_ATTR_POINTWISE_MATH_PREC &&
              kCudnnPointwiseAxis == CUDNN_ATTR_POINTWISE_AXIS &&
              kCudnnHeuristicsMode == CUDNN_ATTR_ENGINEHEUR_MODE &&
              kCudnnHeuristicsGraph == CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH &&
              kCudnnHeuristicsResults == CUDNN_ATTR_ENGINEHEUR_RESULTS &&
              kCudnnHeuristicsDevice == CUDNN_ATTR_ENGINEHEUR_DEVICEPROP &&
              kCudnnPlanHandle == CUDNN_ATTR_EXECUTION_PLAN_HANDLE &&
              kCudnnPlanConfig == CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG &&
              kCudnnPlanWorkspace == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE &&
              kCudnnPlanDevice == CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP);
static_assert(kCudnnOpPointwise == CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR &&
              kCudnnOpPointwiseX == CUDNN_ATTR_OPERATION_POINTWISE_XDESC &&
              kCudnnOpPointwiseB == CUDNN_ATTR_OPERATION_POINTWISE_BDESC &&
              kCudnnOpPointwiseY == CUDNN_ATTR_OPERATION_POINTWISE_YDESC &&
              kCudnnOpPointwiseT == CUDNN_ATTR_OPERATION_POINTWISE_TDESC &&
              kCudnnGraphHandle == CUDNN_ATTR_OPERATIONGRAPH_HANDLE &&
              kCudnnGraphOps == CUDNN_ATTR_OPERATIONGRAPH_OPS &&
              kCudnnTensorAlignment == CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT &&
              kCudnnTensorType == CUDNN_ATTR_TENSOR_DATA_TYPE &&
              kCudnnTensorDims == CUDNN_ATTR_TENSOR_DIMENSIONS &&
              kCudnnTensorStrides == CUDNN_ATTR_TENSOR_STRIDES &&
              kCudnnTensorId == CUDNN_ATTR_TENSOR_UNIQUE_ID &&
              kCudnnTensorVirtual == CUDNN_ATTR_TENSOR_IS_VIRTUAL &&
              kCudnnTensorByValue == CUDNN_ATTR_TENSOR_IS_BY_VALUE);
static_assert(kCudnnPackIds == CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS &&
              kCudnnPackPointers == CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS &&
              kCudnnPackWorkspace == CUDNN_ATTR_VARIANT_PACK_WORKSPACE &&
              kCudnnMatmulType == CUDNN_ATTR_MATMUL_COMP_TYPE &&
              kCudnnOpMatmulA == CUDNN_ATTR_OPERATION_MATMUL_ADESC &&
              kCudnnOpMatmulB == CUDNN_ATTR_OPERATION_MATMUL_BDESC &&
              kCudnnOpMatmulC == CUDNN_ATTR_OPERATION_MATMUL_CDESC &&
              kCudnnOpMatmul == CUDNN_ATTR_OPERATION_MATMUL_DESC &&
              kCudnnReductionOperator == CUDNN_ATTR_REDUCTION_OPERATOR &&
              kCudnnReductionType == CUDNN_ATTR_REDUCTION_COMP_TYPE &&
              kCudnnOpReductionX == CUDNN_ATTR_OPERATION_REDUCTION_XDESC &&
              kCudnnOpReductionY == CUDNN_ATTR_OPERATION_REDUCTION_YDESC &&
              kCudnnOpReduction == CUDNN_ATTR_OPERATION_REDUCTION_DESC &&
              kCudnnDeviceJson == CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION);
static_assert(kCudnnF32 == CUDNN_DATA_FLOAT && kCudnnI32 == CUDNN_DATA_INT32 &&
              kCudnnBF16 == CUDNN_DATA_BFLOAT16 && kCudnnBool == CUDNN_DATA_BOOLEAN);
static_assert(kCudnnAdd == CUDNN_POINTWISE_ADD && kCudnnMul == CUDNN_POINTWISE_MUL &&
              kCudnnDiv == CUDNN_POINTWISE_DIV && kCudnnSub == CUDNN_POINTWISE_SUB &&
              kCudnnExp == CUDNN_POINTWISE_EXP && kCudnnLog == CUDNN_POINTWISE_LOG &&
              kCudnnNotLess == CUDNN_POINTWISE_CMP_GE && kCudnnIndex == CUDNN_POINTWISE_GEN_INDEX &&
              kCudnnSelect == CUDNN_POINTWISE_BINARY_SELECT &&
              kCudnnSum == CUDNN_REDUCE_TENSOR_ADD && kCudnnMost == CUDNN_REDUCE_TENSOR_MAX &&
              kCudnnModeA == CUDNN_HEUR_MODE_A &&
              kCudnnDriverFailed == CUDNN_STATUS_EXECUTION_FAILED_CUDA_DRIVER);

}  // namespace annulus::kernels
#endif
