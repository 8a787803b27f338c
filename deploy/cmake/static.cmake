# ANNULUS_STATIC: `annulus` and `annulus-bench` need nothing at run time but glibc, and what they open themselves (CUDA's driver,
# cuBLASLt, NCCL). Sources are compiled as ever, so that ccache finds them: packages' targets name archives instead of shared
# libraries. UCX's archives have shared memory, CMA and TCP, not RDMA.
option(ANNULUS_STATIC "Link everything but glibc into the programs" OFF)

# annulus_use_archives(TARGET...): imported targets, and those that they link, name lib*.a where they named lib*.so.
function(annulus_use_archives)
  set(todo ${ARGN})
  set(seen "")
  while(todo)
    list(POP_FRONT todo target)
    if(target IN_LIST seen OR NOT TARGET ${target})
      continue()
    endif()
    list(APPEND seen ${target})
    get_target_property(links ${target} INTERFACE_LINK_LIBRARIES)
    if(links)
      list(APPEND todo ${links})
    endif()
    get_target_property(type ${target} TYPE)
    if(type STREQUAL INTERFACE_LIBRARY OR target MATCHES "^(spdlog::spdlog|fmt::fmt)$")
      continue()
    endif()
    get_target_property(shared ${target} LOCATION)
    string(REGEX REPLACE "\\.so[.0-9]*$" ".a" archive "${shared}")
    if(NOT EXISTS "${archive}")
      message(FATAL_ERROR "ANNULUS_STATIC: ${target} has no archive beside ${shared}; deploy/install installs those of Debian 12")
    endif()
    set_target_properties(${target} PROPERTIES IMPORTED_LOCATION "${archive}" IMPORTED_LOCATION_NONE "${archive}"
                                               IMPORTED_LOCATION_RELEASE "${archive}")
  endwhile()
endfunction()

if(ANNULUS_STATIC)
  annulus_use_archives(gRPC::grpc++ gRPC::grpc++_reflection protobuf::libprotobuf absl::status absl::statusor absl::strings absl::str_format
                       absl::time absl::flat_hash_map)
  set_property(TARGET protobuf::libprotobuf APPEND PROPERTY INTERFACE_LINK_LIBRARIES ZLIB::ZLIB)

  # pkg-config's targets hold paths.
  pkg_get_variable(libraries ucx libdir)
  set_target_properties(PkgConfig::UCX PROPERTIES INTERFACE_LINK_LIBRARIES
    "${libraries}/libucp.a;${libraries}/ucx/libuct_cma.a;${libraries}/libuct.a;${libraries}/libucs.a;${libraries}/libucm.a;m;rt;dl;Threads::Threads")
  # Which register themselves; nobody calls them.
  add_link_options(-Wl,--undefined=ucp_global_init,--undefined=uct_init,--undefined=ucs_init,--undefined=uct_cma_init)
  find_library(archive NAMES libre2.a REQUIRED NO_CACHE)
  set_target_properties(re2::re2 PROPERTIES INTERFACE_LINK_LIBRARIES ${archive})
  pkg_get_variable(libraries libpcre2-8 libdir)
  set_target_properties(PkgConfig::PCRE2 PROPERTIES INTERFACE_LINK_LIBRARIES ${libraries}/libpcre2-8.a)

  # Debian has no archives of spdlog and fmt; their headers hold the sources.
  set(archive ${PROJECT_BINARY_DIR}/libannulus_static_log.a)
  file(CONFIGURE OUTPUT static_log.cc @ONLY CONTENT [[
#include <sys/random.h>

#include <fmt/format-inl.h>
#include <spdlog/common-inl.h>
#include <spdlog/details/backtracer-inl.h>
#include <spdlog/details/log_msg-inl.h>
#include <spdlog/details/log_msg_buffer-inl.h>
#include <spdlog/details/null_mutex.h>
#include <spdlog/details/os-inl.h>
#include <spdlog/details/periodic_worker-inl.h>
#include <spdlog/details/registry-inl.h>
#include <spdlog/logger-inl.h>
#include <spdlog/pattern_formatter-inl.h>
#include <spdlog/sinks/ansicolor_sink-inl.h>
#include <spdlog/sinks/base_sink-inl.h>
#include <spdlog/sinks/sink-inl.h>
#include <spdlog/sinks/stdout_sinks-inl.h>
#include <spdlog/spdlog-inl.h>

// Of glibc 2.36, wanted by libstdc++'s random_device alone: without it 2.35 suffices, which is Ubuntu 22.04's.
extern "C" unsigned arc4random() noexcept {
  unsigned out = 0;
  while (getrandom(&out, sizeof out, 0) != sizeof out) {
  }
  return out;
}

FMT_BEGIN_NAMESPACE
namespace detail {
template dragonbox::decimal_fp<float> dragonbox::to_decimal(float) noexcept;
template dragonbox::decimal_fp<double> dragonbox::to_decimal(double) noexcept;
template locale_ref::locale_ref(const std::locale&);
template std::locale locale_ref::get<std::locale>() const;
template thousands_sep_result<char> thousands_sep_impl(locale_ref);
template char decimal_point_impl(locale_ref);
template void buffer<char>::append(const char*, const char*);
template void vformat_to(buffer<char>&, string_view, basic_format_args<buffer_context<char>>, locale_ref);
}  // namespace detail
FMT_END_NAMESPACE

template class spdlog::sinks::base_sink<std::mutex>;
template class spdlog::sinks::base_sink<spdlog::details::null_mutex>;
template class spdlog::sinks::stdout_sink_base<spdlog::details::console_mutex>;
template class spdlog::sinks::stdout_sink_base<spdlog::details::console_nullmutex>;
template class spdlog::sinks::stdout_sink<spdlog::details::console_mutex>;
template class spdlog::sinks::stdout_sink<spdlog::details::console_nullmutex>;
template class spdlog::sinks::stderr_sink<spdlog::details::console_mutex>;
template class spdlog::sinks::stderr_sink<spdlog::details::console_nullmutex>;
template class spdlog::sinks::ansicolor_sink<spdlog::details::console_mutex>;
template class spdlog::sinks::ansicolor_sink<spdlog::details::console_nullmutex>;
template class spdlog::sinks::ansicolor_stdout_sink<spdlog::details::console_mutex>;
template class spdlog::sinks::ansicolor_stdout_sink<spdlog::details::console_nullmutex>;
template class spdlog::sinks::ansicolor_stderr_sink<spdlog::details::console_mutex>;
template class spdlog::sinks::ansicolor_stderr_sink<spdlog::details::console_nullmutex>;
template std::shared_ptr<spdlog::logger> spdlog::stdout_logger_mt<spdlog::synchronous_factory>(const std::string&);
template std::shared_ptr<spdlog::logger> spdlog::stdout_logger_st<spdlog::synchronous_factory>(const std::string&);
template std::shared_ptr<spdlog::logger> spdlog::stderr_logger_mt<spdlog::synchronous_factory>(const std::string&);
template std::shared_ptr<spdlog::logger> spdlog::stderr_logger_st<spdlog::synchronous_factory>(const std::string&);
]])
  add_library(annulus_static_log STATIC ${PROJECT_BINARY_DIR}/static_log.cc)
  set_target_properties(annulus_static_log PROPERTIES ARCHIVE_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR})
  target_compile_definitions(annulus_static_log PRIVATE SPDLOG_COMPILED_LIB SPDLOG_FMT_EXTERNAL)
  add_dependencies(spdlog::spdlog annulus_static_log)
  foreach(target spdlog::spdlog fmt::fmt)
    set_target_properties(${target} PROPERTIES IMPORTED_LOCATION ${archive} IMPORTED_LOCATION_NONE ${archive} IMPORTED_LOCATION_RELEASE ${archive})
  endforeach()

  add_link_options(-static-libstdc++ -static-libgcc -Wl,--undefined=arc4random)
endif()
