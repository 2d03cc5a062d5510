# fairway_module(NAME [DEPS room...] [LIBS target...] [TEST_LIBS target...] [APART file...])
#
# One room, one static library `fairway_NAME`, made from the folder's own files:
#   foo.cc        -> the library
#   foo_test.cc   -> one test program `NAME_test` (label: unit)
#   foo_bench.cc  -> one benchmark program `NAME_bench` (with FAIRWAY_BENCH)
# and from its folder plugins/ where there is one.
# A new file is picked up by its name; nothing has to be listed.
#
# Tests, and with FAIRWAY_UNITY (all presets but debug) the libraries too, are compiled several files at a time: most of what the compiler does for one of
# our files is reading the same headers again (the front end alone took 1,090 s for 330 files, in eights 180 s). Two files that
# give something file-local the same name cannot be compiled together: one of them is named under APART, as is what not all who link
# the room's library should get.
add_library(fairway_options INTERFACE)
target_include_directories(fairway_options INTERFACE ${PROJECT_SOURCE_DIR}/src)
# Designated initialisers leave fields at their defaults on purpose.
target_compile_options(fairway_options INTERFACE -Wall -Wextra -Werror -Wno-missing-field-initializers)
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  # Of libstdc++'s own std::stable_sort, which Clang does not take for a system header's.
  target_compile_options(fairway_options INTERFACE -Wno-deprecated-declarations)
endif()
# Calls of shared functions without a stop in between: one cold line of code less for each that a request inside Envoy makes.
target_compile_options(fairway_options INTERFACE -fno-plt)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # g++ 12 warns wrongly on std::string operator+ (GCC bug 105329) and, under sanitizers, on optionals it cannot follow.
  target_compile_options(fairway_options INTERFACE -Wno-restrict)
endif()
target_compile_definitions(fairway_options INTERFACE FAIRWAY_VERSION="${PROJECT_VERSION}"
  BOOST_ASIO_NO_DEPRECATED BOOST_ASIO_DISABLE_CONCEPTS)
if(FAIRWAY_SANITIZE)
  target_compile_options(fairway_options INTERFACE -fsanitize=${FAIRWAY_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(fairway_options INTERFACE -fsanitize=${FAIRWAY_SANITIZE})
  if(FAIRWAY_SANITIZE MATCHES "address" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # A null pointer that is used stops in AddressSanitizer, and clang looks for both in the fuzz build, which links
    # every room that reads others' bytes. With g++ 12 the two are half of the time that this build takes: router.cc
    # in 8.3 s instead of 4.1.
    target_compile_options(fairway_options INTERFACE -fno-sanitize=null,alignment)
  endif()
  if(FAIRWAY_SANITIZE STREQUAL "thread")
    # g++ 12 says that fences are invisible to TSan; we use none ourselves, Asio does.
    target_compile_options(fairway_options INTERFACE $<$<CXX_COMPILER_ID:GNU>:-Wno-tsan>)
  endif()
endif()

# A data race needs two threads: under ThreadSanitizer a test file that starts none, by itself or with the helpers of
# tests/support that do, finds nothing that the release build and AddressSanitizer do not. Leaves the others in `var`.
function(fairway_keep_threaded var)
  set(kept)
  foreach(FILE ${${var}})
    file(STRINGS ${FILE} found REGEX "std::j?thread|std::async|LoopThread|support/(fake_api_server|raw_tcp_server|grpc_)")
    if(found)
      list(APPEND kept ${FILE})
    endif()
  endforeach()
  set(${var} ${kept} PARENT_SCOPE)
endfunction()

# Compiles the target's files eight at a time.
function(fairway_together TARGET)
  set_target_properties(${TARGET} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # It takes a .cc file that is included for a header, whose file-local types several files would see.
    target_compile_options(${TARGET} PRIVATE -Wno-subobject-linkage)
  endif()
endfunction()

# These files of the current folder are compiled each by itself, always.
function(fairway_apart)
  set_source_files_properties(${ARGN} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
endfunction()

function(fairway_module NAME)
  cmake_parse_arguments(ARG "" "" "DEPS;LIBS;TEST_LIBS;APART" ${ARGN})
  file(GLOB SOURCES CONFIGURE_DEPENDS *.cc plugins/*.cc)
  set(TESTS ${SOURCES})
  set(BENCHES ${SOURCES})
  list(FILTER TESTS INCLUDE REGEX "_test\\.cc$")
  if(FAIRWAY_SANITIZE STREQUAL "thread")
    fairway_keep_threaded(TESTS)
  endif()
  list(FILTER BENCHES INCLUDE REGEX "_bench\\.cc$")
  list(FILTER SOURCES EXCLUDE REGEX "_(test|bench)\\.cc$|/(main|hooks|asan_heap)\\.cc$")
  list(TRANSFORM ARG_DEPS PREPEND fairway_)
  fairway_apart(${ARG_APART})

  if(SOURCES)
    add_library(fairway_${NAME} STATIC ${SOURCES})
    if(FAIRWAY_UNITY)
      fairway_together(fairway_${NAME})
    endif()
    target_link_libraries(fairway_${NAME} PUBLIC fairway_options ${ARG_DEPS} PRIVATE ${ARG_LIBS})
  else()
    add_library(fairway_${NAME} INTERFACE)
    target_link_libraries(fairway_${NAME} INTERFACE fairway_options ${ARG_DEPS} ${ARG_LIBS})
  endif()

  if(FAIRWAY_TESTS AND TESTS)
    add_executable(${NAME}_test ${TESTS})
    fairway_together(${NAME}_test)
    target_link_libraries(${NAME}_test PRIVATE fairway_${NAME} ${ARG_LIBS} ${ARG_TEST_LIBS} GTest::gtest GTest::gmock GTest::gtest_main)
    target_include_directories(${NAME}_test PRIVATE ${PROJECT_SOURCE_DIR})
    target_compile_options(${NAME}_test PRIVATE -O0)  # what is tested is optimised; the tests themselves need not be
    add_test(NAME ${NAME} COMMAND ${NAME}_test WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    set_tests_properties(${NAME} PROPERTIES LABELS unit TIMEOUT 600)  # a hang, and not a busy machine
  endif()
  if(FAIRWAY_BENCH AND BENCHES)
    add_executable(${NAME}_bench ${BENCHES})
    target_link_libraries(${NAME}_bench PRIVATE fairway_${NAME} ${ARG_LIBS} benchmark::benchmark_main)
    target_include_directories(${NAME}_bench PRIVATE ${PROJECT_SOURCE_DIR})
  endif()
endfunction()
