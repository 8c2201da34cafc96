# Third-party libraries, each behind one target reprise::ext_<name>. Nothing else in the tree calls
# find_package or names a library, and each target is linked by the one adapter in this table
# (`tools/dev tidy` checks the same table on #include lines):
#
#   target               library          linked by               in the files
#   -------------------  ---------------  ----------------------  --------------------------------
#   ext_digest           xxHash           core/base               digest*
#   ext_log              spdlog           core/base               log*
#   ext_fmt              fmt              core/base               all: it stands in for std::format,
#                                                                 which libstdc++ 12 lacks
#   ext_metrics          prometheus-cpp   server/web              metrics_page*
#   ext_uring            liburing         core/io                 uring_*
#   ext_zstd             zstd             core/format             the codec that compresses
#   ext_json             nlohmann-json    core/format, client,    safetensors*, and where reports
#                                         server/web, tools       are written
#   ext_rocksdb          RocksDB          server/catalog          rocksdb_*
#   ext_curl             libcurl          server/tier             s3_*
#   ext_yaml             yaml-cpp         server                  config*
#   ext_http             cpp-httplib      server/web              all
#   ext_grpc             gRPC, protobuf   server/rpc, tools/cli   all
#   ext_cli              CLI11            server, tools           main.cc, cli/, sidecar/
#   ext_gtest            GoogleTest       tests                   all
#   ext_benchmark        Google Benchmark tools/bench, tests      all
#   ext_fuse             libfuse 3        tests/crash             disk/
#
# fmt, spdlog and xxHash are compiled into ours from headers, so that libreprise.so brings none of
# them into the trainer's process.
find_package(PkgConfig REQUIRED)

# reprise_external(<name> TARGETS <imported targets...>)
function(reprise_external name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "TARGETS")
  add_library(reprise_ext_${name} INTERFACE)
  target_link_libraries(reprise_ext_${name} INTERFACE ${arg_TARGETS})
  add_library(reprise::ext_${name} ALIAS reprise_ext_${name})
endfunction()

# Used by every build.
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(liburing REQUIRED IMPORTED_TARGET liburing)
pkg_check_modules(zstd REQUIRED IMPORTED_TARGET libzstd)
pkg_check_modules(curl REQUIRED IMPORTED_TARGET libcurl)
find_package(prometheus-cpp REQUIRED CONFIG)
find_package(nlohmann_json REQUIRED CONFIG)
find_package(yaml-cpp REQUIRED CONFIG)
find_package(CLI11 REQUIRED CONFIG)
find_package(GTest REQUIRED CONFIG)
find_package(benchmark REQUIRED CONFIG)
# Only for a test that is skipped where it cannot run.
pkg_check_modules(fuse3 IMPORTED_TARGET fuse3)

reprise_external(digest TARGETS PkgConfig::xxhash)
add_library(reprise_ext_fmt STATIC cmake/fmt/format.cc)
add_library(reprise::ext_fmt ALIAS reprise_ext_fmt)
reprise_external(log TARGETS reprise::ext_fmt)
target_compile_definitions(reprise_ext_log INTERFACE SPDLOG_FMT_EXTERNAL)
reprise_external(metrics TARGETS prometheus-cpp::core)
reprise_external(uring TARGETS PkgConfig::liburing)
reprise_external(zstd TARGETS PkgConfig::zstd)
reprise_external(json TARGETS nlohmann_json::nlohmann_json)
reprise_external(curl TARGETS PkgConfig::curl)
reprise_external(yaml TARGETS yaml-cpp)
reprise_external(cli TARGETS CLI11::CLI11)
reprise_external(gtest TARGETS GTest::gmock GTest::gtest)
reprise_external(gtest_main TARGETS GTest::gmock_main GTest::gmock GTest::gtest)
reprise_external(benchmark TARGETS benchmark::benchmark)

if(fuse3_FOUND)
  reprise_external(fuse TARGETS PkgConfig::fuse3)
endif()

# Left out of builds that instrument everything they link (see REPRISE_WITH_SERVER_DEPS).
if(REPRISE_WITH_SERVER_DEPS)
  pkg_check_modules(rocksdb REQUIRED IMPORTED_TARGET rocksdb)
  # Not by pkg-config, which takes 25 s to walk gRPC's list of Abseil parts.
  find_package(Protobuf REQUIRED)
  find_package(gRPC REQUIRED CONFIG)
  pkg_check_modules(httplib REQUIRED IMPORTED_TARGET cpp-httplib)
  find_program(REPRISE_PROTOC protoc REQUIRED)
  find_program(REPRISE_GRPC_CPP_PLUGIN grpc_cpp_plugin REQUIRED)

  reprise_external(rocksdb TARGETS PkgConfig::rocksdb)
  reprise_external(grpc TARGETS gRPC::grpc++ protobuf::libprotobuf)
  reprise_external(http TARGETS PkgConfig::httplib)
endif()
