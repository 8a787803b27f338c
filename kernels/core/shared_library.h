// SPDX-License-Identifier: Apache-2.0
// Libraries that are found at run time, so that one program starts on machines with and without
// them (NCCL, cuBLAS). Loaded once and kept.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
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

// A version as NVIDIA's libraries number theirs: 130100 is 13.1.0; below 10000, 2804 is 2.8.4.
std::string dotted_version(int64_t version);
// FailedPrecondition where a library found is older than `oldest`: names both, ends with `remedy`.
absl::Status check_version(const char* library, int64_t version, int64_t oldest,
                           const char* remedy);

}  // namespace annulus::kernels
