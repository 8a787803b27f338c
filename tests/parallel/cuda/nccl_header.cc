// SPDX-License-Identifier: Apache-2.0
// parallel/nccl_api.h against the real nccl.h, where there is one: it compiles or it does not.
#include "parallel/nccl_api.h"
#if __has_include(<nccl.h>)
#include <nccl.h>

#include <type_traits>

namespace annulus::parallel {

static_assert(sizeof(NcclId) == sizeof(ncclUniqueId));
static_assert(kNcclSuccess == ncclSuccess && kNcclInProgress == ncclInProgress);
static_assert(kNcclUint8 == ncclUint8 && kNcclFloat32 == ncclFloat32 && kNcclSum == ncclSum);
static_assert(offsetof(NcclConfig, size) == offsetof(ncclConfig_t, size) &&
              offsetof(NcclConfig, magic) == offsetof(ncclConfig_t, magic) &&
              offsetof(NcclConfig, version) == offsetof(ncclConfig_t, version) &&
              offsetof(NcclConfig, blocking) == offsetof(ncclConfig_t, blocking) &&
              offsetof(NcclConfig, cga_cluster_size) == offsetof(ncclConfig_t, cgaClusterSize) &&
              offsetof(NcclConfig, max_ctas) == offsetof(ncclConfig_t, maxCTAs) &&
              offsetof(NcclConfig, net_name) == offsetof(ncclConfig_t, netName) &&
              offsetof(NcclConfig, split_share) == offsetof(ncclConfig_t, splitShare));

#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 27, 0)
static_assert(kNcclSymmetricWindow == NCCL_WIN_COLL_SYMMETRIC);
static_assert(std::is_same_v<decltype(&ncclMemAlloc), ncclResult_t (*)(void**, size_t)>);
static_assert(std::is_same_v<decltype(&ncclMemFree), ncclResult_t (*)(void*)>);
static_assert(std::is_same_v<decltype(&ncclCommWindowRegister),
                             ncclResult_t (*)(ncclComm_t, void*, size_t, ncclWindow_t*, int)>);
static_assert(std::is_pointer_v<ncclWindow_t> && sizeof(ncclWindow_t) == sizeof(NcclWindow));
static_assert(NCCL_VERSION(2, 30, 0) == kNcclSymmetricOldest);
#endif

}  // namespace annulus::parallel
#endif
