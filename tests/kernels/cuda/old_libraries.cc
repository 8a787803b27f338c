// SPDX-License-Identifier: Apache-2.0
// A library that says that it is cuBLASLt 12.9.1 and NCCL 2.19.3.
#include <cstddef>

extern "C" {
size_t cublasLtGetVersion() {
  return 120901;
}
int ncclGetVersion(int* version) {
  *version = 21903;
  return 0;
}
}
