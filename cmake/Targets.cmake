# Flags shared by every target of ours, and the two functions that declare libraries and tests.
add_library(sluice_flags INTERFACE)
target_compile_features(sluice_flags INTERFACE cxx_std_20)
# -ffp-contract=off: the kernels say where a fused multiply-add happens, never the compiler (bit-exactness).
target_compile_options(sluice_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-unused-parameter -ffp-contract=off -fstack-protector-strong>)
# What a release is made of checks the sizes with which it calls libc. Sanitizers check more, tests are not optimised.
set(sluice_fortify "")
if(NOT SLUICE_SANITIZE)
  set(sluice_fortify $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CONFIG:Release,RelWithDebInfo>>:-D_FORTIFY_SOURCE=3>)
endif()
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

# Headers that most tests include and that take longest to read, read once for each level of optimisation. No source may
# rely on them: -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON -DCMAKE_UNITY_BUILD=OFF shows which does.
if(SLUICE_TESTS)
  file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/empty.cc CONTENT "")
  foreach(level O0 O1)
    add_library(sluice_test_headers_${level} OBJECT EXCLUDE_FROM_ALL ${PROJECT_BINARY_DIR}/empty.cc)
    target_link_libraries(sluice_test_headers_${level} PRIVATE sluice_flags GTest::gmock)
    target_compile_options(sluice_test_headers_${level} PRIVATE -${level})
    if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")  # else ccache would take each of them for a new one
      target_compile_options(sluice_test_headers_${level} PRIVATE "SHELL:-Xclang -fno-pch-timestamp")
    endif()
    target_precompile_headers(sluice_test_headers_${level} PRIVATE
      <algorithm> <filesystem> <functional> <map> <memory> <optional> <random> <string> <vector>
      <absl/status/statusor.h> <absl/strings/str_cat.h> <gmock/gmock.h> <gtest/gtest.h> <nlohmann/json.hpp>)
  endforeach()
endif()

# sluice_library(name SOURCES a.cc ... DEPS lib ...)
function(sluice_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_compile_options(${name} PRIVATE ${sluice_fortify})
  target_link_libraries(${name} PUBLIC sluice_flags ${ARG_DEPS})
endfunction()

# sluice_parsers(library ...): they read files and texts, once each, and are large.
function(sluice_parsers)
  if(SLUICE_QUICK_PARSERS)
    foreach(library ${ARGN})
      target_compile_options(${library} PRIVATE -O0)
    endforeach()
  endif()
endfunction()

# sluice_compile_as_test(target O0|O1): sources that include what tests do, with little optimisation.
function(sluice_compile_as_test target level)
  target_link_libraries(${target} PRIVATE GTest::gmock)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-${level}>)
  target_precompile_headers(${target} REUSE_FROM sluice_test_headers_${level})
endfunction()

# sluice_test(name SOURCES a_test.cc ... DEPS lib ... [LABELS label ...] [COMPUTES])
# Tests find tests/golden and the model folder through the two definitions below.
function(sluice_test name)
  cmake_parse_arguments(ARG "COMPUTES" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE sluice_flags sluice_planted_bugs ${ARG_DEPS} GTest::gtest_main)
  # What a test itself does is small, except where it COMPUTES references or reads large files of JSON; what it tests was
  # compiled as the library it is in.
  if(ARG_COMPUTES)
    sluice_compile_as_test(${name} O1)
  else()
    sluice_compile_as_test(${name} O0)
  endif()
  target_compile_definitions(${name} PRIVATE SLUICE_GOLDEN_DIR="${SLUICE_TEST_ROOT}/tests/golden"
                             SLUICE_MODELS_DIR="${SLUICE_TEST_ROOT}/models")
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}")
endfunction()

# sluice_leave_out_under_asan(test PATTERN): cases that take long there and touch no memory that others of the test do not.
function(sluice_leave_out_under_asan test pattern)
  if(SLUICE_SANITIZE MATCHES "address")
    set_tests_properties(${test} PROPERTIES ENVIRONMENT "GTEST_FILTER=-${pattern}")
  endif()
endfunction()

# sluice_long_tests(name ...): tests that are begun before others when several run at a time.
function(sluice_long_tests)
  set_tests_properties(${ARGN} PROPERTIES COST 100)
endfunction()

# sluice_tests_of_memory(name ...): they ask the same of code that is compiled in any way, so that the sanitizers' tree is the one
# that is worth building them in. With SLUICE_MEMORY_TESTS=OFF they are built by name only.
function(sluice_tests_of_memory)
  set_tests_properties(${ARGN} PROPERTIES LABELS memory)
  if(NOT SLUICE_MEMORY_TESTS)
    set_target_properties(${ARGN} PROPERTIES EXCLUDE_FROM_ALL ON)
  endif()
endfunction()

# sluice_tests_of_values(name ...): their one question is whether values are right; every access to memory of theirs is made
# by other tests as well. Under a sanitizer they are built by name only.
function(sluice_tests_of_values)
  set_tests_properties(${ARGN} PROPERTIES LABELS values)
  if(SLUICE_SANITIZE)
    set_target_properties(${ARGN} PROPERTIES EXCLUDE_FROM_ALL ON)
  endif()
endfunction()
