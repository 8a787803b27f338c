// SPDX-License-Identifier: Apache-2.0
#include "kernels/core/shared_library.h"

#include <dlfcn.h>
#include <glob.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace annulus::kernels {
namespace {

std::vector<std::string> places(const LibraryQuery& query) {
  const char* named = std::getenv(query.variable);
  if (named != nullptr && *named != '\0') return {named};
  std::vector<std::string> out = {query.name};
  const auto package = [&](const char* root) {
    return absl::StrCat(root, "/lib/python3*/*-packages/", query.folder, "/", query.name);
  };
  for (const std::string& pattern : {package("/usr/local"), package("/usr"), package("/opt/*"),
                                     absl::StrCat("/usr/local/cuda*/lib64/", query.name)}) {
    glob_t found = {};
    if (glob(pattern.c_str(), 0, nullptr, &found) == 0) {
      for (size_t i = 0; i < found.gl_pathc; ++i) out.emplace_back(found.gl_pathv[i]);
    }
    globfree(&found);
  }
  return out;
}

}  // namespace

absl::StatusOr<void*> open_library(const LibraryQuery& query) {
  const std::vector<std::string> tried = places(query);
  std::string why;
  for (const std::string& place : tried) {
    if (void* library = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
    if (const char* text = dlerror(); text != nullptr) why = text;
  }
  return absl::FailedPreconditionError(absl::StrCat(query.name, " was not found in ",
                                                    absl::StrJoin(tried, ", "), " (", why, "); ",
                                                    query.remedy));
}

void* library_symbol(void* library, const char* name) {
  return dlsym(library, name);
}

std::string dotted_version(int64_t version) {
  const int64_t major = version < 10000 ? 1000 : 10000;
  return absl::StrCat(version / major, ".", version % major / 100, ".", version % 100);
}

absl::Status check_version(const char* library, int64_t version, int64_t oldest,
                           const char* remedy) {
  if (version >= oldest) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the ", library, " found has version ", dotted_version(version), ", but ",
                   dotted_version(oldest), " or newer is needed; ", remedy));
}

}  // namespace annulus::kernels
