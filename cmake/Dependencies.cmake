# Every library Fairway links with, found once. What each is for: docs/dependencies.md.
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(yaml-cpp REQUIRED)
find_package(CLI11 REQUIRED)
find_package(tl-expected REQUIRED)
find_package(Boost 1.81 REQUIRED)
pkg_check_modules(nghttp2 REQUIRED IMPORTED_TARGET libnghttp2)

if(FAIRWAY_TESTS)
  find_package(GTest REQUIRED)
  find_package(Protobuf REQUIRED)   # the oracle that our own wire format is compared with
  find_package(simdjson REQUIRED)   # the oracle of the body scanner
endif()
if(FAIRWAY_BENCH)
  find_package(benchmark REQUIRED)
endif()
