# Wide instruction sets are confined to one file each, named by suffix. Nothing else is compiled
# for more than the platform's baseline, so one binary runs on every machine of the platform.
set(FASTCTC_SIMD_ORDER avx512 avx2 vec128 portable)
set(FASTCTC_SIMD_FLAGS_avx512 -mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mf16c
                              -mprefer-vector-width=512)
set(FASTCTC_SIMD_FLAGS_avx2 -mavx2 -mfma -mf16c)
set(FASTCTC_SIMD_FLAGS_vec128)
set(FASTCTC_SIMD_FLAGS_portable)

set(fastctc_kernel_flags -fno-exceptions -fno-rtti -fno-math-errno -fno-trapping-math
                         -ffp-contract=fast)
if(CMAKE_BUILD_TYPE STREQUAL "Release" AND NOT FASTCTC_SANITIZE)
  list(PREPEND fastctc_kernel_flags -O3)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # gcc takes the undefined operands of its own intrinsics for a mistake.
  list(APPEND fastctc_kernel_flags -Wno-maybe-uninitialized -Wno-uninitialized)
endif()

set(FASTCTC_GNU_LIKE OFF)
if(CMAKE_CXX_COMPILER_ID MATCHES "^(GNU|Clang|AppleClang|IntelLLVM)$" AND NOT MSVC)
  set(FASTCTC_GNU_LIKE ON)
endif()

set(FASTCTC_X86_64 OFF)
if(CMAKE_SIZEOF_VOID_P EQUAL 8
   AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$"
   AND NOT CMAKE_OSX_ARCHITECTURES MATCHES "arm64")
  set(FASTCTC_X86_64 ON)
endif()

# Drops from the list <sources> the files whose target this compiler or processor cannot build,
# sets the flags of the others, and lists in <targets> those that remain, widest first.
function(fastctc_select_simd_sources sources targets)
  set(available portable)
  if(FASTCTC_GNU_LIKE)
    list(PREPEND available vec128)
    if(FASTCTC_X86_64)
      list(PREPEND available avx512 avx2)
    endif()
  endif()

  set(kept "${${sources}}")
  set(built "")
  foreach(target IN LISTS FASTCTC_SIMD_ORDER)
    set(files "${kept}")
    list(FILTER files INCLUDE REGEX "_${target}\\.cpp$")
    if(NOT files)
      continue()
    endif()
    if(NOT target IN_LIST available)
      list(REMOVE_ITEM kept ${files})
      continue()
    endif()
    list(APPEND built ${target})
    if(FASTCTC_GNU_LIKE)
      set_property(SOURCE ${files} APPEND PROPERTY COMPILE_OPTIONS ${fastctc_kernel_flags}
                                                   ${FASTCTC_SIMD_FLAGS_${target}})
    endif()
  endforeach()

  set(${sources} "${kept}" PARENT_SCOPE)
  set(${targets} "${built}" PARENT_SCOPE)
endfunction()
