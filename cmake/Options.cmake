# What a build can switch. CMakePresets.json names the combinations that are kept working.

set(REPRISE_SANITIZE "" CACHE STRING
    "Sanitizers to build with: empty, 'address,undefined' or 'thread'")
set_property(CACHE REPRISE_SANITIZE PROPERTY STRINGS "" "address,undefined" "thread")

option(REPRISE_WITH_SERVER_DEPS
       "Build what links gRPC, protobuf or RocksDB (rpc, web, daemon, CLI, the RocksDB catalog)" ON)
option(REPRISE_CHECK_STATUS "Abort when a Status is destroyed unread" OFF)
option(REPRISE_FUZZ "Instrument everything for the fuzzers and build them (clang)" OFF)
option(REPRISE_COVERAGE "Instrument everything for a report of line coverage (clang)" OFF)
option(REPRISE_PCH "Precompile the standard library headers" ON)
option(REPRISE_CCACHE "Compile through ccache when it is installed" ON)
option(REPRISE_WERROR "Treat warnings as errors" ON)

if(NOT REPRISE_SANITIZE MATCHES "^(|address,undefined|thread)$")
  message(FATAL_ERROR "REPRISE_SANITIZE is '${REPRISE_SANITIZE}': use empty, "
                      "'address,undefined' or 'thread'")
endif()
