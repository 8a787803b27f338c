# Helpers for every CMakeLists.txt of this tree. Includes are written from the repository root ("kernels/ops.h").
add_library(annulus_flags INTERFACE)
target_include_directories(annulus_flags INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(annulus_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wshadow -Wconversion -Werror
                                               -fno-math-errno -fno-trapping-math>)
target_link_libraries(annulus_flags INTERFACE Threads::Threads)

# ANNULUS_SANITIZE: our own code alone is instrumented; Debian's gRPC, protobuf, abseil and UCX are not, which is why
# thread sanitizing stops short of them (tests/sanitize). A finding ends the process. With "address" one build serves unit
# tests and fuzzing, hence clang and libFuzzer's coverage; -w, as the warnings of the flags above are GCC's.
if(ANNULUS_SANITIZE STREQUAL "address")
  if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    message(FATAL_ERROR "ANNULUS_SANITIZE=address fuzzes too, which needs clang: cmake --preset asan")
  endif()
  add_compile_options(-w -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1)
  add_link_options(-fsanitize=address,undefined)
elseif(ANNULUS_SANITIZE STREQUAL "thread")
  add_compile_options(-fsanitize=thread -fno-omit-frame-pointer -g1)
  add_link_options(-fsanitize=thread)
elseif(ANNULUS_SANITIZE)
  message(FATAL_ERROR "ANNULUS_SANITIZE is \"${ANNULUS_SANITIZE}\"; address and thread are known")
endif()

# annulus_library(NAME SOURCES a.cc... LINK x...): a static library with the project's warnings.
function(annulus_library name)
  cmake_parse_arguments(A "" "" "SOURCES;LINK" ${ARGN})
  add_library(${name} STATIC ${A_SOURCES})
  target_link_libraries(${name} PUBLIC annulus_flags ${A_LINK})
endfunction()

# annulus_test(NAME SOURCES a.cc... LINK x... [LABELS l...] [TIMEOUT s]): one GoogleTest binary; each TEST is a ctest.
function(annulus_test name)
  cmake_parse_arguments(A "" "TIMEOUT" "SOURCES;LINK;LABELS" ${ARGN})
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 120)
  endif()
  if(NOT A_LABELS)
    set(A_LABELS unit)
  endif()
  add_executable(${name} ${A_SOURCES})
  target_link_libraries(${name} PRIVATE annulus_flags ${A_LINK} GTest::gtest GTest::gtest_main)
  if("unit" IN_LIST A_LABELS)
    if(NOT TARGET unit_tests)
      add_custom_target(unit_tests)  # what tests/sanitize builds
    endif()
    add_dependencies(unit_tests ${name})
  endif()
  include(GoogleTest)
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60 PROPERTIES LABELS "${A_LABELS}" TIMEOUT ${A_TIMEOUT})
endfunction()
