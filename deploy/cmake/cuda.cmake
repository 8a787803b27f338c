# ANNULUS_CUDA: whether the GPU code (kernels/cuda) is built. nvcc is looked for where `deploy/install --cuda` puts it and where
# NVIDIA's own packages do. GPUs of compute capability 9.0 (H100, H200) alone: the code uses what only they have.
set(ANNULUS_CUDA AUTO CACHE STRING "AUTO: GPU code is built where nvcc is found; ON: nvcc must be there; OFF")
set_property(CACHE ANNULUS_CUDA PROPERTY STRINGS AUTO ON OFF)
if(NOT ANNULUS_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "ANNULUS_CUDA is \"${ANNULUS_CUDA}\"; AUTO, ON and OFF are known")
endif()

set(ANNULUS_WITH_CUDA OFF)
if(NOT ANNULUS_CUDA STREQUAL "OFF" AND NOT ANNULUS_FUZZ AND NOT ANNULUS_SANITIZE)
  if(DEFINED ENV{XDG_CACHE_HOME})
    set(cache $ENV{XDG_CACHE_HOME})
  else()
    set(cache $ENV{HOME}/.cache)
  endif()
  find_program(ANNULUS_NVCC nvcc HINTS ${cache}/annulus/cuda/bin ENV CUDA_HOME PATH_SUFFIXES bin PATHS /usr/local/cuda/bin)
  if(ANNULUS_NVCC)
    set(ANNULUS_WITH_CUDA ON)
    set(CMAKE_CUDA_COMPILER ${ANNULUS_NVCC})
    set(CMAKE_CUDA_ARCHITECTURES 90a-real)  # without PTX
    set(CMAKE_CUDA_FLAGS "${CMAKE_CUDA_FLAGS} --expt-relaxed-constexpr -Werror=all-warnings -Xcompiler=-Wall,-Wextra,-Wshadow")
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    if(CCACHE)
      set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
    endif()
    enable_language(CUDA)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)  # CMake 3.25 does not know that nvcc has it
    # Not find_package(CUDAToolkit), which CMake 3.25 refuses where the toolkit has no profiler libraries.
    find_library(ANNULUS_CUDART cudart_static REQUIRED NO_DEFAULT_PATH
                 HINTS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} ${CMAKE_CUDA_COMPILER_TOOLKIT_ROOT}/lib
                       ${CMAKE_CUDA_COMPILER_TOOLKIT_ROOT}/lib64)
    add_library(annulus_cudart INTERFACE)
    target_include_directories(annulus_cudart SYSTEM INTERFACE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
    target_link_libraries(annulus_cudart INTERFACE ${ANNULUS_CUDART} dl rt pthread)
  elseif(ANNULUS_CUDA STREQUAL "ON")
    message(FATAL_ERROR "ANNULUS_CUDA=ON needs nvcc: `deploy/install --cuda` installs it, or put it on PATH")
  endif()
endif()
message(STATUS "Annulus: GPU code is built: ${ANNULUS_WITH_CUDA}")
