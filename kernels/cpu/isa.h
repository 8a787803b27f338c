// SPDX-License-Identifier: Apache-2.0
// How one kernel source becomes five. `<op>_impl.cc` is compiled once per instruction set with its
// own flags (kernels/CMakeLists.txt) and ANNULUS_ISA naming the namespace that holds everything it
// defines; it exports one const table of function pointers, declared for all ISAs by
// ANNULUS_DECLARE_PER_ISA in the op's internal header and chosen by ANNULUS_SELECT_ISA in
// `<op>.cc`, which includes kernels/cpu/queue.h.
//
// The trap: an inline function or template instantiated in an _impl.cc has a weak symbol, and the
// linker may keep the AVX-512 copy for everybody (SIGILL elsewhere). So an _impl.cc defines all in
// its ISA namespace and calls no inline function of std or of other headers (types are fine; so are
// intrinsics and builtins). The test isa_symbols checks the object files.
#pragma once

#ifndef ANNULUS_ISA  // a source that is built once
#define ANNULUS_ISA portable
#endif
#define ANNULUS_INLINE static inline __attribute__((always_inline))

// clang-format off
#if defined(__x86_64__)
#define ANNULUS_DECLARE_PER_ISA(Type, table)               \
  namespace portable { extern const Type table; }          \
  namespace avx2 { extern const Type table; }              \
  namespace avx512 { extern const Type table; }            \
  namespace avx512_bf16 { extern const Type table; }       \
  namespace amx { extern const Type table; }
#define ANNULUS_SELECT_ISA(isa, table)                     \
  ((isa) == CpuIsa::kAmx        ? amx::table               \
   : (isa) == CpuIsa::kAvx512Bf16 ? avx512_bf16::table     \
   : (isa) == CpuIsa::kAvx512   ? avx512::table            \
   : (isa) == CpuIsa::kAvx2     ? avx2::table              \
                                : portable::table)
#else
#define ANNULUS_DECLARE_PER_ISA(Type, table) namespace portable { extern const Type table; }
#define ANNULUS_SELECT_ISA(isa, table) (static_cast<void>(isa), portable::table)
#endif
// clang-format on
