// SPDX-License-Identifier: Apache-2.0
// A libcuda.so.1 for machines without one: it has what cuDNN looks for and refuses all of it, as
// the toolkit's stub does. cuDNN says what it would run on a described GPU only where there is a
// driver.
constexpr int kStubLibrary = 34;  // CUDA_ERROR_STUB_LIBRARY

#define REFUSE(name)      \
  extern "C" int name() { \
    return kStubLibrary;  \
  }

REFUSE(cuInit)
REFUSE(cuDriverGetVersion)
REFUSE(cuGetProcAddress_v2)
REFUSE(cuGetExportTable)
REFUSE(cuGetErrorName)
REFUSE(cuGetErrorString)
REFUSE(cuCtxGetCurrent)
REFUSE(cuCtxGetLimit)
REFUSE(cuCtxPopCurrent)
REFUSE(cuCtxPushCurrent)
REFUSE(cuStreamGetCtx)
REFUSE(cuLinkCreate)
REFUSE(cuLinkAddData)
REFUSE(cuLinkComplete)
REFUSE(cuLinkDestroy)
REFUSE(cuLaunchKernel)
REFUSE(cuLaunchKernelEx)
REFUSE(cuLaunchCooperativeKernel)
REFUSE(cuDeviceGetCount)
REFUSE(cuDeviceGet)
REFUSE(cuLibraryLoadData)
REFUSE(cuLibraryLoadFromFile)
REFUSE(cuLibraryGetKernel)
REFUSE(cuLibraryUnload)
REFUSE(cuKernelSetAttribute)
REFUSE(cuKernelGetAttribute)
REFUSE(cuOccupancyMaxPotentialClusterSize)
