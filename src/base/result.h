// Errors as values.
//
// A function that can fail on its input returns Result<T>; nothing on the request path throws. Exceptions of
// libraries are caught in the .cc that calls the library. A broken invariant of our own is no Error:
// FAIRWAY_CHECK it.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

#include <tl/expected.hpp>

namespace fairway::base {

// What went wrong, in the words a user reads. `code` decides what a frontend answers.
enum class ErrorCode {
  kInvalidArgument,    // the input is wrong and stays wrong: HTTP 400
  kNotFound,           // what it names does not exist: HTTP 404
  kResourceExhausted,  // no capacity now: HTTP 429
  kUnavailable,        // nobody there: HTTP 503
  kIo,                 // file, socket, child process
  kInternal,           // our own fault
};

struct Error {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;
};

template <typename T>
using Result = tl::expected<T, Error>;

// `return base::Fail(ErrorCode::kIo, "cannot open " + path);`
inline tl::unexpected<Error> Fail(ErrorCode code, std::string message) {
  return tl::make_unexpected(Error{code, std::move(message)});
}

}  // namespace fairway::base

// Dies when an invariant of ours does not hold: going on would decide on nonsense.
#define FAIRWAY_CHECK(condition)                                                             \
  do {                                                                                       \
    if (!(condition)) [[unlikely]] {                                                         \
      std::fprintf(stderr, "%s:%d: broken invariant: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                          \
    }                                                                                        \
  } while (false)
