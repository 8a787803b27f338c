// SPDX-License-Identifier: Apache-2.0
// A whole file mapped read-only: pages are read when touched and shared by all processes that map
// the same file. Move-only owner; the bytes keep their address when the owner moves, so views into
// them stay valid. Safe to read from any thread. The file must not be truncated while mapped (the
// kernel then kills the reader), so writers replace model files by renaming. Errors: NotFound,
// PermissionDenied, InvalidArgument (directory, pipe, empty file), each naming the path.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace annulus::parallel {

class MappedFile {
 public:
  static absl::StatusOr<MappedFile> open(const std::string& path);

  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return bytes_; }
  const std::string& path() const { return path_; }

  // Takes the pages out of this process's resident set; the next touch maps them again. For what
  // has been packed and will not be read again soon.
  void drop_resident() const;

 private:
  std::string path_;
  std::span<const std::byte> bytes_;
};

// Whether a path is on a file system that a server keeps for many hosts (NFS, Lustre, ...), as the
// kernel names it; false where it cannot tell.
bool on_network(const std::string& path);

}  // namespace annulus::parallel
