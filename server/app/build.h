// SPDX-License-Identifier: Apache-2.0
// What this build calls itself. Front end and workers must agree on it.
#pragma once

#ifndef ANNULUS_VERSION
#error "ANNULUS_VERSION is defined by CMake"
#endif

namespace annulus::server {

inline constexpr const char* kBuild = ANNULUS_VERSION;

}  // namespace annulus::server
