# Decides whether the CUDA library is built, and for which GPU architectures.
#
#   FASTCTC_CUDA=auto|0|1   auto builds it where a working nvcc is found and says which it took
#   FASTCTC_CUDA=emulate    for tests: the C++ compiler builds it for the emulator in
#                           tests/cuda_emulator, which runs the kernels on the host
#
# Architectures come from the first of: -DCMAKE_CUDA_ARCHITECTURES, $TORCH_CUDA_ARCH_LIST,
# $CUDAARCHS, or a default cut down to what this nvcc can build.
#
# Sets FASTCTC_WITH_CUDA, FASTCTC_CUDA_EMULATED, FASTCTC_CUDA_VERSION, FASTCTC_CUDA_ARCHITECTURES
# (CMake's spelling) and FASTCTC_CUDA_ARCHS (for reading: 80, 90, ... and 120+PTX).
include(CheckLanguage)

if(DEFINED ENV{FASTCTC_CUDA})
  set(fastctc_cuda_default "$ENV{FASTCTC_CUDA}")
else()
  set(fastctc_cuda_default auto)
endif()
set(FASTCTC_CUDA "${fastctc_cuda_default}" CACHE STRING "Build the CUDA library: auto, 0, 1 or emulate")

set(FASTCTC_CUDA_DEFAULT_ARCHS 70 75 80 86 90 100 120)
set(FASTCTC_CUDA_MINIMUM 11.8)

# "8.0;9.0a+PTX" or "8.0 9.0" -> CMake's "80-real;90a-real;90a-virtual"
function(fastctc_archs_from_torch text result)
  string(REGEX REPLACE "[ ,]+" ";" items "${text}")
  set(archs "")
  foreach(item IN LISTS items)
    if(item STREQUAL "")
      continue()
    endif()
    if(NOT item MATCHES "^([0-9]+)\\.([0-9])([af]?)(\\+PTX)?$")
      message(FATAL_ERROR "fastctc: TORCH_CUDA_ARCH_LIST has \"${item}\"; "
                          "it takes numbers such as 8.0 or 9.0+PTX, separated by ; or blanks")
    endif()
    set(arch "${CMAKE_MATCH_1}${CMAKE_MATCH_2}${CMAKE_MATCH_3}")
    set(ptx "${CMAKE_MATCH_4}")
    list(APPEND archs "${arch}-real")
    if(ptx)
      list(APPEND archs "${arch}-virtual")
    endif()
  endforeach()
  set(${result} "${archs}" PARENT_SCOPE)
endfunction()

# The default list without what this nvcc no longer, or does not yet, build; the newest also as
# PTX, so that GPUs newer than this nvcc can run it.
function(fastctc_default_archs nvcc result)
  execute_process(COMMAND "${nvcc}" --list-gpu-arch OUTPUT_VARIABLE listed ERROR_QUIET)
  string(REGEX MATCHALL "[0-9]+" known "${listed}")
  set(archs "")
  set(newest "")
  foreach(arch IN LISTS FASTCTC_CUDA_DEFAULT_ARCHS)
    if(arch IN_LIST known)
      list(APPEND archs "${arch}-real")
      set(newest "${arch}")
    endif()
  endforeach()
  if(newest)
    list(APPEND archs "${newest}-virtual")
  endif()
  set(${result} "${archs}" PARENT_SCOPE)
endfunction()

# CMake's spelling -> for reading: 80-real -> 80, 90-virtual -> 90+PTX, a bare 80 -> 80 and 80+PTX
function(fastctc_archs_for_reading archs result)
  set(names "")
  foreach(arch IN LISTS archs)
    if(arch MATCHES "^(.+)-real$")
      list(APPEND names "${CMAKE_MATCH_1}")
    elseif(arch MATCHES "^(.+)-virtual$")
      list(APPEND names "${CMAKE_MATCH_1}+PTX")
    else()
      list(APPEND names "${arch}" "${arch}+PTX")
    endif()
  endforeach()
  list(REMOVE_DUPLICATES names)
  set(${result} "${names}" PARENT_SCOPE)
endfunction()

set(FASTCTC_WITH_CUDA OFF)
set(FASTCTC_CUDA_EMULATED OFF)
set(FASTCTC_CUDA_VERSION "")
set(FASTCTC_CUDA_ARCHITECTURES "")
set(FASTCTC_CUDA_ARCHS "")
set(fastctc_cuda_why "")

string(TOLOWER "${FASTCTC_CUDA}" fastctc_cuda_choice)
if(fastctc_cuda_choice STREQUAL "")
  set(fastctc_cuda_choice auto)
endif()
if(fastctc_cuda_choice MATCHES "^(0|off|no|false)$")
  set(fastctc_cuda_choice 0)
elseif(fastctc_cuda_choice MATCHES "^(1|on|yes|true)$")
  set(fastctc_cuda_choice 1)
elseif(NOT fastctc_cuda_choice MATCHES "^(auto|emulate)$")
  message(FATAL_ERROR
          "fastctc: FASTCTC_CUDA is \"${FASTCTC_CUDA}\"; it takes auto, 0, 1 or emulate")
endif()

if(fastctc_cuda_choice STREQUAL "0")
  message(STATUS "fastctc: CUDA off (FASTCTC_CUDA=0)")
elseif(fastctc_cuda_choice STREQUAL "emulate")
  set(FASTCTC_WITH_CUDA ON)
  set(FASTCTC_CUDA_EMULATED ON)
  set(FASTCTC_CUDA_VERSION emulated)
  message(STATUS "fastctc: CUDA emulated on the host, for tests")
else()
  if(NOT CMAKE_CUDA_COMPILER)
    # A folder that was configured before nvcc was there remembers that it was not.
    unset(CMAKE_CUDA_COMPILER CACHE)
  endif()
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    find_program(fastctc_nvcc nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATH_SUFFIXES bin
                 PATHS /usr/local/cuda/bin NO_CACHE)
    if(fastctc_nvcc)
      set(CMAKE_CUDA_COMPILER "${fastctc_nvcc}")
    endif()
  endif()

  set(fastctc_nvcc_seen "${CMAKE_CUDA_COMPILER}")
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    # Kept out of the cache, so that a second run sees only what the user asked for.
    if(NOT DEFINED CACHE{CMAKE_CUDA_ARCHITECTURES})
      if(DEFINED ENV{TORCH_CUDA_ARCH_LIST} AND NOT "$ENV{TORCH_CUDA_ARCH_LIST}" STREQUAL "")
        fastctc_archs_from_torch("$ENV{TORCH_CUDA_ARCH_LIST}" fastctc_archs)
      elseif(DEFINED ENV{CUDAARCHS} AND NOT "$ENV{CUDAARCHS}" STREQUAL "")
        set(fastctc_archs "$ENV{CUDAARCHS}")
      else()
        fastctc_default_archs("${CMAKE_CUDA_COMPILER}" fastctc_archs)
      endif()
      set(CMAKE_CUDA_ARCHITECTURES "${fastctc_archs}")
    endif()
    enable_language(CUDA)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS FASTCTC_CUDA_MINIMUM)
      set(fastctc_cuda_why "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is older than the "
                           "${FASTCTC_CUDA_MINIMUM} that is needed")
      string(CONCAT fastctc_cuda_why ${fastctc_cuda_why})
    else()
      set(FASTCTC_WITH_CUDA ON)
      set(FASTCTC_CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}")
      fastctc_archs_for_reading("${CMAKE_CUDA_ARCHITECTURES}" FASTCTC_CUDA_ARCHS)
      string(REGEX MATCH "^[0-9]+\\.[0-9]+" FASTCTC_CUDA_VERSION "${CMAKE_CUDA_COMPILER_VERSION}")
      message(STATUS "fastctc: CUDA on (nvcc ${CMAKE_CUDA_COMPILER_VERSION}, "
                     "architectures ${FASTCTC_CUDA_ARCHS})")
    endif()
  elseif(fastctc_nvcc_seen)
    set(fastctc_cuda_why "${fastctc_nvcc_seen} cannot compile a test program; try it by hand")
  elseif(DEFINED ENV{CUDACXX})
    set(fastctc_cuda_why "CUDACXX is $ENV{CUDACXX}, which is no working nvcc")
  else()
    set(fastctc_cuda_why "no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda")
  endif()

  if(NOT FASTCTC_WITH_CUDA)
    if(fastctc_cuda_choice STREQUAL "1")
      message(FATAL_ERROR "fastctc: FASTCTC_CUDA=1, but ${fastctc_cuda_why}. Install the CUDA "
                          "toolkit or set CUDACXX to its nvcc, or build with FASTCTC_CUDA=0.")
    endif()
    message(STATUS "fastctc: CUDA off (${fastctc_cuda_why})")
  endif()
endif()
