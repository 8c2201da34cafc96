# The functions that the CMakeLists.txt of module and test folders call.
#
#   reprise_add_folders(<folder>...)   descend into each that has a CMakeLists.txt
#   reprise_module(...)                a folder of sources -> static library reprise_<name>
#   reprise_program(...)               a folder with main.cc -> program, and its rest as a module
#   reprise_test(...)                  a test executable, known to ctest
#   reprise_test_folder(...)           every *_test.cc of a folder, as one executable or as many
#
# A folder may be empty: it then makes an INTERFACE library, and no program or test, so that the
# tree configures at every stage. Sources are globbed with CONFIGURE_DEPENDS: a new file is seen by
# the next build.

function(reprise_add_folders)
  foreach(folder IN LISTS ARGN)
    if(EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${folder}/CMakeLists.txt")
      add_subdirectory(${folder})
    endif()
  endforeach()
endfunction()

# Fails when a module depends on one that no folder has defined.
function(reprise_link_modules target keyword)
  foreach(dep IN LISTS ARGN)
    if(NOT TARGET reprise_${dep})
      message(FATAL_ERROR "${target} wants module '${dep}', which is not defined (yet): "
                          "order the folders so that lower layers come first")
    endif()
    target_link_libraries(${target} ${keyword} reprise_${dep})
  endforeach()
endfunction()

# Headers that many files include are parsed once per build, not once per file: cmake/pch/std.h for
# everything, with GoogleTest for tests, with gRPC for its adapters. Measured on 2 cores: a test file
# 1.3 -> 0.35 s, a gRPC file 4.3 -> 2.4 s, 3 s once for each precompiled header. Files must still
# include what they use: `tools/dev tidy --headers` and the sanitizer presets build without this.
function(reprise_add_pch name)
  add_library(reprise_pch_${name} STATIC cmake/pch/empty.cc)
  target_include_directories(reprise_pch_${name} PRIVATE "${PROJECT_SOURCE_DIR}")
  target_link_libraries(reprise_pch_${name} PRIVATE ${ARGN})
  target_precompile_headers(reprise_pch_${name} PRIVATE "${PROJECT_SOURCE_DIR}/cmake/pch/${name}.h")
endfunction()

if(REPRISE_PCH)
  reprise_add_pch(std)
  reprise_add_pch(test reprise::ext_gtest)
  if(REPRISE_WITH_SERVER_DEPS)
    reprise_add_pch(grpc reprise::ext_grpc)
  endif()
endif()

# reprise_use_pch(<target> std|test|grpc)
function(reprise_use_pch target name)
  if(REPRISE_PCH)
    target_precompile_headers(${target} REUSE_FROM reprise_pch_${name})
  endif()
endfunction()

# reprise_module(<name>
#   [DEPS <modules...>]         modules whose headers this one may include; inherited by users
#   [LIBS <targets...>]         third-party targets, known to this module's sources only
#   [EXCLUDE <regex>]           file names to leave out (main.cc always is)
#   [SERVER_SOURCES <regex>]    file names that exist only with REPRISE_WITH_SERVER_DEPS
#   [SERVER_LIBS <targets...>]  what only those files link
#   [PCH <name>]                precompiled header; default: std
# )
# Makes static library reprise_<name> of the *.cc files of the calling folder.
function(reprise_module name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "EXCLUDE;SERVER_SOURCES;PCH" "DEPS;LIBS;SERVER_LIBS")
  file(GLOB sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/*.cc")
  list(FILTER sources EXCLUDE REGEX "/main\\.cc$")
  if(arg_EXCLUDE)
    list(FILTER sources EXCLUDE REGEX "/${arg_EXCLUDE}$")
  endif()
  if(arg_SERVER_SOURCES AND NOT REPRISE_WITH_SERVER_DEPS)
    list(FILTER sources EXCLUDE REGEX "/${arg_SERVER_SOURCES}$")
  endif()
  if(REPRISE_WITH_SERVER_DEPS)
    list(APPEND arg_LIBS ${arg_SERVER_LIBS})
  endif()

  if(sources)
    add_library(reprise_${name} STATIC ${sources})
    target_link_libraries(reprise_${name} PRIVATE ${arg_LIBS})
    if(NOT arg_PCH)
      set(arg_PCH std)
    endif()
    reprise_use_pch(reprise_${name} ${arg_PCH})
    set(keyword PUBLIC)
  else()
    add_library(reprise_${name} INTERFACE)
    target_link_libraries(reprise_${name} INTERFACE ${arg_LIBS})
    set(keyword INTERFACE)
  endif()
  # Includes are written from the repository root, those of the installed API from include/.
  target_include_directories(reprise_${name} ${keyword}
                             "${PROJECT_SOURCE_DIR}" "${PROJECT_SOURCE_DIR}/include")
  reprise_link_modules(reprise_${name} ${keyword} ${arg_DEPS})
endfunction()

# reprise_program(<program> MODULE <name> [DEPS <modules...>] [LIBS <targets...>] [PCH <name>])
# Makes bin/<program> of main.cc, once there is one, and reprise_<name> of the other sources.
function(reprise_program program)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "MODULE;PCH" "DEPS;LIBS")
  reprise_module(${arg_MODULE} DEPS ${arg_DEPS} LIBS ${arg_LIBS} PCH ${arg_PCH})
  file(GLOB main CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/main.cc")
  if(NOT main)
    return()
  endif()
  add_executable(${program} ${main})
  target_link_libraries(${program} PRIVATE ${arg_LIBS})
  reprise_link_modules(${program} PRIVATE ${arg_MODULE} ${arg_DEPS})
  reprise_use_pch(${program} std)
endfunction()

# reprise_test(<name> SOURCES <files...> [DEPS <modules...>] [LIBS <targets...>]
#              [LABEL unit|conformance|sim|crash|golden|e2e]  default: unit
#              [TIMEOUT <seconds>]                            default: 60
#              [ENGINES]                                      run once per I/O engine
#              [SERIAL]                                       never beside another test
#              [ARGS <arguments...>])
# Makes tests/<name>, linked with GoogleTest's main, and registers it. Tests run with the repository
# root as working directory and report their cases to results/<name>.xml. With ENGINES they are
# registered as <name>.uring and <name>.threads, which set REPRISE_IO.
function(reprise_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "ENGINES;SERIAL" "LABEL;TIMEOUT" "SOURCES;DEPS;LIBS;ARGS")
  if(NOT arg_LABEL)
    set(arg_LABEL unit)
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 60)
  endif()
  if(REPRISE_SANITIZE)
    math(EXPR arg_TIMEOUT "4 * ${arg_TIMEOUT}")
  endif()

  add_executable(${name} ${arg_SOURCES})
  set_target_properties(${name} PROPERTIES
                        RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/tests")
  target_link_libraries(${name} PRIVATE reprise::ext_gtest_main ${arg_LIBS})
  reprise_link_modules(${name} PRIVATE ${arg_DEPS})
  target_include_directories(${name} PRIVATE "${PROJECT_SOURCE_DIR}" "${PROJECT_SOURCE_DIR}/include")
  reprise_use_pch(${name} test)

  set(engines default)
  set(labels ${arg_LABEL})
  if(arg_ENGINES)
    set(engines uring threads)
    list(APPEND labels engines)
  endif()
  foreach(engine IN LISTS engines)
    set(test ${name})
    set(environment "")
    if(NOT engine STREQUAL "default")
      set(test ${name}.${engine})
      set(environment "REPRISE_IO=${engine}")
    endif()
    add_test(NAME ${test} WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}"
             COMMAND ${name} --gtest_brief=1 --gtest_output=xml:${PROJECT_BINARY_DIR}/results/${test}.xml
                     ${arg_ARGS})
    set_tests_properties(${test} PROPERTIES LABELS "${labels}" TIMEOUT ${arg_TIMEOUT}
                         ENVIRONMENT "${environment}")
    if(arg_SERIAL)
      set_tests_properties(${test} PROPERTIES RUN_SERIAL ON)
    endif()
  endforeach()
endfunction()

# reprise_test_folder(<name> [EACH] [DIR <folder>] <arguments of reprise_test but SOURCES>)
# All *_test.cc of the folder (default: the calling one) as one executable <name>; with EACH, every <x>_test.cc as
# executable <name>_<x>. Other *.cc files are helpers, compiled into each. Modules in DEPS that this
# build leaves out (REPRISE_WITH_SERVER_DEPS) leave the tests out as well.
function(reprise_test_folder name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "EACH;ENGINES;SERIAL" "DIR;LABEL;TIMEOUT" "DEPS;LIBS;ARGS")
  set(options DEPS ${arg_DEPS} LIBS ${arg_LIBS} ARGS ${arg_ARGS} LABEL ${arg_LABEL}
              TIMEOUT ${arg_TIMEOUT})
  foreach(option ENGINES SERIAL)
    if(arg_${option})
      list(APPEND options ${option})
    endif()
  endforeach()
  set(folder "${CMAKE_CURRENT_SOURCE_DIR}/${arg_DIR}")
  file(GLOB tests CONFIGURE_DEPENDS "${folder}/*_test.cc")
  file(GLOB helpers CONFIGURE_DEPENDS "${folder}/*.cc")
  list(FILTER helpers EXCLUDE REGEX "_test\\.cc$")
  foreach(dep IN LISTS arg_DEPS)
    if(NOT TARGET reprise_${dep} AND NOT REPRISE_WITH_SERVER_DEPS)
      return()
    endif()
  endforeach()
  if(NOT tests)
    return()
  endif()
  if(NOT arg_EACH)
    reprise_test(${name} SOURCES ${tests} ${helpers} ${options})
    return()
  endif()
  foreach(source IN LISTS tests)
    get_filename_component(stem "${source}" NAME_WE)
    string(REGEX REPLACE "_test$" "" stem "${stem}")
    reprise_test(${name}_${stem} SOURCES ${source} ${helpers} ${options})
  endforeach()
endfunction()
