# Flags shared by every target of ours, and the two functions that declare libraries and tests.
add_library(sluice_flags INTERFACE)
target_compile_features(sluice_flags INTERFACE cxx_std_20)
# -ffp-contract=off: the kernels say where a fused multiply-add happens, never the compiler (bit-exactness).
target_compile_options(sluice_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-unused-parameter -ffp-contract=off -fstack-protector-strong>)
target_include_directories(sluice_flags INTERFACE ${PROJECT_SOURCE_DIR})
target_link_libraries(sluice_flags INTERFACE Threads::Threads)
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  target_compile_options(sluice_flags INTERFACE -Wthread-safety)
endif()
if(SLUICE_SANITIZE)
  target_compile_options(sluice_flags INTERFACE -fsanitize=${SLUICE_SANITIZE} -fno-omit-frame-pointer
                         -fno-sanitize-recover=all)
  target_link_options(sluice_flags INTERFACE -fsanitize=${SLUICE_SANITIZE})
endif()

# sluice_precompiled(name HEADERS header ... OPTIONS option ...): headers that most sources of a kind include and that take
# longest to read, read once; other targets of the same flags take them with REUSE_FROM. Nobody may rely on them:
# -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON -DCMAKE_UNITY_BUILD=OFF shows which file does not include what it uses.
file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/empty.cc CONTENT "")
function(sluice_precompiled name)
  cmake_parse_arguments(ARG "" "" "HEADERS;OPTIONS;DEPS" ${ARGN})
  add_library(${name} OBJECT EXCLUDE_FROM_ALL ${PROJECT_BINARY_DIR}/empty.cc)
  target_link_libraries(${name} PRIVATE sluice_flags ${ARG_DEPS})
  target_compile_options(${name} PRIVATE ${ARG_OPTIONS})
  if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    target_compile_options(${name} PRIVATE "SHELL:-Xclang -fno-pch-timestamp")  # or ccache finds nothing again
  endif()
  target_precompile_headers(${name} PRIVATE ${ARG_HEADERS})
endfunction()
set(common_headers
  <algorithm> <filesystem> <functional> <map> <memory> <optional> <random> <string> <vector> <absl/status/statusor.h>
  <absl/strings/str_cat.h> <nlohmann/json.hpp>)
if(SLUICE_TESTS)
  foreach(level O0 O1)
    sluice_precompiled(sluice_test_headers_${level} HEADERS ${common_headers} <gmock/gmock.h> <gtest/gtest.h> OPTIONS -${level} DEPS GTest::gmock)
  endforeach()
endif()

# sluice_library(name SOURCES a.cc ... DEPS lib ...)
function(sluice_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC sluice_flags ${ARG_DEPS})
endfunction()

# sluice_test(name SOURCES a_test.cc ... DEPS lib ... [LABELS label ...] [COMPUTES])
# Tests find tests/golden and the model folder through the two definitions below.
function(sluice_test name)
  cmake_parse_arguments(ARG "COMPUTES" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE sluice_flags sluice_planted_bugs ${ARG_DEPS} GTest::gmock
                        GTest::gtest_main)
  # What a test itself does is small, except where it COMPUTES references or reads large files of JSON; what it tests was
  # compiled as the library it is in.
  set(level O0)
  if(ARG_COMPUTES)
    set(level O1)
  endif()
  target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-${level}>)
  target_precompile_headers(${name} REUSE_FROM sluice_test_headers_${level})
  target_compile_definitions(${name} PRIVATE SLUICE_GOLDEN_DIR="${SLUICE_TEST_ROOT}/tests/golden"
                             SLUICE_MODELS_DIR="${SLUICE_TEST_ROOT}/models")
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}")
endfunction()

# sluice_tests_of_values(name ...): their one question is whether values are right; every access to memory of theirs is made
# by other tests as well. Under a sanitizer they are built by name only.
function(sluice_tests_of_values)
  set_tests_properties(${ARGN} PROPERTIES LABELS values)
  if(SLUICE_SANITIZE)
    set_target_properties(${ARGN} PROPERTIES EXCLUDE_FROM_ALL ON)
  endif()
endfunction()
