#include "net/small_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace fairway::net {

namespace {
constexpr size_t kMaxFile = 1 << 20;
}  // namespace

base::Result<std::string> ReadSmallFile(const std::string& path) {
  const auto fail = [&](const std::string& why) {
    return base::Fail(base::ErrorCode::kIo, "cannot read " + path + ": " + why);
  };
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return fail(std::generic_category().message(errno));
  std::string text;
  char buffer[16 << 10];
  ssize_t n = 0;
  while ((n = ::read(descriptor, buffer, sizeof buffer)) > 0 && text.size() <= kMaxFile) {
    text.append(buffer, static_cast<size_t>(n));
  }
  const int error = errno;
  ::close(descriptor);
  if (n < 0) return fail(std::generic_category().message(error));
  if (text.size() > kMaxFile) return fail("larger than 1 MiB");
  return text;
}

}  // namespace fairway::net
