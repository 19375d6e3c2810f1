# Run at build time: writes OUT with the version and the commit, only when they changed. COMMIT: of sources without their
# history.
execute_process(COMMAND git -C ${SOURCE_DIR} rev-parse --short=12 HEAD
                OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
if(failed)
  set(commit "${COMMIT}")
endif()
set(text "#include \"cli/version.h\"\n\nnamespace sluice::cli {\nconst char* const kBuild = \"${VERSION}+${commit}\";\n}\n")
if(EXISTS ${OUT})
  file(READ ${OUT} old)
endif()
if(NOT "${old}" STREQUAL "${text}")
  file(WRITE ${OUT} "${text}")
endif()
