// SPDX-License-Identifier: Apache-2.0
#include "parallel/model/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace annulus::parallel {
namespace {

absl::Status errno_status(const std::string& path, const char* what) {
  const int error = errno;
  return {absl::ErrnoToStatusCode(error), absl::StrCat(path, ": ", what, ": ", strerror(error))};
}

}  // namespace

absl::StatusOr<MappedFile> MappedFile::open(const std::string& path) {
  // O_NONBLOCK: opening a pipe must not wait for its writer.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return errno_status(path, "cannot open");
  struct stat info = {};
  if (fstat(fd, &info) != 0) {
    absl::Status status = errno_status(path, "cannot stat");
    close(fd);
    return status;
  }
  if (!S_ISREG(info.st_mode) || info.st_size <= 0) {
    close(fd);
    return absl::InvalidArgumentError(
        absl::StrCat(path, S_ISREG(info.st_mode) ? ": the file is empty" : ": not a regular file"));
  }
  const size_t size = static_cast<size_t>(info.st_size);
  void* data = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  absl::Status status = data == MAP_FAILED ? errno_status(path, "cannot map") : absl::OkStatus();
  close(fd);
  if (!status.ok()) return status;
  MappedFile file;
  file.path_ = path;
  file.bytes_ = {static_cast<const std::byte*>(data), size};
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)), bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void MappedFile::drop_resident() const {
  if (!bytes_.empty()) madvise(const_cast<std::byte*>(bytes_.data()), bytes_.size(), MADV_DONTNEED);
}

bool on_network(const std::string& path) {
  // statfs(2) and linux/magic.h; BeeGFS, GPFS, Lustre and PanFS: GNU coreutils, stat.
  constexpr uint32_t kNetwork[] = {
      0x6969,      // NFS
      0xff534d42,  // CIFS
      0xfe534d42,  // SMB 2
      0x517b,      // SMB
      0x0bd00bd0,  // Lustre
      0x47504653,  // GPFS
      0x19830326,  // BeeGFS
      0xaad7aaea,  // PanFS
      0x00c36400,  // Ceph
      0x5346414f,  // AFS
      0x6b414653,  // kAFS
      0x01021997,  // 9P
      0x65735546,  // FUSE: s3fs, gcsfuse, sshfs, GlusterFS
  };
  struct statfs info = {};
  if (statfs(path.c_str(), &info) != 0) return false;
  const auto magic = static_cast<uint32_t>(info.f_type);
  return std::find(std::begin(kNetwork), std::end(kNetwork), magic) != std::end(kNetwork);
}

}  // namespace annulus::parallel
