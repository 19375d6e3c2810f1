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
  target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:$<IF:$<BOOL:${ARG_COMPUTES}>,-O1,-O0>>)
  target_compile_definitions(${name} PRIVATE SLUICE_GOLDEN_DIR="${SLUICE_TEST_ROOT}/tests/golden"
                             SLUICE_MODELS_DIR="${SLUICE_TEST_ROOT}/models")
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}")
endfunction()
