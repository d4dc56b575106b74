# FASTCTC_SANITIZE: comma-separated sanitizers for a checking build, e.g. address,undefined.
# Keep such a build in a folder of its own; the objects do not mix.
set(FASTCTC_SANITIZE "" CACHE STRING "Sanitizers to build with, e.g. address,undefined")

if(FASTCTC_SANITIZE)
  if(MSVC)
    message(FATAL_ERROR "fastctc: FASTCTC_SANITIZE needs gcc or clang")
  endif()
  set(fastctc_sanitize_flags "-fsanitize=${FASTCTC_SANITIZE}" -fno-omit-frame-pointer)
  if(FASTCTC_SANITIZE MATCHES "undefined")
    # A finding must end the process: a line on stderr would pass unseen in a test run.
    list(APPEND fastctc_sanitize_flags -fno-sanitize-recover=undefined)
  endif()
  # Enough for a readable trace; more doubles the time it takes to compile.
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:${fastctc_sanitize_flags};-O1;-g1>")
  add_link_options(${fastctc_sanitize_flags})
  message(STATUS "fastctc: sanitizers ${FASTCTC_SANITIZE}")
endif()
