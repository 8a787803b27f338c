// SPDX-License-Identifier: Apache-2.0
// Libraries that are found at run time, so that one program starts on machines with and without
// them (NCCL, cuBLAS). Loaded once and kept.
#pragma once

#include "absl/status/statusor.h"

namespace annulus::kernels {

// A library of NVIDIA's: the file that `variable` of the environment names, and nothing else; or
// the first that opens of `name` as the linker finds it, as the Python package that has it in
// `folder` installs it, and as the CUDA toolkit does. FailedPrecondition says where was looked, and
// ends with `remedy`.
struct LibraryQuery {
  const char* variable;
  const char* name;
  const char* folder;  // "nvidia/nccl/lib"
  const char* remedy;
};
absl::StatusOr<void*> open_library(const LibraryQuery& query);

// Fills a function pointer; false where the library has no such symbol.
void* library_symbol(void* library, const char* name);
template <class Function>
bool find_symbol(void* library, const char* name, Function*& out) {
  out = reinterpret_cast<Function*>(library_symbol(library, name));
  return out != nullptr;
}

}  // namespace annulus::kernels
