# Every library Fairway links with, found once. What each is for: docs/dependencies.md.
if(FAIRWAY_PORTABLE)
  # Everything but glibc goes into the binary, from Debian's own static libraries.
  set(OPENSSL_USE_STATIC_LIBS ON)
  set(CMAKE_FIND_LIBRARY_SUFFIXES .a)
endif()
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(OpenSSL REQUIRED)
# The program takes OpenSSL as the system has it and keeps it up to date; what is linked with the property FAIRWAY_STATIC
# takes it in, as Envoy's images have none.
find_library(SSL_ARCHIVE libssl.a REQUIRED)
find_library(CRYPTO_ARCHIVE libcrypto.a REQUIRED)
add_library(fairway_openssl INTERFACE)
target_include_directories(fairway_openssl SYSTEM INTERFACE ${OPENSSL_INCLUDE_DIR})
set(ARCHIVED $<BOOL:$<TARGET_PROPERTY:FAIRWAY_STATIC>>)
target_link_libraries(fairway_openssl INTERFACE
  $<${ARCHIVED}:${SSL_ARCHIVE}> $<${ARCHIVED}:${CRYPTO_ARCHIVE}>
  $<$<NOT:${ARCHIVED}>:OpenSSL::SSL> $<$<NOT:${ARCHIVED}>:OpenSSL::Crypto>)
# Static: Envoy's images, where the module runs, have no libyaml-cpp, and the program needs one package less.
find_library(YAML_CPP_LIBRARY libyaml-cpp.a REQUIRED)
add_library(fairway_yaml_cpp STATIC IMPORTED GLOBAL)
set_target_properties(fairway_yaml_cpp PROPERTIES IMPORTED_LOCATION ${YAML_CPP_LIBRARY} INTERFACE_COMPILE_DEFINITIONS YAML_CPP_STATIC_DEFINE)
# Static: the program needs one package less.
find_library(RE2_LIBRARY libre2.a REQUIRED)
add_library(fairway_re2 STATIC IMPORTED GLOBAL)
set_target_properties(fairway_re2 PROPERTIES IMPORTED_LOCATION ${RE2_LIBRARY})
find_package(CLI11 REQUIRED)
find_package(tl-expected REQUIRED)
find_package(Boost 1.81 REQUIRED)
pkg_check_modules(nghttp2 REQUIRED IMPORTED_TARGET libnghttp2)
if(FAIRWAY_PORTABLE)
  add_link_options(-static-libstdc++ -static-libgcc)
endif()

if(FAIRWAY_TESTS)
  find_package(GTest REQUIRED)
  find_package(Protobuf REQUIRED)   # the oracle that our own wire format is compared with
  find_package(simdjson REQUIRED)   # the oracle of the body scanner
endif()
if(FAIRWAY_BENCH)
  find_package(benchmark REQUIRED)
endif()
