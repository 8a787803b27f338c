// SPDX-License-Identifier: Apache-2.0
// Messages for people and for gRPC statuses may quote names and texts out of files and requests.
// What leaves the process passes through here: one printable line of bounded length (gRPC's
// trailers hold 8 KiB, and clients fail where a message does not fit). Pure; any thread.
#pragma once

#include <string>
#include <string_view>

namespace annulus::server {

inline constexpr size_t kLongestLine = 1024;

// Control characters and bytes that are not UTF-8 become \n, \t or \xNN; the rest stays as it is.
std::string one_line(std::string_view text);

}  // namespace annulus::server
