// SPDX-License-Identifier: Apache-2.0
// Libraries that are found at run time, so that one program starts on machines with and without
// them (NCCL, cuBLAS). Loaded once and kept.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace annulus::kernels {

// The file that `variable` of the environment names, and nothing else; or the first that opens of
// `name` as the linker finds it and of the paths that match `patterns` (globs). FailedPrecondition
// says where was looked, and ends with `remedy`.
struct LibraryQuery {
  const char* variable;
  const char* name;
  std::vector<const char*> patterns;
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
