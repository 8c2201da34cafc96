# Language level, warnings, hardening, sanitizers, and where output goes.
#
# Set for the whole tree, so that every object agrees on them: a precompiled header is refused when
# one option differs. For the same reason -fPIC is spelt out instead of using
# CMAKE_POSITION_INDEPENDENT_CODE, which would give executables -fPIE and the rest -fPIC.

set(CMAKE_CXX_STANDARD 23)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_C_FLAGS_RELEASE "-O2 -g1 -DNDEBUG")
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -g1 -DNDEBUG")
if(REPRISE_SANITIZE)
  set(CMAKE_CXX_FLAGS_DEBUG "-O1 -g1")
else()
  set(CMAKE_CXX_FLAGS_DEBUG "-O0 -g")
endif()

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin")
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/lib")
set(CMAKE_ARCHIVE_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/lib")

add_compile_options(-fPIC -pthread -fvisibility=hidden -fvisibility-inlines-hidden
                    -fno-omit-frame-pointer -ffile-prefix-map=${PROJECT_SOURCE_DIR}/=)
add_link_options(-pthread -Wl,--as-needed)
string(APPEND CMAKE_EXE_LINKER_FLAGS " -pie")

# Warnings. -Wthread-safety reads the annotations of core/base and exists in clang only.
add_compile_options(-Wall -Wextra -Wno-missing-field-initializers)
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  add_compile_options(-Wthread-safety)
  add_link_options(-fuse-ld=lld)
endif()
if(REPRISE_WERROR)
  add_compile_options(-Werror)
endif()

# Hardening, in every build.
add_compile_options(-fstack-protector-strong -fstack-clash-protection)
add_compile_definitions(_GLIBCXX_ASSERTIONS REPRISE_VERSION="${PROJECT_VERSION}")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  add_compile_options(-fcf-protection=full)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  add_compile_options(-mbranch-protection=standard)
endif()
add_link_options(-Wl,-z,relro -Wl,-z,now -Wl,-z,noexecstack)

# FORTIFY_SOURCE needs the optimizer, and hides accesses that a sanitizer would report.
if(REPRISE_SANITIZE)
  add_compile_options(-fsanitize=${REPRISE_SANITIZE} -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${REPRISE_SANITIZE})
elseif(NOT CMAKE_BUILD_TYPE STREQUAL "Debug")
  add_compile_options(-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3)
endif()

# Counters of edges and comparisons for libFuzzer; the sanitizer's runtime ignores them in programs
# that are no fuzzers.
if(REPRISE_FUZZ)
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()
if(REPRISE_COVERAGE)
  add_compile_options(-fprofile-instr-generate -fcoverage-mapping)
  add_link_options(-fprofile-instr-generate)
endif()

if(REPRISE_CHECK_STATUS)
  add_compile_definitions(REPRISE_CHECK_STATUS=1)
endif()

# ccache: the sloppiness is what it needs to cache units that use a precompiled header, and
# -fno-pch-timestamp makes that header the same bytes each time it is built.
find_program(REPRISE_CCACHE_PROGRAM ccache)
if(REPRISE_CCACHE AND REPRISE_CCACHE_PROGRAM)
  set(CMAKE_CXX_COMPILER_LAUNCHER
      "${CMAKE_COMMAND}" -E env "CCACHE_BASEDIR=${PROJECT_SOURCE_DIR}"
      "CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime"
      "${REPRISE_CCACHE_PROGRAM}")
endif()
if(REPRISE_PCH AND CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:SHELL:-Xclang -fno-pch-timestamp>")
endif()
